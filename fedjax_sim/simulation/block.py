"""A block of rounds as one compiled program, and the row of metrics that it ends with."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import trees
from fedjax_sim.base import Algorithm, Cohort, Layout
from fedjax_sim.data.cohorts import sample_cohort
from fedjax_sim.lanes import place, shardings
from fedjax_sim.ledger import balance, check_counts, check_sizes

EvaluationFn = Callable[[Any], Mapping[str, float]]

_NO_TOTALS = ("train_loss", "finite")  # every other info adds up over rounds


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The rounds of an algorithm on some data, to be run in blocks.

    Attributes:
      algorithm: whose rounds.
      data: a `FederatedData`, placed on the layout's devices.
      cohort_size: `K`, clients of a round.
      layout: lanes and devices.
      capacity: the most rounds of a block.
    """

    algorithm: Algorithm
    data: Any
    cohort_size: int
    layout: Layout
    capacity: int

    def start(self, key: jax.Array, hparams: Mapping[str, float]) -> tuple[Any, Any]:
        """The state before the first round, and the keys of cohorts and training."""
        keys = split_key(key)
        rates = {name: np.float32(value) for name, value in hparams.items()}
        # Made where they are kept, so that learners' models never lie on one device together.
        where = shardings(self.layout, self.algorithm.specs)
        state = jax.jit(self.algorithm.init, out_shardings=where)(keys.init, rates)
        return state, place((keys.cohorts, keys.training), self.layout)

    def run(
        self, state: Any, keys: Any, done: int, count: int
    ) -> tuple[Any, dict[str, np.ndarray], float]:
        """`count` rounds after `done`; the state is consumed.

        Returns:
          The state, infos `[count]`, and the seconds that the rounds took.
        """
        started = time.perf_counter()
        state, infos = self._play(state, self.data, keys, done, count, self.capacity)
        infos = {name: np.asarray(info)[:count] for name, info in infos.items()}
        return state, infos, time.perf_counter() - started

    def _play(self, state, data, keys, done, count, capacity, ids=None) -> tuple[Any, Any]:
        return _run(
            state,
            data,
            keys,
            np.int32(done),
            np.int32(count),
            ids,
            round_fn=self.algorithm.round,
            size=self.cohort_size,
            layout=self.layout,
            capacity=capacity,
        )

    def run_stacked(
        self, states: Any, keys: Any, done: int, counts: np.ndarray
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Blocks of many runs side by side: every argument and result has a leading axis of runs.

        Args:
          states: the runs' states; consumed.
          keys: the runs' keys.
          done: rounds before the block.
          counts: `[runs]`, how many rounds of each; a run of none keeps its state.

        Returns:
          The states, and infos `[runs, capacity]`.
        """
        states, infos = _run_stacked(
            states,
            self.data,
            keys,
            np.int32(done),
            np.asarray(counts, np.int32),
            round_fn=self.algorithm.round,
            size=self.cohort_size,
            layout=self.layout,
            capacity=self.capacity,
        )
        return states, {name: np.asarray(info) for name, info in infos.items()}

    def next_count(self, done: int, num_rounds: int) -> int:
        """How many rounds bring a run that has done `done` to its next evaluation."""
        return min(self.capacity - done % self.capacity, num_rounds - done)

    def message_bytes(self, state: Any) -> dict[str, int]:
        """The size of a message of each kind that the algorithm sends."""
        return check_sizes(self.algorithm.message_bytes(state))

    def first_row(self, sizes: dict[str, int]) -> dict[str, Any]:
        """What is known before the first round, evaluation aside; `sizes` are the messages'."""
        counts = [f"{what}_{name}" for name in sizes for what in ("messages", "trips")]
        row = dict.fromkeys(("round", "examples", "slots", *counts), 0)
        return row | balance(row, sizes) | {"train_loss": None, "round_seconds": None}

    def next_row(
        self, before: dict, infos: dict[str, np.ndarray], sizes: dict[str, int]
    ) -> dict[str, Any]:
        """The row after a block of rounds; totals go on from the row `before`.

        Raises:
          ValueError: the rounds count other messages than `sizes` has.
        """
        check_counts(infos, sizes)
        totals = {
            name: before.get(name, 0) + _total(info)
            for name, info in infos.items()
            if name not in _NO_TOTALS
        }
        return {
            "round": before["round"] + len(infos["train_loss"]),
            "train_loss": _mean_loss(infos["train_loss"], infos["examples"]),
            **totals,
            **balance(totals, sizes),
        }


class RunKeys(NamedTuple):
    """PRNG keys of a run: of its start, its cohorts, its training."""

    init: jax.Array
    cohorts: jax.Array
    training: jax.Array


def split_key(key: jax.Array) -> RunKeys:
    """The keys that a run's key stands for."""
    return RunKeys(*jax.random.split(key, 3))


def first_bad_round(done: int, infos: dict[str, np.ndarray]) -> int | None:
    """The first round of a block after which a parameter or the loss is not a finite number."""
    bad = np.flatnonzero(~infos["finite"])
    return done + 1 + int(bad[0]) if bad.size else None


def as_evaluators(
    evaluate: EvaluationFn | Sequence[EvaluationFn], stop_at: float | None
) -> tuple[EvaluationFn, ...]:
    """The evaluations as a tuple.

    Raises:
      ValueError: the target accuracy is not a share, or there is nothing to compare it with.
    """
    evaluators = (evaluate,) if callable(evaluate) else tuple(evaluate)
    if stop_at is not None and not 0 < stop_at <= 1:
        raise ValueError(f"the target accuracy is {stop_at}; wanted a share in (0, 1]")
    if stop_at is not None and not evaluators:
        raise ValueError("a target accuracy needs an evaluation, such as accuracy(task, test)")
    return evaluators


def evaluate_into(
    row: dict[str, Any], evaluators: Sequence[EvaluationFn], params: Any, stop_at: float | None
) -> bool:
    """Adds what the evaluations say of `params` to a row.

    Returns:
      Whether all of the row is finite.

    Raises:
      ValueError: no evaluation gives the accuracy that `stop_at` is compared with.
    """
    for evaluation in evaluators:
        row |= {name: float(value) for name, value in evaluation(params).items()}
    if stop_at is not None and "test_accuracy" not in row:
        raise ValueError(
            f"a target accuracy needs an evaluation named test_accuracy; there are {list(row)}"
        )
    return all(value is None or math.isfinite(value) for value in row.values())


def merge_hparams(algorithm: Algorithm, given: Mapping[str, float]) -> dict[str, float]:
    """The algorithm's hyper-parameters with `given` in place of their defaults.

    Raises:
      ValueError: the algorithm does not have one, or it is out of its range.
    """
    defaults = algorithm.hparams
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"this algorithm has no hyper-parameter {', '.join(unknown)}; it has {', '.join(defaults)}"
        )
    merged = {name: float(value) for name, value in (dict(defaults) | dict(given)).items()}
    algorithm.check_hparams(merged)
    return merged


def check_data(algorithm: Algorithm, data: Any, num_rounds: int) -> None:
    """Refuses data without examples, in files that have shrunk, or not made for the algorithm.

    Raises:
      ValueError: it is one.
    """
    if int(data.offsets[-1]) == 0:
        raise ValueError("no client of the federation has any data; wanted at least one example")
    data.check_files()
    if algorithm.num_learners not in (None, data.num_clients):
        raise ValueError(
            f"the algorithm has {algorithm.num_learners} learners, the federation {data.num_clients} "
            "clients; wanted a client for each learner"
        )
    algorithm.check(data, num_rounds)


def check_layout(algorithm: Algorithm, layout: Layout) -> None:
    """Refuses devices that cannot share an algorithm's learners evenly.

    Raises:
      ValueError: they are such.
    """
    if algorithm.num_learners is not None and algorithm.num_learners % layout.num_devices:
        raise ValueError(
            f"{layout.num_devices} devices cannot share {algorithm.num_learners} learners evenly; "
            f"wanted such as default_layout(num_learners={algorithm.num_learners}) gives"
        )


def _mean_loss(losses: np.ndarray, examples: np.ndarray) -> float | None:
    """The mean over all examples of some rounds; None where nobody had any."""
    return float(np.average(losses, weights=examples)) if examples.any() else None


def _total(info: np.ndarray) -> int | float:
    """The sum over rounds, exact for counts."""
    whole = np.issubdtype(info.dtype, np.integer)
    return int(info.sum(dtype=np.int64)) if whole else float(info.sum(dtype=np.float64))


def _rounds(state, data, keys, first, count, ids=None, *, round_fn, size, layout, capacity):
    """`count` rounds from round `first`, at most `capacity`; infos are stacked, `[capacity]`.

    Where `ids` are given, `[K]`, the data holds these clients alone, and every round is theirs.
    """
    cohort_key, train_key = keys

    def one_round(r, state):
        if ids is None:
            drawn = sample_cohort(jax.random.fold_in(cohort_key, r), data.num_clients, size)
            cohort = Cohort(drawn, layout)
        else:
            cohort = Cohort(ids, layout, places=jnp.arange(size, dtype=jnp.int32))
        key = jax.random.fold_in(train_key, r)
        state, info = round_fn(key, state, data, cohort)
        finite = info["finite"] if "finite" in info else trees.all_finite(state.params)
        finite &= jnp.isfinite(info["train_loss"])
        return state, info | {"finite": finite}

    def step(i, carry):
        state, infos = carry
        state, info = one_round(first + i, state)
        return state, jax.tree.map(lambda all_, new: all_.at[i].set(new), infos, info)

    _, shapes = jax.eval_shape(one_round, first, state)
    infos = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, step, (state, infos))


_STATIC = ("round_fn", "size", "layout", "capacity")
_run = jax.jit(_rounds, static_argnames=_STATIC, donate_argnums=0)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnums=0)
def _run_stacked(states, data, keys, first, counts, **static):
    run = functools.partial(_rounds, **static)
    return jax.vmap(run, in_axes=(0, None, 0, None, 0))(states, data, keys, first, counts)
