"""The results that the repository holds: every number follows from the curves beside it."""

import pathlib
import re

import pytest
from papers import fedavg

import fedjax_sim as fs

RESULTS = pathlib.Path(__file__).parents[2] / "results"
RACED = {c.name: c for part in fedavg.PARTS for c in fedavg.published(*part)}
CELLS = RACED | {
    fedavg.figure_record(number, cell): cell
    for number in fedavg.FIGURES
    for cell in fedavg.FIGURES[number].cells
}
pytestmark = pytest.mark.skipif(not (RESULTS / "cells").is_dir(), reason="needs results/cells")


@pytest.fixture(scope="module")
def known():
    return fs.reporting.Records(RESULTS).load_all()


def crossing(along, accuracies, target):
    """Where the running maximum of a curve crosses the target, or None."""
    best, before = None, None
    for x, accuracy in zip(along, accuracies, strict=True):
        if accuracy >= target:
            if best is None:
                return x
            return before + (x - before) * (target - best) / (accuracy - best)
        best, before = max(accuracy, best or 0), x
    return None


def sent_by(run):
    """Bytes up and down at each evaluation."""
    up, down = (run["ledger"][name] for name in ("bytes_up", "bytes_down"))
    columns = [t if isinstance(t, list) else [t * n for n in run["rounds"]] for t in (up, down)]
    return [sum(both) for both in zip(*columns, strict=True)]


def derived(name, record):
    """The record with whatever follows from its curves worked out anew."""
    target = record["cell"].get("target") if name in RACED else None
    runs = []
    for run in record["runs"]:
        found = {"rounds_to_target": None, "best_accuracy": max(run["accuracy"])}
        found["bytes_to_target"] = None
        if target is not None:
            reached = crossing(run["rounds"], run["accuracy"], target)
            found["rounds_to_target"] = None if reached is None else round(reached, 2)
        if target is not None and reached is not None:
            found["bytes_to_target"] = round(crossing(sent_by(run), run["accuracy"], target))
        runs.append(run | found)
    return record | {"runs": runs}


def faults(name, record):
    """What of a record does not follow from its curves, or is missing."""
    if "commit" not in record or any("ledger" not in run for run in record["runs"]):
        return ["was written before records had commits and ledgers"]
    anew = derived(name, record)
    found = [
        f"rate {run['rate']:g}, seed {run['seed']}: {what} is {run[what]}, its curve gives {value[what]}"
        for run, value in zip(record["runs"], anew["runs"], strict=True)
        for what in ("rounds_to_target", "best_accuracy", "bytes_to_target")
        if run[what] != value[what]
    ]
    best, best_anew = (fs.reporting.best_of_each_seed(r["runs"]) for r in (record, anew))
    return found + ([] if best == best_anew else [f"the best are {best}, the curves give {best_anew}"])


def test_every_number_of_a_record_follows_from_its_own_curves(known):
    found = {name: faults(name, record) for name, record in known.items()}
    assert not {name: said for name, said in found.items() if said}


def test_the_tables_follow_from_the_curves(known):
    text = (RESULTS / "tables.md").read_text()
    assert text == fedavg.render_tables(known)
    anew = {name: derived(name, record) for name, record in known.items()}
    assert text == fedavg.render_tables(anew)


def test_a_wrong_number_in_a_record_is_found():
    name = "2nn-iid-C0.1-E1-B10"
    curve = {"rounds": [0, 2, 4], "accuracy": [0.1, 0.96, 0.98], "diverged": None, "seed": 0}
    curve |= {"ledger": {"bytes_up": 10, "bytes_down": [0, 20, 50]}}
    runs = [curve | {"rate": 0.1}, curve | {"rate": 0.2, "accuracy": [0.1, 0.97, 0.96]}]
    record = derived(name, {"cell": {"target": 0.97}, "commit": None, "runs": runs})
    numbers = ("rounds_to_target", "best_accuracy", "bytes_to_target")
    assert [[run[what] for what in numbers] for run in record["runs"]] == [[3, 0.98, 65], [2, 0.97, 40]]
    assert not faults(name, record)
    for what in numbers:
        first, second = record["runs"]
        wrong = record | {"runs": [first | {what: first[what] * 1.001}, second]}
        assert any(what in fault for fault in faults(name, wrong))
    rounded = [run | {"accuracy": [round(a, 1) for a in run["accuracy"]]} for run in record["runs"]]
    assert faults(name, record | {"runs": rounded})
    assert faults(name, {key: value for key, value in record.items() if key != "commit"})


def test_the_records_are_whole_and_of_the_papers_cells(known):
    for name, record in known.items():
        assert {"command", "date", "machine", "versions"} <= record.keys(), name
        assert "=/" not in record["command"], f"{name} tells a folder of one machine"
        assert re.fullmatch(r"[0-9a-f]{40}", record["commit"] or ""), name
        if name == fedavg.FIGURE_1_RECORD:
            continue
        assert record["cell"] == CELLS[name].identity() | {"target": record["cell"]["target"]}, name
        if name in RACED:
            rates = {run["rate"] for run in record["runs"]}
            assert len(rates) >= min(3, record.get("most_rates", 3)), name
            for run in record["runs"]:
                check_end(run)


def check_end(run):
    """A run that reaches the target ends there."""
    rounds, reached = run["rounds"], run["rounds_to_target"]
    if reached is not None:
        assert rounds[-2] - 0.01 <= reached <= rounds[-1] + 0.01, run
