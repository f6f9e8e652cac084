"""Tables of the paper's cells: its rounds beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_sim import rounds_to_target
from fedjax_sim.reporting import (
    RESULT_COLUMNS,
    best_of_each_seed,
    markdown,
    mean_rounds,
    rates_text,
    ratio,
    result_columns,
    speedup_text,
    value_text,
)
from papers.fedavg.cells import PublishedCell, choose_target
from papers.fedavg.published import PARTS, published
from papers.fedavg.workloads import WORKLOADS

ACCEPTED = 1.25  # times the paper's rounds; its own repetitions of a cell differ by this much and more


def reproduction_table(
    cells: Sequence[PublishedCell], records: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns a row per published cell: the paper's rounds and ours, their ratio, both speedups.

    Speedups are over the first row of the same column, as in the paper.

    Args:
      cells: cells of one table and model.
      records: records by name, run to these targets or higher ones.
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
            "paper_speedup": ratio(paper_first, cell.rounds),
        }
        if record:
            row |= result_columns(best, runs)
        else:
            row |= dict.fromkeys(RESULT_COLUMNS)
        row["speedup"] = ratio(our_first, rounds)
        row["ratio"] = ratio(rounds, cell.rounds) if _on_its_data(cell) else None
        row["verdict"] = _verdict(cell, rounds, record)
        rows.append(row)
    return rows


def _runs_to(target: float, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a record's runs with their rounds to this target, read from their curves if need be."""
    if target == record["cell"]["target"]:
        return record["runs"]
    return [
        run | {"rounds_to_target": rounds_to_target(run["rounds"], run["accuracy"], target)}
        for run in record["runs"]
    ]


def _on_its_data(cell: PublishedCell) -> bool:
    """Returns whether the runs use the paper's data, so that rounds can be compared."""
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
    """Returns the rows of `reproduction_table` as text, ready for `markdown`."""
    return [
        {
            "row": row["row"],
            "clients": row["partition"],
            "u": value_text(row["u"]),
            "paper": speedup_text(row["paper"], row["paper_speedup"]),
            "ours": speedup_text(row["rounds"], row["speedup"]),
            "ours / paper": "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            f"at most {ACCEPTED}": row["verdict"],
            "best rate": rates_text(row["rate"], row["interior"]),
            "rates tried": value_text(row["rates"]),
            "rounds by seed": value_text(row["per_seed"]),
            "best accuracy": value_text(row["best_accuracy"]),
        }
        for row in rows
    ]


def tables_that_ran(
    records: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, list[PublishedCell], list[dict[str, str]]]]:
    """Returns every part of a published table with cells that have run: title, cells, rows as text.

    A part with several targets, from the paper or asked for in a run, becomes a table for each target.
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
    """Returns a page of Markdown: all `tables_that_ran`, with the notes on what was trained."""
    parts = ["# Tables of results\n"]
    for title, cells, rows in tables_that_ran(records):
        note = cells[0].workload.note
        parts.append(f"## {title}\n\n{markdown(rows)}" + (f"\n{note}\n" if note else ""))
    return "\n".join(parts)
