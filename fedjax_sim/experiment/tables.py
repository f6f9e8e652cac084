"""Tables of cells: of a sweep, and beside the numbers of a paper."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_sim.experiment.cells import PublishedCell, choose_target
from fedjax_sim.experiment.protocol import Best, best_of_each_seed, mean_bytes, mean_rounds
from fedjax_sim.experiment.published import PARTS, published
from fedjax_sim.experiment.workloads import WORKLOADS
from fedjax_sim.simulation import rounds_to_target

ACCEPTED = 1.25  # times the paper's rounds; its own repetitions of a cell differ by this much and more


def sweep_table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per cell: E, B, C and u, rounds and MB at the best rate, the speedup over the first cell.

    `megabytes_to_target` are 10^6 bytes, up and down together, and the mean over seeds, as the rounds
    are; None where a seed did not reach the target, without one, and of older records.

    Args:
      records: of cells, each with "cell" (E, B, C and u) and "runs".
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
            | _result(best, record["runs"])
            | {
                "speedup": _ratio(baseline, rounds),
                "megabytes_to_target": None if sent is None else sent / 1e6,
            }
        )
    return rows


def reproduction_table(
    cells: Sequence[PublishedCell], records: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row per published cell: the paper's rounds and ours, their ratio, the speedups of both.

    Speedups are over the first row of the same column, as in the paper.

    Args:
      cells: of one table and model.
      records: those that were run, by name, for these targets or higher ones.
    """
    firsts, rows = {}, []
    for cell in cells:
        record = records.get(cell.name)
        runs = _runs_to(cell.target, record) if record else []
        best = best_of_each_seed(runs)
        rounds = mean_rounds(best) if best else None
        column = (cell.partition, cell.target, cell.batch_size if cell.table == 1 else None)
        paper_first, our_first = firsts.setdefault(column, (cell.rounds, rounds))
        row = {
            "row": cell.row,
            "partition": cell.partition,
            "u": None if cell.updates is None else round(cell.updates, 1),
            "paper": cell.rounds,
            "paper_speedup": _ratio(paper_first, cell.rounds),
        }
        if record:
            row |= _result(best, runs)
        else:
            row |= dict.fromkeys(_RESULT)
        row["speedup"] = _ratio(our_first, rounds)
        row["ratio"] = _ratio(rounds, cell.rounds) if _on_its_data(cell) else None
        row["verdict"] = _verdict(cell, rounds, record)
        rows.append(row)
    return rows


def _runs_to(target: float, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record's runs with their rounds to this target, if need be from their curves."""
    if target == record["cell"]["target"]:
        return record["runs"]
    return [
        run | {"rounds_to_target": rounds_to_target(run["rounds"], run["accuracy"], target)}
        for run in record["runs"]
    ]


_RESULT = ("rounds", "per_seed", "rate", "interior", "best_accuracy", "rates", "diverged")


def _result(best: Sequence[Best], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
    return dict(zip(_RESULT, values, strict=True))


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if not a or not b else a / b


def _on_its_data(cell: PublishedCell) -> bool:
    """Whether what was run is the paper's data, so that rounds may be compared."""
    return cell.workload.num_examples is not None


def _verdict(cell: PublishedCell, rounds: float | None, record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "not run"
    if rounds is not None and not (cell.rounds and _on_its_data(cell)):
        return "reached"
    if rounds is None and cell.rounds is None and cell in published(cell.table, cell.model):
        return "not reached, as in the paper"
    if rounds is None:
        enough = cell.rounds is not None and record["num_rounds"] >= ACCEPTED * cell.rounds
        return "missed" if enough else f"not reached in {record['num_rounds']} rounds"
    return "met" if rounds <= ACCEPTED * cell.rounds else "missed"


def reproduction_text(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of `reproduction_table` for people, ready for `markdown`."""
    return [
        {
            "row": row["row"],
            "clients": row["partition"],
            "u": _text(row["u"]),
            "paper": _with_speedup(row["paper"], row["paper_speedup"]),
            "ours": _with_speedup(row["rounds"], row["speedup"]),
            "ours / paper": "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            f"at most {ACCEPTED}": row["verdict"],
            "best rate": _rates(row["rate"], row["interior"]),
            "rates tried": _text(row["rates"]),
            "rounds by seed": _text(row["per_seed"]),
            "best accuracy": _text(row["best_accuracy"]),
        }
        for row in rows
    ]


def tables_that_ran(
    records: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, list[PublishedCell], list[dict[str, str]]]]:
    """Every part of a published table of which some cell was run: title, cells, rows for people.

    A part with several targets, of the paper or asked for in a run, is a table for each of them.
    """
    parts = []
    for table, model in PARTS:
        cells = published(table, model)
        names = {cell.name for cell in cells} & records.keys()
        run_to = {name: records[name]["cell"]["target"] for name in names}
        for target in sorted({cell.target for cell in cells} | set(run_to.values())):
            known = {name: records[name] for name in names if run_to[name] >= target}
            if known:
                chosen = choose_target(cells, target)
                which = WORKLOADS[model].title if table is None else f"Table {table}, {model}"
                title = f"{which}: rounds to {100 * target:g}% test accuracy"
                parts.append((title, chosen, reproduction_text(reproduction_table(chosen, known))))
    return parts


def render_tables(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of all `tables_that_ran`, with the notes of what was trained."""
    parts = []
    for title, cells, rows in tables_that_ran(records):
        note = cells[0].workload.note
        parts.append(f"## {title}\n\n{markdown(rows)}" + (f"\n{note}\n" if note else ""))
    return "\n".join(parts)


def sweep_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `sweep_table` for people."""
    return markdown(
        [
            {
                "C": f"{row['C']:g}",
                "E": str(row["E"]),
                "B": str(row["B"]),
                "u": f"{row['u']:g}",
                "rounds": _with_speedup(row["rounds"], row["speedup"]),
                "best rate": _rates(row["rate"], row["interior"]),
                "rates tried": _text(row["rates"]),
                "rounds by seed": _text(row["per_seed"]),
                "MB to target, up + down": _megabytes(row["megabytes_to_target"]),
                "best accuracy": _text(row["best_accuracy"]),
                "diverged at": _text(row["diverged"]),
            }
            for row in rows
        ]
    )


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Dicts of the same keys as a Markdown table."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _with_speedup(rounds: float | None, speedup: float | None) -> str:
    if rounds is None:
        return "-"
    return f"{rounds:.0f}" + ("" if speedup is None else f" ({speedup:.1f}x)")


def _megabytes(sent: float | None) -> str:
    return "-" if sent is None else f"{sent:.1f}"


def _rates(rates: Sequence[float] | None, interior: bool | None) -> str:
    return _text(rates) + ("" if interior or not rates else " (edge of the grid)")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
