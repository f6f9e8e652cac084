"""The runs of a sweep, side by side: spread over CPU cores, or as one more axis of the program."""

import concurrent.futures
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.runtime.devices import available_cores
from fedjax_sim.simulation.block import Blocks
from fedjax_sim.simulation.callbacks import Callbacks
from fedjax_sim.simulation.divergence import divergence
from fedjax_sim.simulation.journal import Journal
from fedjax_sim.simulation.progress import Progress, measures_text
from fedjax_sim.simulation.result import SweepRun
from fedjax_sim.simulation.rows import evaluate_into, first_bad_round, first_row, next_row
from fedjax_sim.simulation.validation import EvaluationFn


@dataclasses.dataclass(eq=False)
class RunState:
    """The current state of one run.

    Attributes:
      hparams: name -> value.
      seed: seed of its key.
      state: the algorithm's state after the last row.
      keys: keys of cohorts and of training.
      rows: one dict per evaluation.
      before: the state one block earlier, kept if a race may take a block back.
      diverged: round in which the run diverged, or None.
      seconds: its share of the time so far.
      busy: whether a core is running its next block.
      journal: journal of its final rows, or None.
      callbacks: its callbacks, which have begun.
      stopped: whether one of them has ended it.
    """

    hparams: Mapping[str, float]
    seed: int
    state: Any
    keys: Any
    rows: list[dict] = dataclasses.field(default_factory=list)
    before: Any = None
    diverged: int | None = None
    seconds: float = 0.0
    busy: bool = False
    journal: Journal | None = None
    callbacks: Callbacks = dataclasses.field(default_factory=Callbacks)
    stopped: bool = False

    @property
    def done(self) -> int:
        return self.rows[-1]["round"] if self.rows else 0

    def keep_in(self, journal: Journal) -> None:
        """Continues from a journal, and is recorded there from now on."""
        self.journal, self.state, self.rows = journal, journal.state, list(journal.rows)
        if not self.rows:
            return
        if self.rows[-1].get("diverged") is True:
            self.diverged = self.rows.pop()["round"]
        self.seconds = self.rows[-1]["seconds"]
        # Recorded rows are never taken back, unless another machine rounds differently; then this is the
        # earliest state there is.
        self.before = self.state


class SweepRunner:
    """State that all runs of a sweep share: blocks, evaluations, and the end of each seed's race."""

    def __init__(
        self,
        blocks: Blocks,
        evaluators: Sequence[EvaluationFn],
        runs: list[RunState],
        num_rounds: int,
        stop_at: float | None,
        bar: Progress | None,
        go_on: Callable[[], bool],
    ):
        self.blocks, self.runs, self.num_rounds = blocks, runs, num_rounds
        self.go_on = go_on
        self._evaluators, self._stop_at, self._bar = evaluators, stop_at, bar
        self._sizes = blocks.message_bytes(runs[0].state)
        self._end = dict.fromkeys((run.seed for run in runs), math.inf)  # in rows
        self._best: tuple[float, RunState] | None = None  # the highest test accuracy so far
        for run in runs:
            self._look_for_end(run)
            for row in run.rows:
                self._look_for_best(run, row)

    def is_open(self, run: RunState) -> bool:
        """Returns whether a run may go on: it has rounds left, and neither it nor its race has ended."""
        going = not run.stopped and (not run.rows or run.done < self.num_rounds)
        return going and run.diverged is None and len(run.rows) < self._end[run.seed]

    def next_run(self) -> RunState | None:
        """Returns the idle open run that is farthest behind, unless it would get too far ahead.

        Waiting for all runs at every evaluation would leave cores idle. A run may therefore be one block
        ahead of the slowest of its seed, and drops that block if the race turns out to end before it.
        With `<` in place of `<=` below, runs wait: 12 blocks of 3, 5 and 7 rates of one seed took 1.57,
        1.33 and 1.19 times as long (2NN, E = 5, B = 10, `mnist5k`; two cores of an Intel Xeon, jax
        0.10.2, 2026-11-27).
        """
        open_runs = [run for run in self.runs if self.is_open(run)]
        ready = [run for run in open_runs if not run.busy]
        ends = self._earliest_ends()
        ready = [run for run in ready if len(run.rows) <= ends[run.seed]]
        return min(ready, key=lambda run: len(run.rows), default=None)

    def _earliest_ends(self) -> dict[int, float]:
        """Returns each seed's earliest end in rows: n + 1 while its slowest run has n rows."""
        ends = dict(self._end)
        if self._stop_at is not None:
            for run in filter(self.is_open, self.runs):
                ends[run.seed] = min(ends[run.seed], len(run.rows) + 1)
        return ends

    def _look_for_end(self, run: RunState) -> None:
        if self._stop_at is None or not run.rows:
            return
        if run.rows[-1]["test_accuracy"] >= self._stop_at:
            self._end[run.seed] = min(self._end[run.seed], len(run.rows))

    def advance(self, run: RunState) -> tuple[Any, dict | None, int | None]:
        """Runs a run's next block; returns its state, its row, and the round in which it diverged."""
        started = time.perf_counter()
        if not run.rows:
            return run.state, *self.judge(run, None, run.state, 0.0)
        if self._stop_at is not None:
            run.before = jax.tree.map(jnp.copy, run.state)
        count = self.blocks.next_count(run.done, self.num_rounds)
        state, infos, _ = self.blocks.run(run.state, run.keys, run.done, count)
        return state, *self.judge(run, infos, state, time.perf_counter() - started)

    def judge(
        self, run: RunState, infos: Any, state: Any, seconds: float
    ) -> tuple[dict | None, int | None]:
        """Returns the row after a block of `seconds`, or None and the round in which it diverged."""
        if infos is None:
            row = first_row(self._sizes)
        else:
            infos = self.blocks.without_errors(run.done, infos)
            bad = first_bad_round(run.done, infos)
            if bad is not None:
                return None, bad
            row = next_row(run.rows[-1], infos, self._sizes)
            row["round_seconds"] = round(seconds / len(infos["train_loss"]), 6)
        judged = time.perf_counter()
        view = self.blocks.view(state, row["round"])
        finite = evaluate_into(row, self._evaluators, view, self._stop_at)
        if not finite and infos is None:
            raise divergence(0, run.hparams, None)
        run.seconds += seconds + time.perf_counter() - judged
        row["seconds"] = round(run.seconds, 6)
        if not finite:
            return None, row["round"]
        run.stopped = run.callbacks.evaluated(view, row)
        return row, None

    def commit(self, run: RunState, state: Any, row: dict | None, diverged: int | None) -> None:
        """Stores what `advance` or `judge` returned; only one thread at a time may call it."""
        run.state = state
        if row is None:
            run.diverged = diverged
        else:
            run.rows.append(row)
            self._look_for_end(run)
            self._look_for_best(run, row)
        self.keep()
        if self._bar is not None:
            done = sum(r.done if self.is_open(r) else self.num_rounds for r in self.runs)
            self._bar.update(done, self._best_text(run), last=not any(map(self.is_open, self.runs)))

    def _look_for_best(self, run: RunState, row: dict) -> None:
        accuracy = row.get("test_accuracy")
        if accuracy is not None and (self._best is None or accuracy > self._best[0]):
            self._best = accuracy, run

    def _best_text(self, run: RunState) -> str:
        """Returns the best run so far in a few words; without accuracies, the measures of `run`."""
        if self._best is None:
            return measures_text(run.rows[-1])
        accuracy, best = self._best
        varied = [name for name in best.hparams if len({r.hparams[name] for r in self.runs}) > 1]
        told = [*(f"{name}={best.hparams[name]:g}" for name in varied), f"seed={best.seed}"]
        return f"best test_accuracy {accuracy:.4f} of {', '.join(told)}"

    def keep(self, *, last: bool = False) -> None:
        """Records what no end of a race can take back; the last time, the states as well."""
        if self.runs[0].journal is None:
            return
        ends = self._earliest_ends()
        for run in self.runs:
            sure = _until(run, ends[run.seed])
            ended = [] if sure.diverged is None else [{"round": sure.diverged, "diverged": True}]
            new = [*sure.rows, *ended][len(run.journal.rows) :]
            if new:  # at most one, and never of a busy run, since its state is gone
                run.journal.record(new[0], sure.state, last=not self.is_open(run))
            if last:
                run.journal.save(sure.state)

    def finished(self, run: RunState) -> SweepRun:
        """Returns a run without the blocks after the end of its race."""
        return _until(run, self._end[run.seed])


def _until(run: RunState, end: float) -> SweepRun:
    """Returns a run as it was with at most `end` rows."""
    rows, state, diverged = run.rows, run.state, run.diverged
    if len(rows) > end:
        rows, state = rows[:end], run.before
    elif len(rows) == end and diverged is not None:  # in the block after the end
        state, diverged = run.before, None
    return SweepRun(run.hparams, run.seed, rows, state, diverged)


def run_on_cores(runner: SweepRunner) -> None:
    """Runs a sweep on all cores: each core takes a run, advances it by one block and takes the next.

    Compiled programs release Python's lock, and several executions can share one CPU device, so threads
    are enough and one compilation serves them all.
    """
    first = runner.next_run()
    if first is None or not runner.go_on():
        return
    # Off the clock: these two calls compile for all runs.
    first.state, *_ = runner.blocks.run(first.state, first.keys, 0, 0)
    runner.commit(first, *runner.advance(first))
    turn, stop = threading.Condition(), threading.Event()

    def take() -> RunState | None:
        with turn:
            while not stop.is_set() and any(map(runner.is_open, runner.runs)):
                run = runner.next_run()
                if run is not None and not runner.go_on():
                    halt()
                    return None
                if run is not None:
                    run.busy = True
                    return run
                turn.wait()
            return None

    def work() -> None:
        try:
            while (run := take()) is not None:
                outcome = runner.advance(run)
                with turn:
                    runner.commit(run, *outcome)
                    run.busy = False
                    turn.notify_all()
        except BaseException:
            halt()
            raise

    def halt() -> None:
        stop.set()
        with turn:
            turn.notify_all()

    workers = min(available_cores(), len(runner.runs))
    with concurrent.futures.ThreadPoolExecutor(workers, "sweep") as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:  # also when the user interrupts: the other cores finish their block
            halt()
            raise


def run_stacked(runner: SweepRunner) -> None:
    """Advances all runs together, as one more axis of the program; ended runs stay as they are.

    Runs that a kill during saving left ahead wait until the others catch up.
    """
    for run in runner.runs:
        if not run.rows:
            if not runner.go_on():
                return
            runner.commit(run, *runner.advance(run))
    # The parts of a mesh need equally many runs; idle copies of the first run fill them up.
    stacked = runner.runs + runner.runs[:1] * (-len(runner.runs) % runner.blocks.layout.num_parts)
    states = None
    while (slowest := runner.next_run()) and runner.go_on():
        if states is None:
            states, keys = runner.blocks.stack(
                [run.state for run in stacked], [run.keys for run in stacked]
            )
            states, _ = runner.blocks.run_stacked(states, keys, 0, np.zeros(len(stacked)))  # compiles
        started = time.perf_counter()
        done = slowest.done
        going = [i for i, run in enumerate(runner.runs) if runner.is_open(run) and run.done == done]
        count = runner.blocks.next_count(done, runner.num_rounds)
        counts = np.zeros(len(stacked))
        counts[going] = count
        states, infos = runner.blocks.run_stacked(states, keys, done, counts)
        share = (time.perf_counter() - started) / len(going)
        for i in going:
            run, state = runner.runs[i], runner.blocks.take(states, i)
            own = {name: info[i, :count] for name, info in infos.items()}
            runner.commit(run, state, *runner.judge(run, own, state, share))
