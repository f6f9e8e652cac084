"""Blocks of rounds, each one compiled program."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core import trees
from fedjax_sim.core.messages import check_sizes
from fedjax_sim.core.types import RUNS, Algorithm, Layout
from fedjax_sim.engine.placement import EVERYWHERE, of_runs, place, shardings
from fedjax_sim.runtime.processes import fetch, is_multiprocess
from fedjax_sim.simulation import client_memory, programs
from fedjax_sim.simulation.cohorts import CohortDraws, Drawn, merged, sampler_state, with_sampler_state
from fedjax_sim.simulation.rows import check_info
from fedjax_sim.simulation.sharded_cohorts import send_learners
from fedjax_sim.simulation.validation import as_rates
from fedjax_sim.simulation.view import View, view_of


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The rounds of an algorithm on some data, to be run in blocks.

    Attributes:
      algorithm: algorithm to run.
      data: a `FederatedData`, placed on the layout's devices.
      draws: how cohorts are drawn.
      layout: lanes and devices.
      capacity: most rounds in a block.
      drawn: the cohort of every round, if cohorts are not drawn.
    """

    algorithm: Algorithm
    data: Any
    draws: CohortDraws
    layout: Layout
    capacity: int
    drawn: Drawn | None = None
    _programs: dict = dataclasses.field(default_factory=dict, init=False, repr=False)
    _compiling: list = dataclasses.field(default_factory=list, init=False, repr=False)

    @property
    def num_clients(self) -> int:
        """`N`."""
        return self.algorithm.num_learners or self.data.num_clients

    @classmethod
    def on_devices(
        cls, algorithm: Algorithm, data: Any, draws: CohortDraws, layout: Layout, capacity: int
    ) -> Self:
        """Makes blocks with all data on each device, unless learners read only their own rows.

        Args: see the attributes; `data` is on the host.
        """
        if is_multiprocess() and algorithm.reads_own_rows and layout.mesh is not None:
            cohort, data = send_learners(data, layout)
            return cls(algorithm, data, draws, layout, capacity, Drawn(cohort, (), {}))
        # Otherwise a device could read the files themselves, which may shrink.
        return cls(algorithm, place(data.in_memory(), layout), draws, layout, capacity)

    @property
    def _specs(self) -> Any:
        return client_memory.specs(self.algorithm, self.num_clients, self.layout)

    def _start(self, *arguments: Any) -> Any:
        """Returns the state before the first round, from key, rates and perhaps parameters; traced."""
        return client_memory.start(self.algorithm, self.num_clients, self.layout, *arguments)

    @property
    def _consts(self) -> list[Any]:
        """The arrays over which the draw of cohorts closes."""
        return place(self.draws.program.consts, self.layout)

    def starts(
        self, runs: Iterable[tuple[jax.Array, Mapping[str, float]]], initial_params: Any = None
    ) -> list[tuple[Any, Any]]:
        """Returns the states before the first round, and the keys of cohorts and training.

        Args:
          runs: key and hyper-parameters of each run.
          initial_params: parameters to begin with, in place of the algorithm's.
        """
        # Initialise with the final sharding, so that all models never sit on one device.
        where = shardings(self.layout, self._specs)
        begin, program, states = jax.jit(_begin, static_argnums=0, out_shardings=where), None, []
        given = () if initial_params is None else (place(initial_params, self.layout),)
        for key, hparams in runs:
            keys = place(split_key(key), self.layout)
            arguments = (keys.init, as_rates(hparams), *given)
            program = program or programs.trace(self._start, *arguments)
            # Copied, since states are donated and these arrays may belong to the user.
            consts, arguments = jax.tree.map(jnp.copy, (program.consts, arguments))
            states.append((begin(program, consts, *arguments), (keys.cohorts, keys.training)))
        return states

    def run(
        self, state: Any, keys: Any, done: int, count: int
    ) -> tuple[Any, dict[str, np.ndarray], float]:
        """Runs `count` rounds after round `done`; the state is consumed.

        Returns:
          The state, infos `[count]`, and the seconds that the rounds took.
        """
        started = time.perf_counter()
        if self._compiling:
            concurrent.futures.wait(self._compiling)  # an error comes again, where it is handled
        state, infos = self._play(state, self.data, keys, done, count, self.capacity)
        infos = {name: np.asarray(info)[:count] for name, info in infos.items()}
        return state, infos, time.perf_counter() - started

    def _play(self, state, data, keys, done, count, capacity, drawn=None) -> tuple[Any, Any]:
        about = (keys, np.int32(done), np.int32(count), self._consts, drawn or self.drawn)
        return self._execute(_rounds, capacity, state, data, *about)

    def compile_beside(
        self,
        pool: concurrent.futures.Executor,
        key: jax.Array,
        hparams: Mapping[str, float],
        initial_params: Any = None,
    ) -> None:
        """Compiles the program of `run` in a thread, for which `run` waits; arguments as of `starts`.

        Only the compilation is done there, as JAX's settings of traces belong to the calling thread.
        """
        keys = place(split_key(key), self.layout)
        given = () if initial_params is None else (initial_params,)
        shapes = jax.eval_shape(self._start, keys.init, as_rates(hparams), *given)
        where = shardings(self.layout, self._specs)
        about = ((keys.cohorts, keys.training), np.int32(0), np.int32(0), self._consts, self.drawn)
        arguments = (_placed_shapes(shapes, where), self.data, *about)
        program = self._program(_rounds, self.capacity, *arguments)
        lowered = _run_block.lower(program, self.layout, program.consts, *arguments)
        self._compiling.append(pool.submit(lowered.compile))

    def _execute(self, rounds: Callable, capacity: int, *arguments: Any) -> tuple[Any, Any]:
        program = self._program(rounds, capacity, *arguments)
        return _run_block(program, self.layout, program.consts, *arguments)

    def _program(self, rounds: Callable, capacity: int, *arguments: Any) -> programs.Program:
        """Returns a block's program, which an algorithm made anew shares with its likes."""
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(arguments))
        if (rounds, capacity, shapes) not in self._programs:
            self._programs[rounds, capacity, shapes] = programs.trace_once(
                rounds,
                *arguments,
                round_fn=self.algorithm.round,
                draw=self.draws.program,
                layout=self.layout,
                capacity=capacity,
            )
        return self._programs[rounds, capacity, shapes]

    def run_stacked(
        self, states: Any, keys: Any, done: int, counts: np.ndarray
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Runs a block of many runs side by side; states, keys and results have a leading axis of runs.

        Args:
          states: the runs' states, see `stack`; consumed.
          keys: the runs' keys.
          done: rounds before the block.
          counts: `[runs]`, rounds of each run; a run of 0 rounds keeps its state.

        Returns:
          The states, and infos `[runs, capacity]`.
        """
        counts = np.asarray(counts, np.int32)
        about = (keys, np.int32(done), counts, np.int32(counts.max()), self._consts, self.drawn)
        states, infos = self._execute(_stacked_rounds, self.capacity, states, self.data, *about)
        return states, fetch(infos)

    def stack(self, states: list[Any], keys: list[Any]) -> tuple[Any, Any]:
        """Stacks the states and keys of many runs along a leading axis, which the mesh's parts share."""

        def stack(trees, specs):
            where = shardings(self.layout, of_runs(specs, self.layout))
            return jax.jit(_stack, out_shardings=where)(trees)

        return stack(states, self._specs), stack(keys, EVERYWHERE)

    def take(self, states: Any, i: int) -> Any:
        """Returns the state of run `i` from stacked states."""
        where = shardings(self.layout, self._specs)
        return jax.jit(_take, out_shardings=where)(states, i)

    def next_count(self, done: int, num_rounds: int) -> int:
        """Returns how many rounds after round `done` the next evaluation is."""
        return min(self.capacity - done % self.capacity, num_rounds - done)

    def message_bytes(self, state: Any) -> dict[str, int]:
        """Returns the size of one message of each kind that the algorithm sends."""
        return check_sizes(self.algorithm.message_bytes(client_memory.server_state(state)))

    def view(self, state: Any, round: int) -> View:
        """Returns the view of a run that is in this state after round `round`."""
        return view_of(self.algorithm, self.num_clients, self.layout, state, round)

    def without_errors(self, done: int, infos: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the infos of rounds after round `done` without the entries that report errors.

        Raises:
          ValueError: a round reported an error of the algorithm or of the sampler.
        """
        errors = dict(self.algorithm.errors) | dict(self.draws.sampler.errors)
        for name, message in errors.items():
            bad = np.flatnonzero(infos[name]) if name in infos else ()
            if len(bad):
                raise ValueError(f"round {done + 1 + int(bad[0])}: {message}")
        return {name: info for name, info in infos.items() if name not in errors}


class RunKeys(NamedTuple):
    """The PRNG keys of a run: for its initial state, cohorts and training."""

    init: jax.Array
    cohorts: jax.Array
    training: jax.Array


def split_key(key: jax.Array) -> RunKeys:
    """Splits a run's key into the keys of its parts."""
    return RunKeys(*jax.random.split(key, 3))


def _rounds(
    state, data, keys, first, count, consts, drawn=None, *, round_fn, draw, layout, capacity, trips=None
):
    """Runs `count` rounds from round `first`, at most `capacity`; infos are stacked, `[capacity]`.

    Cohorts are drawn by `draw`, with `consts`. If `drawn` is given, the data holds its clients alone,
    and every round trains them. If `trips` is given, so many rounds are executed; those beyond `count`
    change nothing.
    """
    cohort_key, train_key = keys

    @functools.partial(jax.jit, inline=True)  # traced once, for shapes and for the loop
    def one_round(r, state):
        now = drawn
        if now is None:
            key = jax.random.fold_in(cohort_key, r)
            now = draw.run(consts, key, r, sampler_state(state), data.sizes)
        cohort = dataclasses.replace(now.cohort, layout=layout)
        key = jax.random.fold_in(train_key, r)
        state, info = client_memory.play(round_fn, key, state, data, cohort)
        info = merged(now.info, info)
        check_info(info)
        state = with_sampler_state(state, now.state)
        finite = info["finite"] if "finite" in info else trees.all_finite(state.params)
        finite &= jnp.isfinite(info["train_loss"])
        return state, info | {"finite": finite}

    def step(i, carry):
        before, infos = carry
        state, info = one_round(first + i, before)
        if trips is not None:
            state = jax.tree.map(functools.partial(jnp.where, i < count), state, before)
        return state, jax.tree.map(lambda all_, new: all_.at[i].set(new), infos, info)

    _, shapes = jax.eval_shape(one_round, first, state)
    infos = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count if trips is None else trips, step, (state, infos))


def _begin(program: programs.Program, consts: list[Any], *arguments: Any) -> Any:
    return program.run(consts, *arguments)


def _stacked_rounds(states, data, keys, first, counts, trips, consts, drawn, **about):
    """Runs a block of many runs side by side, each for as many of `trips` rounds as `counts` says."""

    def run(state, data, keys, first, count):
        return _rounds(state, data, keys, first, count, consts, drawn, trips=trips, **about)

    # Sharding the run axis keeps the parts of the mesh independent.
    parts = RUNS if about["layout"].num_parts > 1 else None
    run = jax.vmap(run, in_axes=(0, None, 0, None, 0), spmd_axis_name=parts)
    return run(states, data, keys, first, counts)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _run_block(program: programs.Program, layout: Layout, consts: list[Any], state: Any, *more: Any):
    return program.run(consts, state, *more)


def _placed_shapes(shapes: Any, where: Any) -> Any:
    """Returns shapes with the shardings of which `where` is a prefix; None for the default device."""

    def placed(sharding, part):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
            ),
            part,
        )

    return placed(None, shapes) if where is None else jax.tree.map(placed, where, shapes)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _take(states: Any, i: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], states)
