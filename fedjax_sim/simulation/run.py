"""One run: its arguments, and the loop over its blocks of rounds."""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Algorithm, Layout
from fedjax_sim.participation import Sampler
from fedjax_sim.runtime.compilations import CompilationCounter, drop_programs_if_many
from fedjax_sim.runtime.devices import layout_for
from fedjax_sim.runtime.errors import device_errors_explained
from fedjax_sim.runtime.processes import agree, is_first, is_multiprocess
from fedjax_sim.simulation import client_memory
from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.block import Blocks, split_key
from fedjax_sim.simulation.callbacks import Callbacks
from fedjax_sim.simulation.client_memory import WithMemory
from fedjax_sim.simulation.cohorts import cohort_draws
from fedjax_sim.simulation.divergence import divergence
from fedjax_sim.simulation.host_memory import HostMemory
from fedjax_sim.simulation.host_rounds import CohortPrefetcher, HostBlocks, stays_on_host
from fedjax_sim.simulation.identity import NOT_COMPARED, check_config, check_evaluations, identify
from fedjax_sim.simulation.interruption import Interruption
from fedjax_sim.simulation.journal import Journal, is_new, memory_file
from fedjax_sim.simulation.progress import Progress, measures_text
from fedjax_sim.simulation.result import Result
from fedjax_sim.simulation.rows import (
    evaluate_into,
    evaluated_names,
    first_bad_round,
    first_row,
    next_row,
)
from fedjax_sim.simulation.validation import (
    EvaluationFn,
    as_rates,
    check_begins,
    check_cohort,
    check_counters,
    check_data,
    check_initial_params,
    check_layout,
    check_one_run,
)
from fedjax_sim.simulation.view import is_of_view


@dataclasses.dataclass(frozen=True)
class Run:
    """The arguments of `simulate`, see there, apart from the number of rounds.

    Attributes:
      cohorts: sampler of each round's clients.
      evaluators: evaluations after each block.
      hparams: name -> value, for all the algorithm's hyper-parameters.
      home: workdir, or None.
    """

    algorithm: Algorithm
    data: Any
    _: dataclasses.KW_ONLY
    key: jax.Array
    cohorts: Sampler
    evaluators: tuple[EvaluationFn, ...]
    eval_every: int
    stop_at: float | None
    hparams: Mapping[str, float]
    layout: Layout | None
    data_placement: str
    home: pathlib.Path | None
    config: Mapping[str, Any]
    checkpoint_seconds: float
    initial_params: Any
    allow_version_change: bool
    progress: bool
    callbacks: Callbacks

    def until(self, num_rounds: int, before: Result | None = None) -> Result:
        """Runs until `num_rounds` rounds are done; for errors see `simulate`.

        Args:
          num_rounds: `R`.
          before: result of this run from which to continue, unless there is a workdir; it stays usable.
        """
        data, hparams, home = self.data, self.hparams, self.home
        check_data(self.algorithm, data, num_rounds)
        draws = cohort_draws(self.cohorts, data, self.key)
        check_cohort(self.algorithm, draws.shapes.cohort)
        algorithm = draws.extended(self.algorithm)
        check_initial_params(algorithm, hparams, self.initial_params)
        layout = self.layout or layout_for(algorithm, data)
        check_layout(algorithm, layout)
        check_counters(algorithm, draws, layout)
        check_one_run(algorithm.num_learners or draws.size, layout)
        rates = as_rates(hparams)
        on_host = stays_on_host(self.data_placement, algorithm, data, layout, rates)
        memory_path = None if home is None or not is_first() else memory_file(home)
        if on_host:
            visits = num_rounds * draws.size
            client_memory.check_disk(algorithm, data.num_clients, rates, visits, memory_path)
        else:
            client_memory.check_room(algorithm, data.num_clients, rates, layout)
        check_config(self.config)
        capacity = min(self.eval_every, num_rounds)
        settings = self._settings(num_rounds, layout)

        with contextlib.ExitStack() as stack:
            stack.enter_context(device_errors_explained(algorithm, data, layout))
            if home is not None or is_multiprocess():
                settings["data_digest"] = data.digest()
                settings |= identify(
                    algorithm, data, draws, hparams, self.evaluators, self.initial_params
                )
            here = {"workdir": home is not None, "on_host": on_host}
            here |= {"num_evaluations": len(self.evaluators), "num_callbacks": len(self.callbacks.all)}
            agree(settings | here | layout.describe())
            if home is not None:
                claim = stack.enter_context(
                    files.claimed(
                        home,
                        settings,
                        not_compared=NOT_COMPARED,
                        allow_version_change=self.allow_version_change,
                    )
                )
            drop_programs_if_many()
            compiled = stack.enter_context(CompilationCounter())
            if on_host:
                feed = CohortPrefetcher(data, split_key(self.key).cohorts, draws, layout, num_rounds)
                blocks = HostBlocks(
                    algorithm,
                    stack.enter_context(feed),
                    draws,
                    layout,
                    capacity,
                    memory_path=memory_path,
                )
            else:
                blocks = Blocks.on_devices(algorithm, data, draws, layout, capacity)
                # The first evaluation goes on meanwhile. It was measured on CPUs alone, and several
                # processes would have to agree on it.
                if jax.default_backend() == "cpu" and not is_multiprocess() and is_new(home):
                    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
                    blocks.compile_beside(pool, self.key, hparams, self.initial_params)
            ((start, keys),) = blocks.starts([(self.key, hparams)], self.initial_params)
            check_begins(start.params, self.initial_params)
            journal = stack.enter_context(Journal(home, start, self.checkpoint_seconds))
            if before is not None and home is None:
                journal.rows = list(before.rows)
                journal.state = start = _copied(before.state, start)  # frees the first state
            if home is not None:
                self._check_journal(journal, blocks, start, num_rounds, claim)
                files.confirm(home, claim)
            ended_by = self._play(stack, blocks, journal, start, keys, num_rounds)
            return Result(
                journal.state,
                journal.rows,
                self.stop_at,
                layout,
                compiled.count,
                compiled.seconds,
                *((feed.gather_seconds, feed.waited_seconds) if on_host else ()),
                ended_by=ended_by,
                _run=self,
            )

    def _settings(self, num_rounds: int, layout: Layout) -> dict[str, Any]:
        settings = {
            "num_rounds": num_rounds,
            **self.cohorts.settings,
            "eval_every": self.eval_every,
            "target_accuracy": self.stop_at,
            "lanes": layout.lanes,
            "matmul_precision": jax.config.jax_default_matmul_precision,
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
        }
        # The run's own settings come last, so that no name in `config` hides one.
        return dict(self.config) | settings | dict(self.hparams) | dict(self.algorithm.settings)

    def _check_journal(
        self, journal: Journal, blocks: Blocks, start: Any, num_rounds: int, claim: files.Claim
    ) -> None:
        """Refuses to continue what a workdir holds with fewer rounds, or with other evaluations."""
        if not journal.rows:
            return
        done = journal.rows[-1]["round"]
        if done > num_rounds:
            raise ValueError(
                f"num_rounds is {num_rounds}, but the run in {self.home} has done {done} rounds; wanted "
                "at least as many, or another workdir"
            )
        if claim.evaluations_known:
            return
        # Clients' memory on the host is that of the last row by now, so no view shows the first.
        is_late = isinstance(blocks, HostBlocks) and blocks.algorithm.memory is not None
        first = [e for e in self.evaluators if not (is_late and is_of_view(e))]
        names = evaluated_names(journal.rows[0], blocks.message_bytes(start))
        known = names if len(first) == len(self.evaluators) else ()
        check_evaluations(first, journal.rows[0], blocks.view(start, 0), self.home, known)
        last = (journal.rows[-1], blocks.view(journal.state, done))
        check_evaluations(self.evaluators, *last, self.home, names)

    def _play(
        self,
        stack: contextlib.ExitStack,
        blocks: Blocks,
        journal: Journal,
        start: Any,
        keys: Any,
        num_rounds: int,
    ) -> str:
        """Runs the blocks that are left, and returns what ended the run, see `Result.ended_by`."""
        sizes, hparams = blocks.message_bytes(start), self.hparams
        done = journal.rows[-1]["round"] if journal.rows else 0
        bar = None
        if self.progress and is_first():
            bar = stack.enter_context(Progress(num_rounds, done))
        stack.enter_context(self.callbacks)
        stopped = self.callbacks.start(blocks.view(journal.state, done), journal.rows, self.home)
        interruption = stack.enter_context(Interruption())
        earlier = journal.rows[-1]["seconds"] if journal.rows else 0.0
        started = time.perf_counter()

        def end(row: dict) -> str | None:
            if self.is_reached(row):
                return "stop_at"
            if stopped:
                return "callback"
            if row["round"] == num_rounds:
                return "num_rounds"
            return "interrupt" if interruption.requested else None

        def conclude(row: dict, state: Any) -> None:
            nonlocal stopped
            view = blocks.view(state, row["round"])
            if not evaluate_into(row, self.evaluators, view, self.stop_at):
                raise divergence(row["round"], hparams, journal.saved_round)
            row["seconds"] = round(earlier + time.perf_counter() - started, 6)
            stopped = self.callbacks.evaluated(view, row)
            is_last = end(row) is not None
            journal.record(row, state, last=is_last)
            if bar is not None:
                bar.update(row["round"], measures_text(row), last=is_last)

        if not journal.rows:
            conclude(first_row(sizes), start)
        if end(journal.rows[-1]) is None:
            # An empty block compiles the program, so that other blocks are timed without compilation.
            journal.state, *_ = blocks.run(journal.state, keys, 0, 0)
        while (ended_by := end(journal.rows[-1])) is None:
            before = journal.rows[-1]
            count = blocks.next_count(before["round"], num_rounds)
            state, infos, seconds = blocks.run(journal.state, keys, before["round"], count)
            infos = blocks.without_errors(before["round"], infos)
            bad = first_bad_round(before["round"], infos)
            if bad is not None:
                raise divergence(bad, hparams, journal.saved_round)
            row = next_row(before, infos, sizes)
            row["round_seconds"] = round(seconds / count, 6)
            conclude(row, state)
        if ended_by == "interrupt":
            journal.save(journal.state)  # a signal may have come after the last row was recorded
            warnings.warn(
                f"interrupted: the run stopped after round {journal.rows[-1]['round']} of {num_rounds}. "
                + (
                    "Its result has extend(), which continues it."
                    if self.home is None
                    else f"Repeat it with the workdir {self.home} to continue it."
                ),
                stacklevel=4,
            )
        return ended_by

    def extended(self, result: Result, num_rounds: int) -> Result:
        """Continues a result, see `Result.extend`."""
        last = result.rows[-1]
        if result.ended_by in ("stop_at", "callback"):
            why = f"stop_at={self.stop_at} was reached"
            why = why if result.ended_by == "stop_at" else "a callback ended it"
            raise ValueError(
                f"the run is over since round {last['round']}, where {why}; to go on, simulate without "
                "what ended it"
            )
        return self.until(last["round"] + num_rounds, result)

    def is_reached(self, row: Mapping[str, Any]) -> bool:
        """Returns whether a row reaches the target that ends the run."""
        return self.stop_at is not None and row["test_accuracy"] >= self.stop_at


def _copied(state: Any, start: Any) -> Any:
    """Copies the state of a finished run, since rounds consume their state.

    Args:
      state: the state.
      start: state of the same run at its start, which may receive clients' memory on the host.
    """
    if not (isinstance(state, WithMemory) and isinstance(state.clients, HostMemory)):
        return jax.tree.map(jnp.copy, state)
    start.clients.store.copy_from(state.clients.store)
    return start._replace(server=jax.tree.map(jnp.copy, state.server))
