"""scripts/reproduce.py, run as a user runs it: its errors, small data, a cell of MNIST where present."""

import gzip
import json
import subprocess
import sys

import message_corpus
import numpy as np
import pytest
import shakespeare_corpus
from data_files import data_root, needs
from script_runs import SCRIPTS, check, loaded, refusal

SCRIPT = SCRIPTS / "reproduce.py"
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


@pytest.fixture(scope="module")
def script():
    """scripts/reproduce.py as a module."""
    with loaded("reproduce") as module:
        yield module


REFUSED = {
    "": "wanted one of --table, --figure and --report",
    "--table=1 --figure=2": "wanted one of --table, --figure and --report",
    "--table=5": "--table=5: wanted a whole number from 1 to 4",
    "--table=two": "--table=two: wanted a whole number from 1 to 4",
    "--figure=11": "--figure=11: wanted a whole number from 1 to 10",
    "--table=2 --model=2nn": "unknown model of table 2 '2nn'; did you mean 'cnn'? Known: cnn, lstm.",
    "--table=3 --partition=noniid": "--partition=noniid; wanted iid, as the cells have no other",
    "--figure=4 --target=0.5": "--target=0.5; figure 4 has no target; leave it out",
    "--table=2 --target=nan": "--target=nan: wanted a number above 0, at most 1",
    "--table=2 --time_budget_s=0": "--time_budget_s=0: wanted seconds above 0",
    "--table=2 --time_budget_s=nan": "--time_budget_s=nan: wanted seconds above 0",
    "--figure=1 --time_budget_s=9": "--time_budget_s is given; figure 1 is made in one go",
    "--table=4 --rounds_limit=0": "--rounds_limit=0: wanted a whole number from 1 to 2147483647",
    "--figure=9 --rounds_limit=2147483647": "makes 1073741823500 rounds of one row; wanted at most",
    "--table=4 --most_rates=0": "--most_rates=0: wanted a whole number from 1",
    "--table=4 --client_lrs=0.1,-1": "--client_lrs holds '-1'; wanted a number from 1.18e-38 to 3.4e+38",
    "--table=4 --client_lrs=0": "--client_lrs holds '0'; wanted a number",
    "--table=4 --client_lrs=1e39": "--client_lrs holds '1e39'; wanted a number",
    "--figure=6 --client_lrs=0.1,0.2": "--client_lrs=0.1,0.2; figures 6 and 8 need one rate",
    "--table=4 --seeds=4294967296": "--seeds holds '4294967296'; wanted a whole number from 0 to",
    "--table=4 --seeds=-1": "--seeds holds '-1'; wanted a whole number",
    "--table=4 --seeds=1,1": "--seeds holds 1 twice",
    "--table=4 --rows=": "--rows is empty",
    "--table=4 --rows=E=7": "unknown row 'E=7'. Known: E=1/B=10, E=1/B=50, E=1/B=inf, E=10/B=10,",
    "--table=4 --data_dir=": "--data_dir=: wanted a name",
    "--table=4 --workdir=": "--workdir=: wanted a name",
    "--report --workdir=/dev/null": "--workdir=/dev/null: /dev/null is not a folder",
    "--table=4 --mesh=3": "--mesh=3: mesh_runs is 3, which does not divide the 2 devices",
}


@pytest.mark.parametrize("flags", REFUSED, ids=lambda flags: flags or "nothing")
def test_what_is_not_in_the_paper_is_refused_with_what_is(script, flags):
    assert REFUSED[flags] in refusal(script, *flags.split())


def test_the_workdir_of_another_script_is_refused(script, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "belongs to a run of another script" in refusal(script, "--report", f"--workdir={tmp_path}")


def test_how_much_a_file_may_unpack_to_reaches_the_loader(script, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(10_000)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    check(script, "--table=1", f"--data_dir={tmp_path}", "--max_unpacked_gb=1e-6")
    with pytest.raises(ValueError, match="wanted at most max_unpacked_bytes, 1,000"):
        script._paper_data("2nn")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--table=4 --seeds=-1", "reproduce.py: --seeds holds '-1'"),
        ("--table=4 --partition=iid", "data_dir is None; give the folder that holds train-images-idx3"),
    ],
)
def test_bad_flags_end_with_a_cure_and_nothing_written(tmp_path, flags, message):
    process = start(*flags.split(), cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.json"))


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


def run_small(data, *flags, cwd):
    """The record of the only cell that was run, standard output and error."""
    out, err = finish(start(f"--data_dir={data}", *flags, cwd=cwd))
    (path,) = (cwd / "w" / "cells").glob("*.json")
    return path.stem, json.loads(path.read_text()), out, err


def curves_of(record, *names):
    return [tuple(run[name] for name in names) for run in record["runs"]]


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plays")
    lines = [f"Words, words, words {i}." for i in range(5)]
    speeches = (shakespeare_corpus.speech(role, *lines) for role in ("HAMLET", "POLONIUS", "OPHELIA"))
    play = shakespeare_corpus.work("HAMLET", "".join(speeches))
    shakespeare_corpus.write(folder, shakespeare_corpus.text(play))
    return folder


LSTM_CELL = "lstm-noniid-C0.1-E1-B10"
LSTM_FLAGS = ("--table=2", "--model=lstm", "--partition=noniid", "--rows=E=1/B=10", "--client_lrs=1.47")


@pytest.fixture(scope="module")
def lstm(plays, tmp_path_factory):
    """A cell of Shakespeare, for one round: its workdir and what `run_small` returns."""
    cwd = tmp_path_factory.mktemp("lstm")
    flags = (*LSTM_FLAGS, "--most_rates=1", "--rounds_limit=1")
    return cwd / "w", *run_small(plays, *flags, cwd=cwd)


@pytest.mark.slow
def test_a_cell_of_shakespeare_is_run_at_one_rate(lstm):
    workdir, name, record, out, err = lstm
    assert name == LSTM_CELL
    assert (record["cell"]["dataset"], record["cell"]["target"]) == ("shakespeare", 0.54)
    assert (record["test_rows"], record["most_rates"]) == (3, 1)
    assert curves_of(record, "rate", "rounds") == [(1.47, [0, 1])]
    assert "| E=1/B=10 | noniid | 7.4 | 164 (23.8x) | - | - | not reached in 1 rounds | 1.47" in out
    assert (workdir / "figure2.png").exists()
    assert "all done" in err
    assert not list((workdir / "under_way").iterdir())


@pytest.mark.slow
def test_a_cell_run_in_parts_leaves_the_record_of_one_run_in_one_go(plays, lstm, tmp_path):
    _, _, whole, printed, _ = lstm
    flags = (*LSTM_FLAGS, "--most_rates=1", "--rounds_limit=1", "--time_budget_s=0.001")
    part = start(f"--data_dir={plays}", *flags, cwd=tmp_path)  # just the evaluation before any training
    out, err = part.communicate(timeout=300)
    assert part.returncode == 75, err
    assert out == ""
    assert "(0 of at most 1 rounds are done; repeat the sweep to continue from w/under_way/" in err
    assert f"cells done: 0 of 1; left: {LSTM_CELL}\n" in err
    assert f"to continue: python {SCRIPT} --data_dir={plays} --table=2 " in err
    assert [path.name for path in (tmp_path / "w" / "under_way").iterdir()] == [LSTM_CELL]
    name, record, out, err = run_small(plays, *flags, cwd=tmp_path)
    assert (name, out) == (LSTM_CELL, printed)
    assert "all done" in err
    assert not list((tmp_path / "w" / "under_way").iterdir())
    for key in whole.keys() - {"command", "date", "seconds", "runs"}:
        assert record[key] == whole[key]
    for run, one_go in zip(record["runs"], whole["runs"], strict=True):
        assert run | {"seconds": 0} == one_go | {"seconds": 0}
    assert record["seconds"] > record["runs"][0]["seconds"]


@pytest.mark.slow
def test_many_local_epochs_are_followed_at_the_papers_rate(plays, tmp_path):
    flags = ("--figure=3", "--partition=noniid", "--rows=E=5/B=10", "--rounds_limit=1")
    name, record, out, err = run_small(plays, *flags, cwd=tmp_path)
    assert name == "figure3-lstm-noniid-C0.1-E5-B10"
    assert curves_of(record, "rate", "rounds", "rounds_to_target") == [(1.47, [0, 1], None)]
    assert out == ""
    assert "wrote w/figure3.png" in err


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """CIFAR-10's files with 20 images each, so that each of a hundred clients has one."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / f"{name}.bin")
    return folder


@pytest.mark.slow
def test_sequential_sgd_is_read_at_three_targets(images, tmp_path):
    flags = ("--table=3", "--rows=SGD/B=100", "--client_lrs=0.1", "--most_rates=1", "--rounds_limit=2")
    name, record, out, err = run_small(images, *flags, cwd=tmp_path)
    assert name == "cifar-iid-sgd-B100"
    assert (record["cell"]["algorithm"], record["cell"]["target"]) == ("sgd", 0.85)
    assert curves_of(record, "rate", "rounds") == [(0.1, [0, 1, 2])]
    rows = [line for line in out.splitlines() if "SGD/B=100" in line]
    assert [row.split("|")[4].strip() for row in rows] == [f"{n} (1.0x)" for n in (18000, 31000, 99000)]
    assert [f"rounds to {n}% test accuracy" in err for n in (80, 82, 85)] == [True] * 3


@pytest.mark.parametrize(
    ("flags", "name", "rates", "rounds"),
    [
        (
            ("--figure=4", "--rows=E=1/B=inf", "--rounds_limit=2"),
            "figure4-cifar-iid-C0.1-E1-Binf",
            [0.45, 0.6, 0.7],
            [0, 1, 2],
        ),
        (
            ("--figure=9", "--rows=C=0/E=5/B=50", "--rounds_limit=1"),
            "figure9-cifar-iid-C0-E5-B50",
            [0.15],
            list(range(11)),  # each computes a tenth of the gradients that a round of C = 0.1 does
        ),
    ],
)
@pytest.mark.slow
def test_figures_of_cifar_10_have_runs_of_their_own(images, tmp_path, flags, name, rates, rounds):
    found, record, _, _ = run_small(images, *flags, cwd=tmp_path)
    assert found == name
    assert record["cell"]["lr_decay"] == (0.9934 if "Binf" in name else 0.99)
    assert curves_of(record, "rate", "rounds") == [(rate, rounds) for rate in rates]
    assert (tmp_path / "w" / f"{flags[0][2:].replace('=', '')}.png").exists()


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Twelve authors, one of whom is to test on, with enough words for the vocabulary."""
    said = {f"author{a}": [" ".join(f"w{a}x{i}" for i in range(1000))] for a in range(12)}
    return message_corpus.write(tmp_path_factory.mktemp("chats"), said)


@pytest.mark.slow
def test_words_race_for_the_target_asked_for(chats, tmp_path):
    flags = ("--figure=5", "--rows=E=1/B=inf", "--target=0.9", "--client_lrs=9,18", "--most_rates=2")
    name, record, _, err = run_small(chats, *flags, "--rounds_limit=1", "--report", cwd=tmp_path)
    assert name == "word-noniid-m200-E1-Binf"
    assert (record["cell"]["target"], record["cell"]["clients_per_round"]) == (0.9, 200)
    assert curves_of(record, "rate", "rounds") == [(9, [0, 1]), (18, [0, 1])]
    assert "wrote w/figure5.png" in err
    parts = (tmp_path / "w" / "tables.md").read_text().split("## ")[1:]
    assert [part.splitlines()[0] for part in parts] == [
        f"Word LSTM: rounds to {n}% test accuracy" for n in (10.5, 90)
    ]
    for part, paper in zip(parts, ("820 (1.0x)", "-"), strict=True):
        assert f"| E=1/B=inf | noniid | - | {paper} | - | - | not reached in 1 rounds |" in part
    assert "<h2>Figure 5</h2>" in (tmp_path / "w" / "report.html").read_text()
