"""The runs of a sweep: the checks of its grids, and the callbacks of each run."""

import itertools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Algorithm, Layout
from fedjax_sim.participation import Sampler
from fedjax_sim.simulation.callbacks import Callbacks
from fedjax_sim.simulation.cohorts import choose_sampler, cohort_draws
from fedjax_sim.simulation.validation import (
    EvaluationFn,
    as_evaluators,
    check_cohort,
    check_counters,
    check_data,
    check_kinds,
    merge_hparams,
)


def check_sweep(
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
) -> list[tuple[dict[str, float], int]]:
    """Refuses what `sweep` would refuse, without running anything.

    Args: see `sweep`.

    Returns:
      The hyper-parameters and the seed of each run.

    Raises:
      ValueError: an argument is of another kind, a setting is out of range, or a grid is empty or
        repeats a value.
    """
    check_kinds(algorithm, data)
    cohorts = choose_sampler(algorithm, client_fraction, clients_per_round, cohorts)
    as_evaluators(evaluate, stop_at)
    hparams = hparams or {}
    grids = [_check_grid(name, grid, numbers.Real) for name, grid in hparams.items()]
    seeds = _check_grid("seeds", seeds, numbers.Integral)
    strange = [seed for seed in seeds if not 0 <= seed < 2**32]
    if strange:
        raise ValueError(f"seeds holds {strange[0]}; wanted whole numbers from 0 to 2**32 - 1")
    num_rounds = check_count("num_rounds", num_rounds)
    check_count("eval_every", eval_every)
    check_data(algorithm, data, num_rounds)
    draws = cohort_draws(cohorts, data, jax.random.key(0))
    check_cohort(algorithm, draws.shapes.cohort)
    check_counters(algorithm, draws, Layout())
    combinations = [
        merge_hparams(algorithm, dict(zip(hparams, values, strict=True)))
        for values in itertools.product(*grids)
    ]
    return [(values, seed) for values in combinations for seed in seeds]


def _check_grid(name: str, grid: Sequence[Any], kind: type) -> list[Any]:
    wanted = "whole numbers" if kind is numbers.Integral else "numbers"
    if isinstance(grid, str | bytes) or not np.iterable(grid):
        raise ValueError(f"{name} is {grid!r}; wanted a sequence of {wanted}")
    grid = grid.tolist() if hasattr(grid, "tolist") else list(grid)  # arrays become Python numbers
    if not grid:
        raise ValueError(f"{name} is empty; wanted at least one value")
    strange = [v for v in grid if not isinstance(v, kind) or isinstance(v, bool)]
    if strange:
        raise ValueError(f"{name} holds {strange[0]!r}; wanted {wanted}")
    twice = [value for i, value in enumerate(grid) if value in grid[:i]]
    if twice:
        raise ValueError(f"{name} holds {twice[0]} twice; wanted each value once")
    return [int(value) if kind is numbers.Integral else float(value) for value in grid]


def callbacks_of(
    make: Callable[[Mapping[str, float], int], Sequence[Any]] | None,
    combinations: Sequence[tuple[dict[str, float], int]],
) -> list[Callbacks]:
    """Returns the callbacks of each run.

    Raises:
      ValueError: `make` is no function, or two runs share a callback.
    """
    if make is None:
        return [Callbacks() for _ in combinations]
    if not callable(make):
        raise ValueError(
            f"callbacks is {make!r}; a sweep wants a function of hyper-parameters and seed that returns "
            "the callbacks of one run, such as lambda hparams, seed: [EarlyStopping(patience=3)]"
        )
    of_runs = [Callbacks(make(dict(hparams), seed)) for hparams, seed in combinations]
    objects = [callback for each in of_runs for callback in each.all]
    if len({id(callback) for callback in objects}) < len(objects):
        raise ValueError(
            "two runs of the sweep share a callback, whose state would mix; wanted a function that "
            "returns new ones at each call"
        )
    return of_runs
