"""Tables of cells, for programs and for people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_sim.reporting.rate_search import Best, best_of_each_seed, mean_bytes, mean_rounds


def sweep_table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row per cell: E, B, C, u, rounds and MB at the best rate, speedup over the first cell.

    `megabytes_to_target` counts 10^6 bytes, up and down together, averaged over seeds like the rounds.
    It is None if a seed did not reach the target, without a target, and for older records.

    Args:
      records: records of cells, each with "cell" (E, B, C and u) and "runs".
    """
    rows, baseline = [], None
    for record in records:
        best = best_of_each_seed(record["runs"])
        rounds = mean_rounds(best)
        baseline = rounds if not rows else baseline
        cell = {name: record["cell"][name] for name in ("C", "E", "B", "u")}
        sent = mean_bytes(best, record["runs"])
        rows.append(
            cell
            | result_columns(best, record["runs"])
            | {
                "speedup": ratio(baseline, rounds),
                "megabytes_to_target": None if sent is None else sent / 1e6,
            }
        )
    return rows


RESULT_COLUMNS = ("rounds", "per_seed", "rate", "interior", "best_accuracy", "rates", "diverged")


def result_columns(best: Sequence[Best], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rounds = mean_rounds(best)
    rates = sorted({run["rate"] for run in runs})
    values = (
        None if rounds is None else round(rounds, 1),
        [b.rounds for b in best],
        list(dict.fromkeys(b.rate for b in best)),
        all(b.interior for b in best),
        max(b.accuracy for b in best),
        rates,
        sorted({run["rate"] for run in runs if run["diverged"] is not None}),
    )
    return dict(zip(RESULT_COLUMNS, values, strict=True))


def ratio(a: float | None, b: float | None) -> float | None:
    return None if not a or not b else a / b


def sweep_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `sweep_table` as a Markdown table."""
    return markdown(
        [
            {
                "C": f"{row['C']:g}",
                "E": str(row["E"]),
                "B": str(row["B"]),
                "u": f"{row['u']:g}",
                "rounds": speedup_text(row["rounds"], row["speedup"]),
                "best rate": rates_text(row["rate"], row["interior"]),
                "rates tried": value_text(row["rates"]),
                "rounds by seed": value_text(row["per_seed"]),
                "MB to target, up + down": _megabytes(row["megabytes_to_target"]),
                "best accuracy": value_text(row["best_accuracy"]),
                "diverged at": value_text(row["diverged"]),
            }
            for row in rows
        ]
    )


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns dicts with the same keys as a Markdown table."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def speedup_text(rounds: float | None, speedup: float | None) -> str:
    if rounds is None:
        return "-"
    return f"{rounds:.0f}" + ("" if speedup is None else f" ({speedup:.1f}x)")


def _megabytes(sent: float | None) -> str:
    return "-" if sent is None else f"{sent:.1f}"


def rates_text(rates: Sequence[float] | None, interior: bool | None) -> str:
    return value_text(rates) + ("" if interior or not rates else " (edge of the grid)")


def value_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value_text(item) for item in value)
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
