"""scripts/sweep.py, run as a user runs it, killed and repeated."""

import csv
import json
import math
import signal
import subprocess
import sys
import time

import pytest
from script_runs import SCRIPTS, loaded, refusal

SETTINGS = ("--model=logistic", "--num_rounds=6", "--client_lrs=0.05,0.1,1e38", "--seeds=0,1")
FLAGS = (*SETTINGS, "--local_epochs=1,2", "--batch_sizes=10", "--target_accuracy=0.58", "--workdir=w")
TRAIN = (
    "--model=logistic",
    "--num_rounds=6",
    "--client_lr=0.1",
    "--seed=1",
    "--partition=shards:2,seed=0",
)
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


@pytest.fixture
def killed(tmp_path):
    """A sweep killed when its first cell was finished: its workdir, and the cells at that moment."""
    cwd = tmp_path
    process = start("sweep.py", *FLAGS, cwd=cwd)
    deadline = time.monotonic() + 120
    while not cells_of(cwd / "w") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    code, _, err = finish(process)
    assert code == -signal.SIGKILL, err
    return cwd / "w", cells_of(cwd / "w")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep: its workdir, standard output and error. Beside it lies `train`, a run of train.py."""
    workdir = tmp_path_factory.mktemp("sweep") / "w"
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


@pytest.mark.slow
def test_after_a_kill_finished_cells_are_not_run_again(killed):
    workdir, before = killed
    code, _, err = finish(start("sweep.py", *FLAGS, cwd=workdir.parent))
    assert code == 0, err
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


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def refused(finished):
    """Another number of rounds in the same workdir: outcome, standard output and error."""
    workdir, _, _ = finished
    return finish(start("sweep.py", *FLAGS, "--num_rounds=7", cwd=workdir.parent))


@pytest.fixture(scope="module")
def script():
    """scripts/sweep.py as a module."""
    with loaded("sweep") as module:
        yield module


REFUSED = {
    "--client_lrs=": "--client_lrs is empty; wanted numbers",
    "--client_lrs=0.1,abc": "--client_lrs holds 'abc'; wanted 0, or a number",
    "--client_lrs=0.1,1e39": "--client_lrs holds '1e39'; wanted 0, or a number from 1.18e-38 to 3.4e+38",
    "--client_lrs=0.1,0.10": "--client_lrs holds 0.10 twice; wanted each once",
    "--lr_grid=1:0.1:3": "--lr_grid=1:0.1:3: the grid goes from 1.0 to 0.1",
    "--lr_grid=1e-300:1:100000": "--lr_grid holds '1e-300'; wanted a number",
    "--lr_grid=1e-30:1:100": "has 3,001 rates; wanted at most 1,000",
    "--lr_grid=0.1:1:100000": "100000 rates per decade; wanted a whole number from 1 to 100",
    "--lr_grid=0.1:1:3.5": "--lr_grid holds '3.5'; wanted a whole number",
    "--lr_grid=0.1:1": "--lr_grid=0.1:1; wanted first:last:per_decade",
    "--lr_grid=": "--lr_grid=: wanted a name",
    "--lr_grid=0.1:1:3 --client_lrs=0.1": "--client_lrs and --lr_grid exclude each other",
    "--lr_grid=1e30:1e38:3 --algorithm=fed_avg:lr_decay=1.5": "lr_decay=1.5 of --algorithm makes",
    "--algorithm=fed_sgd": "--algorithm=fed_sgd has no local epochs and batches to sweep",
    "--algorithm=sgd": "--algorithm=sgd has no local epochs and batches to sweep",
    "--algorithm=fed_buff:20,10": "--algorithm=fed_buff draws cohorts of its own",
    "--algorithm=ifca:2": "--algorithm=ifca trains several models",
    "--algorithm=fed_prox:mu=-1": "--algorithm=fed_prox:mu=-1: mu is -1.0",
    "--most_rates=0": "--most_rates=0: wanted a whole number from 1",
    "--seeds=0,4294967296": "--seeds holds '4294967296'; wanted a whole number from 0 to 4294967295",
    "--seeds=0,1,0": "--seeds holds 0 twice",
    "--batch_sizes=10,0": "--batch_sizes holds '0'; wanted a whole number from 1 to 2147483647, or inf",
    "--batch_sizes=10,2147483647": "batch_size=2147483647 makes at least 21474836470 examples",
    "--local_epochs=0": "--local_epochs holds '0'; wanted a whole number",
    "--client_fractions=0,1.5": "--client_fractions holds '1.5'; wanted a number from 0 to 1",
    "--client_fractions=0.1,0.1000000001": "names the cell C0.1-E1-B10 twice",
    "--target_accuracy=1.5": "--target_accuracy=1.5: wanted a number above 0, at most 1",
    "--num_rounds=0": "--num_rounds=0: wanted a whole number from 1 to 2147483647",
    "--plot_axis=byte": "--plot_axis=byte: value should be one of <rounds|bytes|seconds>",
    "--link=down_mbps=0": "down_mbps is 0.0; wanted megabits per second, above 0",
    "--workdir=/dev/null": "--workdir=/dev/null: /dev/null is not a folder",
    "--mesh=2,2": "--mesh=2,2: a mesh of 2 times 2 does not divide the 2 devices",
    "--dataset=graphical_model --model=logistic": "--algorithm=dynamic_averaging only",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_bad_flags_are_refused_before_any_data_is_read(script, flags):
    assert REFUSED[flags] in refusal(script, *flags.split())


def test_a_grid_that_is_refused_takes_no_time(script):
    before = time.process_time()
    refusal(script, "--lr_grid=1e-30:1:2147483647")
    assert time.process_time() - before < 1


def test_another_sweep_leaves_the_workdir_as_it_was(finished, refused):
    workdir, out, _ = finished
    code, printed, err = refused
    assert (code, printed) == (1, "")
    assert "num_rounds: 6 there, 7 now" in err
    assert "Traceback" not in err
    assert json.loads((workdir / "config.json").read_text())["num_rounds"] == 6
    assert (workdir / "table.md").read_text() == out


@pytest.fixture
def kinds(script):
    """What the scripts read flags with."""
    return sys.modules["flags.kinds"]


def test_lists_of_numbers_are_read(kinds):
    assert kinds.numbers("x", ["1", " 5 "], kinds.COUNT) == [1, 5]
    assert kinds.numbers("x", ["1e-3", ".5", "0", ""], kinds.RATE) == [0.001, 0.5, 0]
    assert kinds.numbers("x", ["10", "inf"], kinds.BATCH_SIZE) == [10, math.inf]
    assert all(isinstance(n, int) for n in kinds.numbers("x", ["10", "600"], kinds.BATCH_SIZE))


@pytest.mark.parametrize(
    ("entries", "kind", "message"),
    [
        ([], "RATE", "--x is empty; wanted numbers with commas between them"),
        ([" ", ""], "COUNT", "--x is empty"),
        (["1", "5.5"], "COUNT", "--x holds '5.5'; wanted a whole number"),
        (["ten"], "SHARE", "--x holds 'ten'; wanted a number from 0 to 1"),
        (["10", "ten"], "BATCH_SIZE", "--x holds 'ten'; wanted a whole number .* or inf"),
        (["2.5"], "BATCH_SIZE", "--x holds '2.5'; wanted a whole number"),
        (["9" * 5000], "SEED", "; wanted a whole number from 0 to 4294967295"),
        (["5", "5.0"], "LIMIT", "--x holds 5.0 twice"),
    ],
)
def test_what_is_no_number_is_refused(kinds, entries, kind, message):
    with pytest.raises(ValueError, match=message):
        kinds.numbers("x", entries, getattr(kinds, kind))
