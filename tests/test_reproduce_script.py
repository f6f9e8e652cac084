"""scripts/reproduce.py, run as a user runs it: its errors, and a cell of MNIST where that is present."""

import json
import pathlib
import subprocess
import sys

import pytest
from data_files import data_root, needs

SCRIPT = pathlib.Path(__file__).parent.parent / "scripts" / "reproduce.py"
CELL = "2nn-iid-C0.1-E1-B10"
FLAGS = ("--table=4", "--partition=iid", "--rows=E=1/B=10", "--rounds_limit=3")


def start(*flags, cwd):
    command = [sys.executable, str(SCRIPT), *flags, "--workdir=w"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, text=True)


def finish(process):
    """Standard output and standard error of a success."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


REFUSED = {
    "--table=3": "unknown table '3'. Known: 1, 2, 4.",
    "--figure=5": "unknown figure '5'. Known: 1, 2, 6, 7, 8.",
    "--table=4 --rows=E=7": "unknown row 'E=7'. Known: E=1/B=10, E=1/B=50, E=1/B=inf, E=10/B=10,",
    "--table=4 --partition=iid": "data_dir is None; give the folder that holds train-images-idx3",
    "": "wanted one of --table, --figure and --report",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What came of the flags to be refused, all tried at once, by the flags."""
    folders = {flags: tmp_path_factory.mktemp("refused") for flags in REFUSED}
    processes = {flags: start(*flags.split(), cwd=folder) for flags, folder in folders.items()}
    return {
        flags: (*process.communicate(timeout=300), process.returncode, folders[flags])
        for flags, process in processes.items()
    }


@pytest.mark.parametrize("flags", REFUSED, ids=lambda flags: flags or "nothing")
def test_what_is_not_in_the_paper_is_refused_with_what_is(refusals, flags):
    out, err, code, cwd = refusals[flags]
    assert code == 1
    assert REFUSED[flags] in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(cwd.rglob("*.json"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A cell of table 4, for three rounds: its workdir, standard output and error."""
    cwd = tmp_path_factory.mktemp("cell")
    flags = (*FLAGS, "--client_lrs=0.1,0.215,0.464", f"--data_dir={data_root() / 'mnist'}")
    return cwd / "w", *finish(start(*flags, cwd=cwd))


@needs("mnist")
def test_a_cell_leaves_its_record_and_the_table(finished):
    workdir, out, err = finished
    record = json.loads((workdir / "cells" / f"{CELL}.json").read_text())
    assert {"command", "date", "machine", "versions", "seconds"} <= record.keys()
    assert record["cell"] == {
        "dataset": "mnist",
        "model": "2nn",
        "partition": "iid",
        "algorithm": "fed_avg",
        "C": 0.1,
        "E": 1,
        "B": 10,
        "target": 0.97,
    }
    assert "--rows=E=1/B=10" in record["command"]
    assert [run["rate"] for run in record["runs"]] == [0.1, 0.215, 0.464]
    assert all(run["rounds"] == [0, 1, 2, 3] for run in record["runs"])
    assert all(0.8 < run["best_accuracy"] < 0.97 for run in record["runs"])
    head, _, row = (line.split("|") for line in out.splitlines())
    shown = {name.strip(): value.strip() for name, value in zip(head, row, strict=True)}
    assert (shown["row"], shown["clients"], shown["u"]) == ("E=1/B=10", "iid", "60")
    assert (shown["paper"], shown["ours"]) == ("92 (16.0x)", "-")
    assert "not reached in 3 rounds" in shown.values()
    assert "the paper's rounds: 92" in err
    assert "seed 0: not reached, best accuracy 0." in err
    tables = (workdir / "tables.md").read_text()
    assert "## Table 1, 2nn" in tables
    assert out.splitlines()[-1] in tables.splitlines()


@needs("mnist")
def test_a_repeat_runs_nothing_and_a_report_is_one_page(finished):
    workdir, out, _ = finished
    files = {path: path.read_bytes() for path in workdir.rglob("*") if path.suffix in (".json", ".md")}
    again, err = finish(start(*FLAGS, "--report", cwd=workdir.parent))
    assert again == out
    assert f"{CELL}: done before" in err
    assert "cell 1 of" not in err
    assert len(files) == 2
    assert all(path.read_bytes() == content for path, content in files.items())
    page = (workdir / "report.html").read_text()
    assert "wrote w/report.html" in err
    assert f"<summary>{CELL}</summary>" in page
    assert 'src="data:image/png;base64,' in page
