"""Comparison of settings as in the FedAvg paper: rounds to a target at the best learning rate.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3:
curves of test accuracy are made monotone and read at the target by linear interpolation; the rate is
optimised for each setting over a multiplicative grid, and the best must not lie at its edge.
"""

import decimal
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.types import Algorithm
from fedjax_sim.reporting.grids import neighbour, resolution
from fedjax_sim.reporting.plots import x_axis
from fedjax_sim.simulation import Link, SweepRun, rounds_to_target, sweep
from fedjax_sim.simulation.recorded import ledger_of

MOST_RATES = 13  # the most that the paper tried


class Best(NamedTuple):
    """The best run of one seed.

    Attributes:
      seed: seed of the run.
      rate: learning rate of the run.
      rounds: rounds to the target; None if no rate reached it, and the best is then the most accurate.
      accuracy: highest accuracy of the run.
      interior: whether both higher and lower rates were tried.
    """

    seed: int
    rate: float
    rounds: float | None
    accuracy: float
    interior: bool


def best_of_each_seed(runs: Sequence[Mapping[str, Any]]) -> list[Best]:
    """Returns, for each seed, the run that reached the target first, or else came nearest to it.

    Args:
      runs: dicts with "rate", "seed", "rounds_to_target" and "best_accuracy". A run that diverged
        before reaching the target ranks below all that did not; the lower rate wins a tie.

    Returns:
      One best run per seed, in the order in which the seeds first occur.
    """
    rates = [run["rate"] for run in runs]

    def rank(run):
        reached = run["rounds_to_target"]
        missed = reached is None
        diverged = missed and run["diverged"] is not None
        return missed, diverged, reached or 0.0, -run["best_accuracy"], run["rate"]

    best = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        run = min((run for run in runs if run["seed"] == seed), key=rank)
        interior = min(rates) < run["rate"] < max(rates)
        best.append(Best(seed, run["rate"], run["rounds_to_target"], run["best_accuracy"], interior))
    return best


def mean_rounds(best: Sequence[Best]) -> float | None:
    """Returns the mean over seeds of the rounds to the target, or None if a seed did not reach it."""
    return _mean_of_all([b.rounds for b in best])


def mean_bytes(best: Sequence[Best], runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the mean over seeds of the bytes to the target, or None if a seed did not reach it.

    Args:
      best: best run of each seed.
      runs: all runs, see `describe_run`; older runs have no bytes, which gives None.
    """
    return _mean_of_all([_run_of(runs, b).get("bytes_to_target") for b in best])


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))


def sweep_rates(
    algorithm: Algorithm,
    data: Any,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    num_rounds: int,
    stop_at: float | None,
    most_rates: int = MOST_RATES,
    report: Callable[[str], None] | None = None,
    workdir: str | pathlib.Path | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Sweeps the client's rate, and widens the grid until no seed's best rate lies at its edge.

    Further rates come one at a time, from the paper's grid at the resolution nearest to that of
    `rates`. They are only compared with the best so far, so they run no longer than it did.

    Args:
      algorithm: algorithm with the hyper-parameter "client_lr".
      data: a `FederatedData`.
      rates: rates to begin with.
      seeds: seeds to run at every rate.
      num_rounds: maximum number of rounds of a run.
      stop_at: target test accuracy; a seed's runs end once one of them has reached it. With None, the
        most accurate run is the best.
      most_rates: number of rates beyond which the grid is not widened.
      report: function that receives a line of text for each widening.
      workdir: folder with a subfolder per sweep, where an interrupted sweep continues.
      **settings: further arguments of `sweep`.

    Returns:
      One dict per run, see `describe_run`.

    Raises:
      ValueError: see `sweep`.
      UnfinishedError: see `sweep`.
    """

    def go(chosen, limit, folder):
        result = sweep(
            algorithm,
            data,
            hparams={"client_lr": chosen},
            seeds=seeds,
            num_rounds=limit,
            stop_at=stop_at,
            workdir=None if workdir is None else pathlib.Path(workdir) / folder,
            **settings,
        )
        if result.interrupted:  # a part of a sweep does not tell the best rate
            raise KeyboardInterrupt
        return [describe_run(run, stop_at) for run in result.runs]

    rates = sorted(rates)
    runs = go(rates, num_rounds, "first")
    per_decade = resolution(rates)
    while (further := _beyond(runs, per_decade)) and len(rates) < most_rates:
        rate = further[0]
        best = best_of_each_seed(runs)
        missed = any(b.rounds is None for b in best)
        # Up to the winners' last evaluation, so that curves are interpolated between the same rounds.
        limit = num_rounds if missed else max(_run_of(runs, b)["rounds"][-1] for b in best)
        if report is not None:
            report(f"The best rate lies at the edge of the grid; trying {rate:g} as well.")
        rates.append(rate)
        runs += go([rate], max(limit, 1), f"rate{rate:g}")
    return sorted(runs, key=lambda run: (run["rate"], run["seed"]))


def _run_of(runs: Sequence[Mapping[str, Any]], best: Best) -> Mapping[str, Any]:
    return next(run for run in runs if (run["seed"], run["rate"]) == (best.seed, best.rate))


def _beyond(runs: Sequence[Mapping[str, Any]], per_decade: int) -> list[float]:
    """Returns the rates next to the grid on each side where some seed's best rate lies."""
    rates = [run["rate"] for run in runs]
    best = [b.rate for b in best_of_each_seed(runs) if b.rate > 0]
    further = [neighbour(rate, per_decade, -1) for rate in best if rate == min(rates)]
    further += [neighbour(rate, per_decade, 1) for rate in best if rate == max(rates)]
    return further


def describe_run(run: SweepRun, target: float | None) -> dict[str, Any]:
    """Describes a run of a sweep over rates as JSON values.

    Every number about the target follows exactly from the curves stored beside it. Accuracies are
    rounded down to five decimals, so rounding never lifts one to the target; an accuracy that rounding
    would take below the target is kept whole. Losses are rounded to five digits.

    Args:
      run: run with a "test_accuracy" in each row.
      target: target test accuracy, or None.

    Returns:
      "rate", "seed", "rounds_to_target" (None if the curve stayed below), "best_accuracy", "seconds",
      "diverged" (the round, or None) and the curves: "rounds", "accuracy", "train_loss" and, if it was
      evaluated, "full_train_loss". If the rows have the ledger, also "bytes_to_target", up and down,
      where the curve crosses the target as in `rounds_to_target` (None if it stayed below, or without a
      target), and "ledger", from which `run_history` rebuilds its columns: one number if every round
      adds the same amount, otherwise the cumulative values.
    """
    rows = run.rows
    losses = [name for name in ("train_loss", "full_train_loss") if name in rows[0]]
    curve = {
        "rounds": [row["round"] for row in rows],
        "accuracy": [_rounded_down(row["test_accuracy"], target) for row in rows],
    }
    reached = None
    if target is not None:
        reached = rounds_to_target(curve["rounds"], curve["accuracy"], target)
    return (
        {
            "rate": run.hparams["client_lr"],
            "seed": run.seed,
            "rounds_to_target": None if reached is None else round(reached, 2),
            "best_accuracy": max(curve["accuracy"]),
            "seconds": round(rows[-1]["seconds"], 2),
            "diverged": run.diverged,
        }
        | curve
        | {name: [five_digits(row[name]) for row in rows] for name in losses}
        | _describe_ledger(rows, curve["accuracy"], target)
    )


def _describe_ledger(
    rows: Sequence[Mapping[str, Any]], accuracies: Sequence[float], target: float | None
) -> dict[str, Any]:
    names = ledger_of(rows[0])
    if not names:
        return {}
    reached = None
    if target is not None:
        sent = [row["bytes_up"] + row["bytes_down"] for row in rows]
        reached = rounds_to_target(sent, accuracies, target)
    ledger = {}
    for name in names:
        totals = [row[name] for row in rows]
        each = totals[-1] // max(rows[-1]["round"], 1)
        even = all(total == each * row["round"] for total, row in zip(totals, rows, strict=True))
        ledger[name] = each if even else totals
    return {"bytes_to_target": None if reached is None else round(reached), "ledger": ledger}


def run_history(run: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the rounds and the ledger of a described run, as `SweepRun.history()` had them.

    Args:
      run: dict of `describe_run`; an older one has no ledger.

    Returns:
      Name -> `[evaluations]` float64, as `x_axis` and `Link.seconds` take it.
    """
    rounds = np.asarray(run["rounds"], np.float64)
    ledger = run.get("ledger", {})
    return {"round": rounds} | {
        name: np.asarray(totals, np.float64) if isinstance(totals, list) else totals * rounds
        for name, totals in ledger.items()
    }


def expected_updates(local_epochs: int, batch_size: float, n: int, num_clients: int) -> float:
    """Returns `u = E n / (K B)`, a client's updates per round; with infinite B it is E."""
    per_client = n / num_clients
    return local_epochs * per_client / min(batch_size, per_client)


def envelope(
    runs: Sequence[Mapping[str, Any]], seed: int, axis: str = "rounds", link: Link | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best monotone accuracy of any rate, at each round where some run was evaluated.

    Args:
      runs: dicts of `describe_run`.
      seed: seed of the runs to use.
      axis: x-axis in place of the rounds, see `x_axis`.
      link: link for the seconds.

    Returns:
      x-values `[n]` and accuracies `[n]`.

    Raises:
      ValueError: see `x_axis`.
    """
    own = [run for run in runs if run["seed"] == seed]
    along = [x_axis(run_history(run), axis, link)[0] for run in own]
    union = np.unique(np.concatenate(along))
    curves = [
        np.interp(union, values, np.maximum.accumulate(run["accuracy"]))
        for values, run in zip(along, own, strict=True)
    ]
    return union, np.max(curves, axis=0)


def five_digits(value: float | None) -> float | None:
    """Rounds a number to five significant digits."""
    return None if value is None else float(f"{value:.5g}")


def _rounded_down(accuracy: float, target: float | None) -> float:
    # Rounds decimal digits, since 100000 * 0.00007 is less than 7 in floats.
    digits = decimal.Decimal(repr(float(accuracy)))
    below = float(digits.quantize(decimal.Decimal("0.00001"), decimal.ROUND_FLOOR))
    crosses = target is not None and below < target <= accuracy
    return accuracy if crosses else below
