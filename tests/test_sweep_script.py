"""scripts/sweep.py, run as a user runs it, killed and repeated."""

import csv
import importlib
import json
import math
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"
SETTINGS = ("--model=logistic", "--num_rounds=6", "--client_lrs=0.05,0.1,1e38", "--seeds=0,1")
FLAGS = (*SETTINGS, "--local_epochs=1,2", "--batch_sizes=10", "--target_accuracy=0.58", "--workdir=w")
TRAIN = ("--model=logistic", "--num_rounds=6", "--client_lr=0.1", "--seed=1", "--partition_seed=0")
TRAIN += ("--local_epochs=1", "--target_accuracy=0.58", "--workdir=train")
NAMES = ("C0.1-E1-B10", "C0.1-E2-B10")


def start(script, *flags, cwd):
    command = [sys.executable, str(SCRIPTS / script), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, text=True)


def finish(process):
    """Exit code, standard output, standard error."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def cells_of(workdir):
    """The files of finished cells: name -> content and time of writing."""
    paths = (workdir / "cells").glob("*.json")
    return {path.stem: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep killed when its first cell was finished: its workdir, and the cells at that moment."""
    cwd = tmp_path_factory.mktemp("sweep")
    process = start("sweep.py", *FLAGS, cwd=cwd)
    deadline = time.monotonic() + 120
    while not cells_of(cwd / "w") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    code, _, err = finish(process)
    assert code == -signal.SIGKILL, err
    return cwd / "w", cells_of(cwd / "w")


@pytest.fixture(scope="module")
def finished(killed):
    """The same command once more, until its end: the workdir, standard output and error.

    Beside it lies `train`, the workdir of a run of train.py.
    """
    workdir, _ = killed
    processes = (
        start("sweep.py", *FLAGS, cwd=workdir.parent),
        start("train.py", *TRAIN, cwd=workdir.parent),
    )
    (code, out, err), (train_code, _, train_err) = map(finish, processes)
    assert code == 0, err
    assert train_code == 0, train_err
    return workdir, out, err


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "cells.jsonl").read_text().splitlines()]


def runs_of(workdir, name):
    return json.loads((workdir / "cells" / f"{name}.json").read_text())["runs"]


def test_after_a_kill_finished_cells_are_not_run_again(killed, finished):
    _, before = killed
    workdir, _, err = finished
    assert before.keys() == {NAMES[0]}
    after = cells_of(workdir)
    assert after.keys() == set(NAMES)
    assert after[NAMES[0]] == before[NAMES[0]]
    assert "C=0.1 E=1 B=10: done before" in err
    assert "C=0.1 E=2 B=10, cell 2 of 2" in err
    assert not list(workdir.rglob("*.partial"))


def test_a_sweep_leaves_its_files(finished):
    workdir, out, _ = finished
    files = {"config.json", "cells.jsonl", "table.md", "table.csv", "curves.png", "cells"}
    assert files <= {path.name for path in workdir.iterdir()}
    expected = {f"{name}.{ending}" for name in NAMES for ending in ("json", "png")}
    assert {path.name for path in (workdir / "cells").iterdir()} == expected
    for picture in workdir.rglob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert (workdir / "table.md").read_text() == out
    config = json.loads((workdir / "config.json").read_text())
    assert config["client_lrs"] == ["0.05", "0.1", "1e38"]
    assert config["num_rounds"] == 6


def test_every_run_has_a_row_and_every_cell_one(finished):
    workdir, out, _ = finished
    rows = rows_of(workdir)
    keys = ["E", "B", "C", "rate", "seed", "rounds_to_target", "bytes_to_target", "best_accuracy"]
    keys += ["seconds", "diverged"]
    assert all(list(row) == keys for row in rows)
    runs = [(row["E"], row["rate"], row["seed"]) for row in rows]
    assert runs == sorted(runs)
    assert {(1, 0.05, 0), (1, 0.05, 1), (2, 0.1, 0), (2, 1e38, 1)} <= set(runs)
    for epochs, name in enumerate(NAMES, 1):
        own = [row for row in rows if row["E"] == epochs]
        cell = {"E": epochs, "B": 10, "C": 0.1}
        assert own == [cell | {key: run[key] for key in keys[3:]} for run in runs_of(workdir, name)]
    with (workdir / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    cells = [[row[name] for name in ("C", "E", "B", "u", "rate", "rates")] for row in table]
    assert cells == [
        ["0.1", e, "10", u, "0.1", "0.05;0.1;1e+38"] for e, u in (("1", "4.0"), ("2", "8.0"))
    ]
    assert len(out.splitlines()) == 2 + len(table)


def test_bytes_to_the_target_are_those_of_the_rounds(finished):
    workdir, out, _ = finished
    per_round = 2 * 10 * 4 * (784 * 10 + 10)  # down and up, 10 clients, a logistic regression
    for row in rows_of(workdir):
        reached = row["rounds_to_target"]
        if reached is None:
            assert row["bytes_to_target"] is None
        else:
            assert row["bytes_to_target"] == pytest.approx(per_round * reached, abs=0.0051 * per_round)
    with (workdir / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    for epochs, row in enumerate(table, 1):
        best = [r["bytes_to_target"] for r in rows_of(workdir) if (r["E"], r["rate"]) == (epochs, 0.1)]
        assert float(row["megabytes_to_target"]) == pytest.approx(sum(best) / 2e6)
    assert "| MB to target, up + down |" in out.splitlines()[0]


def test_another_axis_draws_the_same_runs_anew(finished):
    workdir, out, _ = finished
    cells = cells_of(workdir)
    pictures = sorted(workdir.rglob("*.png"))
    before = [path.read_bytes() for path in pictures]
    code, again, err = finish(start("sweep.py", *FLAGS, "--plot_axis=bytes", cwd=workdir.parent))
    assert (code, again) == (0, out), err
    assert "C=0.1 E=2 B=10: done before" in err
    assert cells_of(workdir) == cells
    after = [path.read_bytes() for path in pictures]
    assert len(after) == 3
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_a_rate_that_diverges_is_marked_and_ends_nothing(finished):
    workdir, out, _ = finished
    rows = rows_of(workdir)
    assert all((row["diverged"] is not None) == (row["rate"] == 1e38) for row in rows)
    assert all(row["rounds_to_target"] is None for row in rows if row["rate"] == 1e38)
    assert all(row["rounds_to_target"] > 3 for row in rows if row["rate"] == 0.1)
    assert [line.rsplit("|", 2)[1] for line in out.splitlines()[2:]] == [" 1e+38 "] * 2


def test_a_run_of_a_sweep_is_the_run_of_train(finished):
    workdir, _, _ = finished
    (run,) = (run for run in runs_of(workdir, NAMES[0]) if (run["rate"], run["seed"]) == (0.1, 1))
    lines = (workdir.parent / "train" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["round"] for row in rows] == run["rounds"]
    assert len(rows) > 3
    assert [row["test_accuracy"] for row in rows] == pytest.approx(run["accuracy"], abs=1.1e-3)
    assert [row["train_loss"] for row in rows[1:]] == pytest.approx(run["train_loss"][1:], rel=6e-3)


REFUSED = (
    (("--client_lrs=",), "--client_lrs is empty; wanted numbers"),
    (("--client_lrs=0.1,abc",), "--client_lrs holds 'abc'; wanted a number"),
    (("--target_accuracy=1.5",), "the target accuracy is 1.5"),
    (("--lr_grid=1:0.1:3",), "the grid goes from 1.0 to 0.1"),
    (("--lr_grid=0.1:1:3", "--client_lrs=0.1"), "--client_lrs and --lr_grid exclude each other"),
    (("--batch_sizes=10,0",), "batch_size is 0"),
    (("--local_epochs=0",), "local_epochs is 0"),
    (("--plot_axis=byte",), "--plot_axis=byte: value should be one of <rounds|bytes|seconds>"),
    (("--down_mbps=0",), "down_mbps is 0.0; wanted megabits per second, above 0"),
    (("--workdir=w", "--num_rounds=7"), "num_rounds: 6 there, 7 now"),
)


@pytest.fixture(scope="module")
def refusals(finished):
    """What came of the flags to be refused, all tried at once: outcome, and the workdir's path."""
    workdir, _, _ = finished
    processes = [
        start("sweep.py", f"--workdir=bad{i}", *flags, cwd=workdir.parent)
        for i, (flags, _) in enumerate(REFUSED)
    ]
    return [(*finish(process), workdir.parent / f"bad{i}") for i, process in enumerate(processes)]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[" ".join(flags) for flags, _ in REFUSED])
def test_bad_flags_are_refused_with_a_cure_and_nothing_written(refusals, number):
    code, out, err, workdir = refusals[number]
    assert code == 1
    assert REFUSED[number][1] in err
    assert "Traceback" not in err
    assert out == ""
    assert not workdir.exists()


def test_another_sweep_leaves_the_workdir_as_it_was(finished, refusals):
    workdir, out, _ = finished
    assert json.loads((workdir / "config.json").read_text())["num_rounds"] == 6
    assert (workdir / "table.md").read_text() == out


@pytest.fixture
def common(monkeypatch):
    """What the scripts share."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("common")


def test_lists_of_numbers_are_read(common):
    assert common.numbers("x", ["1", " 5 "], int) == [1, 5]
    assert common.numbers("x", ["1e-3", ".5", ""], float) == [0.001, 0.5]
    assert common.numbers("x", ["10", "inf"], common.batch_size) == [10, math.inf]
    assert all(isinstance(n, int) for n in common.numbers("x", ["10", "600"], common.batch_size))


@pytest.mark.parametrize(
    ("entries", "kind", "message"),
    [
        ([], "float", "--x is empty; wanted numbers with commas between them"),
        ([" ", ""], "int", "--x is empty"),
        (["1", "5.5"], "int", "--x holds '5.5'; wanted a whole number"),
        (["ten"], "float", "--x holds 'ten'; wanted a number"),
        (["10", "ten"], "batch_size", "--x holds 'ten'; wanted a whole number or inf"),
        (["2.5"], "batch_size", "--x holds '2.5'; wanted a whole number or inf"),
    ],
)
def test_what_is_no_number_is_refused(common, entries, kind, message):
    kinds = {"int": int, "float": float, "batch_size": common.batch_size}
    with pytest.raises(ValueError, match=message):
        common.numbers("x", entries, kinds[kind])
