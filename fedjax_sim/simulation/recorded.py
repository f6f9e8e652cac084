"""Recorded rows of metrics, as arrays, tables, plots and summaries."""

import itertools
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_COUNTS = ("round", "examples", "slots", "seconds", "round_seconds")  # of a row, beside its measures
_TOTALS = ("cumulative_", "bytes_", "messages_", "trips_")  # prefixes of columns of totals


def rounds_to_target(rounds: Any, accuracies: Any, target: float) -> float | None:
    """Returns the round at which a curve, made monotone, first reaches a target.

    The curve is replaced by its running maximum and read by linear interpolation between the two
    evaluations around the crossing (McMahan et al., "Communication-efficient learning of deep
    networks from decentralized data", AISTATS 2017, section 3).

    Args:
      rounds: `[n]`, ascending; or another cumulative quantity, such as bytes.
      accuracies: `[n]`.
      target: target in the unit of the accuracies.

    Returns:
      The round, or None if the curve stays below the target.
    """
    best = np.maximum.accumulate(np.asarray(accuracies, np.float64))
    rounds = np.asarray(rounds, np.float64)
    reached = np.flatnonzero(best >= target)
    if not reached.size:
        return None
    after = reached[0]
    if after == 0:
        return float(rounds[0])
    before = after - 1
    share = (target - best[before]) / (best[after] - best[before])
    return float(rounds[before] + share * (rounds[after] - rounds[before]))


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """Returns rows as columns, name -> `[evaluations, ...]` float64; missing values are NaN."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    shape = next((np.shape(value) for value in values if value is not None), ())
    missing = np.full(shape, np.nan)
    return np.array([missing if value is None else value for value in values], np.float64)


def ledger_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of a row that count messages, trips and bytes, if it has any."""
    return {name: total for name, total in row.items() if name.startswith(_TOTALS)}


def accuracy_curve(rows: list[dict]) -> tuple[list[int], list[float]]:
    """Returns the rounds of the rows with a test accuracy, and these accuracies."""
    judged = [row for row in rows if "test_accuracy" in row]
    return [row["round"] for row in judged], [row["test_accuracy"] for row in judged]


def measures(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the losses, accuracies and other measures of a row that are single numbers."""
    told = row.keys() - ledger_of(row).keys() - {*_COUNTS} | {"cumulative_loss"}
    numbers = {k: v for k, v in row.items() if v is not None and not isinstance(v, list)}
    return {name: value for name, value in numbers.items() if name in told}


def measures_text(row: Mapping[str, Any]) -> str:
    """Returns the measures of a row in a few words."""
    return ", ".join(f"{name} {value:.4g}" for name, value in measures(row).items())


def frame_of(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Returns a pandas DataFrame with a line for each row.

    Raises:
      ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_frame needs pandas, which is not installed: pip install pandas") from error
    return pandas.DataFrame(list(rows))


def summary_of(rows: list[dict], target: float | None) -> dict[str, Any]:
    """Returns what the rows of a run tell in numbers, ready for JSON; see `Result.summary`."""
    rounds, accuracies = accuracy_curve(rows)
    last = rows[-1]
    blocks = list(itertools.pairwise(rows))
    per_round = [row["round_seconds"] for _, row in blocks]
    seconds = sum(row["round_seconds"] * (row["round"] - before["round"]) for before, row in blocks)
    return {
        "rounds": last["round"],
        "best_accuracy": max(accuracies, default=None),
        "final_accuracy": accuracies[-1] if accuracies else None,
        "target_accuracy": target,
        "rounds_to_target": None if target is None else rounds_to_target(rounds, accuracies, target),
        "seconds_per_round": statistics.median(per_round) if per_round else None,
        "examples_per_second": last["examples"] / seconds if seconds else None,
        "padding_waste": 1 - last["examples"] / last["slots"] if last["slots"] else 0.0,
        **ledger_of(last),
    }


class Recorded:
    """Base of what holds the rows of a run.

    Attributes:
      rows: one dict per evaluation, as in metrics.jsonl.
    """

    rows: list[dict]

    def history(self) -> dict[str, np.ndarray]:
        """Returns the rows as columns, name -> `[evaluations]`, or `[evaluations, ...]` for arrays."""
        return columns(self.rows)

    def to_frame(self) -> Any:
        """Returns the rows as a pandas DataFrame, a line per evaluation.

        Raises:
          ImportError: pandas is not installed.
        """
        return frame_of(self.rows)

    def plot(
        self, metric: str | None = None, *, axis: str = "rounds", link: Any = None, ax: Any = None
    ) -> Any:
        """Draws a metric of the run.

        Args:
          metric: column of the rows; by default "test_accuracy", or "train_loss" if there is none.
          axis: x-axis, "rounds", "bytes" or "seconds" of communication; see `reporting.x_axis`.
          link: link for the seconds; `Link()` by default.
          ax: matplotlib Axes to draw on; by default those of a new figure.

        Returns:
          The Axes.

        Raises:
          ValueError: the rows have no such metric, or the axis is unknown.
        """
        from fedjax_sim.reporting.run_curves import plot_run

        return plot_run(self.history(), metric, axis=axis, link=link, ax=ax)
