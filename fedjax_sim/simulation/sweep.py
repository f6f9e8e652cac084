"""Many runs of one algorithm at once: every combination of hyper-parameters and seeds."""

import contextlib
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fedjax_sim.core.types import Algorithm, Layout
from fedjax_sim.participation import Sampler
from fedjax_sim.runtime import processes
from fedjax_sim.runtime.compilations import CompilationCounter, drop_programs_if_many
from fedjax_sim.runtime.devices import layout_for, with_fewer_parts
from fedjax_sim.runtime.errors import device_errors_explained
from fedjax_sim.simulation import client_memory
from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.block import Blocks
from fedjax_sim.simulation.cohorts import choose_sampler, cohort_draws
from fedjax_sim.simulation.identity import NOT_COMPARED, check_evaluations, identify
from fedjax_sim.simulation.interruption import Interruption
from fedjax_sim.simulation.journal import Journal
from fedjax_sim.simulation.progress import Progress
from fedjax_sim.simulation.result import SweepResult
from fedjax_sim.simulation.rows import evaluated_names
from fedjax_sim.simulation.sweep_grid import callbacks_of, check_sweep
from fedjax_sim.simulation.sweep_runner import RunState, SweepRunner, run_on_cores, run_stacked
from fedjax_sim.simulation.validation import (
    EvaluationFn,
    as_evaluators,
    as_rates,
    check_begins,
    check_counters,
    check_initial_params,
    check_layout,
)

# Least time between two checkpoints of a run; longer for many runs, which are saved one by one.
_CHECKPOINT_SECONDS = 10.0


class UnfinishedError(Exception):
    """A sweep that `go_on` stopped; its workdir holds all rounds done."""


def sweep(
    algorithm: Algorithm,
    data: Any,
    *,
    hparams: Mapping[str, Sequence[float]] | None = None,
    seeds: Sequence[int] = (0,),
    num_rounds: int,
    client_fraction: float | None = None,
    clients_per_round: int | None = None,
    cohorts: Sampler | None = None,
    evaluate: EvaluationFn | Sequence[EvaluationFn] = (),
    eval_every: int = 1,
    stop_at: float | None = None,
    layout: Layout | None = None,
    stacked: bool | None = None,
    workdir: str | pathlib.Path | None = None,
    go_on: Callable[[], bool] | None = None,
    initial_params: Any = None,
    allow_version_change: bool = False,
    progress: bool = False,
    callbacks: Callable[[Mapping[str, float], int], Sequence[Any]] | None = None,
) -> SweepResult:
    """Runs every combination of hyper-parameters and seeds, with one compilation for all of them.

    Each run is the same as that of `simulate` on the same layout with the same hyper-parameters and
    `key=jax.random.key(seed)`. A run that diverges is frozen and marked, and the others go on.

    On a CPU, each core takes one run at a time and trains its clients alone, so no core waits for
    another; rows and parameters equal those of `simulate` bit for bit. On an accelerator, the runs are
    one more axis of the compiled program: R runs of L lanes train R * L clients side by side. Such
    stacked programs add in another order, so their rows equal those of `simulate` up to rounding.

    Args:
      algorithm: algorithm to run, such as `fed_avg(...)`.
      data: a `FederatedData`, the same for all runs; each device holds all of it.
      hparams: name -> values to try; other hyper-parameters keep the algorithm's defaults, and by
        default all do.
      seeds: seeds of the runs, each combined with every setting of the hyper-parameters.
      num_rounds: `R`, number of rounds of every run.
      client_fraction: `C`, see `simulate`; likewise `clients_per_round` and `cohorts`.
      evaluate: see `simulate`. On a CPU, several threads call it, each for the runs of one core; JAX's
        context managers do not reach them.
      eval_every: rounds between evaluations.
      stop_at: "test_accuracy" for which the runs of a seed race: all of them end at the first evaluation
        in which one reaches it, since the best combination is then known.
      layout: lanes and devices. If its mesh has an axis "runs", each part takes a share of the runs. By
        default, `layout_for(algorithm, data, num_runs=...)` for stacked runs and for a single run; on a
        CPU, one device for each of several runs.
      stacked: whether runs are an axis of the program rather than spread over cores; by default on
        accelerators, if several runs share several devices, and with several processes.
      workdir: folder in which each run keeps its rows and checkpoints, in a folder named after it. A
        sweep that finds its own settings there continues every run from its last checkpoint, and ends as
        if never interrupted.
      go_on: function asked before each block of rounds, such as `lambda: time.monotonic() < end`. Once
        it returns False, no block begins, all runs are saved in the workdir, and `UnfinishedError` is
        raised.
      initial_params: parameters with which every run begins, see `simulate`.
      allow_version_change: see `simulate`.
      progress: whether to show a bar on a terminal and in a notebook, lines elsewhere.
      callbacks: function of hyper-parameters and seed that returns new callbacks for each run, see
        `simulate`; not with `stop_at`, by which rounds may be taken back. On a CPU, several threads call
        them.

    Returns:
      The runs, in the order of the combinations, with seeds varying fastest. Ctrl-C ends the sweep as
      it ends a run of `simulate`; the result then holds the rounds of the runs that have begun.

    Raises:
      ValueError: a setting is out of range, a grid is empty or repeats a value, runs share a callback,
        the data is malformed, a round is too long for its counters, or the workdir belongs to another
        sweep.
      DivergenceError: a loss is not finite before any training.
      UnfinishedError: `go_on` returned False; the same call continues the sweep.
    """
    if go_on is not None and workdir is None:
        raise ValueError("go_on is given without workdir; wanted a workdir, to keep the rounds done")
    if callbacks is not None and stop_at is not None:
        raise ValueError(
            "callbacks and stop_at are both given, but a sweep with stop_at may take back rounds that "
            "callbacks have seen; wanted one of them"
        )
    evaluators = as_evaluators(evaluate, stop_at)
    combinations = check_sweep(
        algorithm,
        data,
        hparams=hparams,
        seeds=seeds,
        num_rounds=num_rounds,
        client_fraction=client_fraction,
        clients_per_round=clients_per_round,
        cohorts=cohorts,
        evaluate=evaluators,
        eval_every=eval_every,
        stop_at=stop_at,
    )
    # Programs of several devices wait for each other, so several threads must not run them.
    together = layout is not None and not layout.is_single and len(combinations) > 1
    together |= processes.is_multiprocess()
    if stacked is None:
        stacked = jax.default_backend() != "cpu" or together
    elif not stacked and together:
        raise ValueError(
            "stacked is False, but several runs can share devices or processes only as an axis of "
            "the program; leave stacked out, or give layout=Layout()"
        )
    if layout is None:
        alone = stacked or len(combinations) == 1
        layout = layout_for(algorithm, data, num_runs=len(combinations)) if alone else Layout()
    layout = with_fewer_parts(layout, len(combinations))
    check_layout(algorithm, layout)
    cohorts = choose_sampler(algorithm, client_fraction, clients_per_round, cohorts)
    draws = cohort_draws(cohorts, data, jax.random.key(0))
    algorithm = draws.extended(algorithm)
    check_counters(algorithm, draws, layout)
    rates = as_rates(combinations[0][0])
    # Stacked runs lie there as they begin, side by side, and each by itself when it is judged; others as
    # they are and, in a race, as they were.
    copies = len(combinations) * (3 if stacked else 2)
    client_memory.check_room(algorithm, data.num_clients, rates, layout, copies)
    check_initial_params(algorithm, combinations[0][0], initial_params)
    of_runs = callbacks_of(callbacks, combinations)
    num_rounds = int(num_rounds)
    home = None if workdir is None else pathlib.Path(workdir)
    settings = {
        "runs": [_name(*combination) for combination in combinations],
        "num_rounds": num_rounds,
        **cohorts.settings,
        "eval_every": int(eval_every),
        "target_accuracy": stop_at,
        "lanes": layout.lanes,
        "stacked": stacked,
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }
    settings |= dict(algorithm.settings)

    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        runs_here = -(-len(combinations) // layout.num_parts) if stacked else 1
        stack.enter_context(device_errors_explained(algorithm, data, layout, runs_here))
        if home is not None or processes.is_multiprocess():
            settings["data_digest"] = data.digest()
            first, _ = combinations[0]
            settings |= identify(algorithm, data, draws, first, evaluators, initial_params)
        here = {"workdir": home is not None, "num_evaluations": len(evaluators)}
        here["num_callbacks"] = [len(each.all) for each in of_runs]
        processes.agree(settings | here | layout.describe())
        if home is not None:
            claim = stack.enter_context(
                files.claimed(
                    home,
                    settings,
                    not_compared=NOT_COMPARED,
                    allow_version_change=allow_version_change,
                )
            )
        drop_programs_if_many()
        compiled = stack.enter_context(CompilationCounter())
        capacity = min(int(eval_every), num_rounds)
        blocks = Blocks.on_devices(algorithm, data, draws, layout, capacity)
        starts = blocks.starts(
            [(jax.random.key(seed), values) for values, seed in combinations], initial_params
        )
        check_begins(starts[0][0].params, initial_params)
        runs = [
            RunState(*combination, *start)
            for combination, start in zip(combinations, starts, strict=True)
        ]
        if home is not None:
            for run in runs:
                run.keep_in(stack.enter_context(_journal(home, run, len(runs))))
            _check_done(runs, num_rounds, home)
            sizes = blocks.message_bytes(runs[0].state)
            for run, (start, _) in zip(runs, starts, strict=True):
                if run.rows and not claim.evaluations_known:
                    names = evaluated_names(run.rows[0], sizes)
                    check_evaluations(evaluators, run.rows[0], blocks.view(start, 0), home, names)
            files.confirm(home, claim)
        for run, each in zip(runs, of_runs, strict=True):
            run.callbacks = stack.enter_context(each)
            folder = None if home is None else home / _name(run.hparams, run.seed)
            run.stopped = each.start(blocks.view(run.state, run.done), run.rows, folder)
        total, done = num_rounds * len(runs), sum(run.done for run in runs)
        bar = stack.enter_context(Progress(total, done)) if progress and processes.is_first() else None
        interruption = stack.enter_context(Interruption())
        go_on = _agreed(go_on, interruption)
        runner = SweepRunner(blocks, evaluators, runs, num_rounds, stop_at, bar, go_on)
        (run_stacked if stacked else run_on_cores)(runner)
        runner.keep(last=True)
        is_open = any(map(runner.is_open, runs))
        begun = [runner.finished(run) for run in runs if run.rows]
        done = f"{sum(run.done for run in runs)} of at most {total} rounds are done"
        if is_open and not (interruption.requested and begun):
            if interruption.requested:
                raise KeyboardInterrupt
            raise UnfinishedError(f"{done}; repeat the sweep to continue from {home}")
        if is_open:
            left = "" if home is None else f"; repeat the sweep to continue from {home}"
            warnings.warn(
                f"interrupted: {done}, and {len(begun)} of {len(runs)} runs have begun{left}",
                stacklevel=2,
            )
        return SweepResult(
            tuple(begun),
            stop_at,
            time.perf_counter() - started,
            compiled.count,
            compiled.seconds,
            interrupted=is_open,
        )


def _check_done(runs: Sequence[RunState], num_rounds: int, home: pathlib.Path) -> None:
    """Refuses fewer rounds than a sweep has done.

    Raises:
      ValueError: a run has done more than `num_rounds` rounds.
    """
    done = max(run.done for run in runs)
    if done > num_rounds:
        raise ValueError(
            f"num_rounds is {num_rounds}, but the sweep in {home} has done {done} rounds; wanted at "
            "least as many, or another workdir"
        )


def _agreed(go_on: Callable[[], bool] | None, interruption: Interruption) -> Callable[[], bool]:
    """Makes `go_on` answer alike in all processes, since their clocks differ; no after Ctrl-C."""
    if go_on is None:
        return lambda: not interruption.requested
    return lambda: not interruption.requested and bool(processes.on_first_process(lambda: bool(go_on())))


def _journal(home: pathlib.Path, run: RunState, num_runs: int) -> Journal:
    """Opens the journal of a run."""
    folder = home / _name(run.hparams, run.seed)
    return Journal(folder, run.state, _CHECKPOINT_SECONDS * max(1, num_runs / 10), at_once=False)


def _name(hparams: Mapping[str, float], seed: int) -> str:
    return ",".join(f"{name}={value}" for name, value in (dict(hparams) | {"seed": seed}).items())
