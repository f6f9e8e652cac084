"""Many runs of one algorithm at once: every combination of hyper-parameters and seeds."""

import contextlib
import itertools
import numbers
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.base import Algorithm, Layout
from fedjax_sim.checks import check_count
from fedjax_sim.devices import default_layout
from fedjax_sim.lanes import place
from fedjax_sim.simulation.block import (
    Blocks,
    EvaluationFn,
    as_evaluators,
    check_data,
    check_layout,
    merge_hparams,
)
from fedjax_sim.simulation.compilations import CompilationCounter
from fedjax_sim.simulation.progress import Progress
from fedjax_sim.simulation.race import Race, Running, run_on_cores, run_stacked
from fedjax_sim.simulation.result import SweepResult
from fedjax_sim.simulation.simulate import cohort_size


def sweep(
    algorithm: Algorithm,
    data: Any,
    *,
    hparams: Mapping[str, Sequence[float]],
    seeds: Sequence[int] = (0,),
    num_rounds: int,
    client_fraction: float = 0.1,
    evaluate: EvaluationFn | Sequence[EvaluationFn] = (),
    eval_every: int = 1,
    stop_at: float | None = None,
    layout: Layout | None = None,
    stacked: bool | None = None,
    progress: bool = False,
) -> SweepResult:
    """Runs every combination of hyper-parameters and seeds, with one compilation for all of them.

    A run here is the run that `simulate` makes on the same layout with the same hyper-parameters and
    `key=jax.random.key(seed)`: the same rows, apart from the clock. One that diverges is frozen there
    and marked, and the others go on.

    On a CPU each core takes one run at a time and trains its clients alone, so that no core waits for
    another. On an accelerator the runs are one more axis of the compiled program: R runs of L lanes
    train R * L clients side by side.

    Args:
      algorithm: such as `fed_avg(...)`.
      data: a `FederatedData`, the same for all runs; each device holds all of it.
      hparams: name -> the values to try; what is not named keeps the algorithm's default.
      seeds: one run each, for every combination.
      num_rounds: `R`, for every run.
      client_fraction: `C`, see `simulate`.
      evaluate: see `simulate`. On a CPU it is called from several threads, which JAX's context managers
        do not reach; an evaluation made with `layout=Layout()` keeps to the core of its run.
      eval_every: rounds between evaluations.
      stop_at: the runs of a seed race for this "test_accuracy": all of them end at the first evaluation
        in which one has it, for then the best combination is known.
      layout: of ONE run; by default `default_layout()` on accelerators and for a run that is alone,
        one device for each of several runs on a CPU.
      stacked: whether runs are an axis of the program rather than spread over cores; by default on
        accelerators only.
      progress: shows a bar on a terminal, lines elsewhere.

    Returns:
      The runs, in the order of the combinations, seeds varying fastest.

    Raises:
      ValueError: a setting is out of its range, a grid is empty or holds a value twice.
      DivergenceError: a loss is not a finite number before any training.
    """
    evaluators = as_evaluators(evaluate, stop_at)
    combinations = check_sweep(
        algorithm,
        data,
        hparams=hparams,
        seeds=seeds,
        num_rounds=num_rounds,
        client_fraction=client_fraction,
        evaluate=evaluators,
        eval_every=eval_every,
        stop_at=stop_at,
    )
    if stacked is None:
        stacked = jax.default_backend() != "cpu"
    if layout is None:
        alone = stacked or len(combinations) == 1
        layout = default_layout(num_learners=algorithm.num_learners) if alone else Layout()
    check_layout(algorithm, layout)

    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        compiled = stack.enter_context(CompilationCounter())
        size = cohort_size(data.num_clients, client_fraction)
        blocks = Blocks(algorithm, place(data.in_memory(), layout), size, layout, int(eval_every))
        runs = [
            Running(values, seed, *blocks.start(jax.random.key(seed), values))
            for values, seed in combinations
        ]
        bar = stack.enter_context(Progress(num_rounds * len(runs))) if progress else None
        race = Race(blocks, evaluators, runs, int(num_rounds), stop_at, bar)
        (run_stacked if stacked else run_on_cores)(race)
        return SweepResult(
            tuple(race.finished(run) for run in runs),
            stop_at,
            time.perf_counter() - started,
            compiled.count,
            compiled.seconds,
        )


def check_sweep(
    algorithm: Algorithm,
    data: Any,
    *,
    hparams: Mapping[str, Sequence[float]],
    seeds: Sequence[int] = (0,),
    num_rounds: int,
    client_fraction: float = 0.1,
    evaluate: EvaluationFn | Sequence[EvaluationFn] = (),
    eval_every: int = 1,
    stop_at: float | None = None,
) -> list[tuple[dict[str, float], int]]:
    """Looks at everything that `sweep` would refuse, without running anything.

    Args: see `sweep`.

    Returns:
      The runs there would be: their hyper-parameters and seeds.

    Raises:
      ValueError: a setting is out of its range, a grid is empty or holds a value twice.
    """
    cohort_size(data.num_clients, client_fraction)
    as_evaluators(evaluate, stop_at)
    grids = [_check_grid(name, grid, numbers.Real) for name, grid in hparams.items()]
    seeds = _check_grid("seeds", seeds, numbers.Integral)
    strange = [seed for seed in seeds if not 0 <= seed < 2**32]
    if strange:
        raise ValueError(f"seeds holds {strange[0]}; wanted whole numbers from 0 to 2**32 - 1")
    num_rounds = check_count("num_rounds", num_rounds)
    check_count("eval_every", eval_every)
    check_data(algorithm, data, num_rounds)
    combinations = [
        merge_hparams(algorithm, dict(zip(hparams, values, strict=True)))
        for values in itertools.product(*grids)
    ]
    return [(values, seed) for values in combinations for seed in seeds]


def _check_grid(name: str, grid: Sequence[Any], kind: type) -> list[Any]:
    wanted = "whole numbers" if kind is numbers.Integral else "numbers"
    if isinstance(grid, str | bytes) or not np.iterable(grid):
        raise ValueError(f"{name} is {grid!r}; wanted a sequence of {wanted}")
    grid = grid.tolist() if hasattr(grid, "tolist") else list(grid)  # arrays become Python's numbers
    if not grid:
        raise ValueError(f"{name} is empty; wanted at least one value")
    strange = [v for v in grid if not isinstance(v, kind) or isinstance(v, bool)]
    if strange:
        raise ValueError(f"{name} holds {strange[0]!r}; wanted {wanted}")
    twice = [value for i, value in enumerate(grid) if value in grid[:i]]
    if twice:
        raise ValueError(f"{name} holds {twice[0]} twice; wanted each value once")
    return [int(value) if kind is numbers.Integral else float(value) for value in grid]
