"""The benchmark of accelerators, run as a user runs it, on little data."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_small_run_checks_and_measures_every_part(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, BENCHMARKS / "accelerator.py", "--small", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert "| 2nn, cohort 2 |" in done.stdout
    assert {"command", "date", "machine", "versions", "xla_flags", "platform", "method"} <= report.keys()
    assert report["failed"] == []
    assert {lack["part"] for lack in report["left_out"]} <= {"pytorch"}

    parts = report["parts"]
    assert all(0 < row["difference"] < 1e-3 and row["agrees"] for row in parts["correctness"].values())
    assert {"gemm float32", "gemm bfloat16", "bandwidth", "launches"} < parts["ceilings"].keys()
    timed = ["rounds of 2", "rounds of 4", "lanes", "sweeps", "p1", "bfloat16"]
    for row in (row for part in timed for row in parts[part].values()):
        assert row["binding"] in ("products", "bandwidth")
        assert min(row[name] for name in ("seconds", "gflops", "bytes", "share", "compile_seconds")) > 0
    assert [row["runs"] for row in parts["sweeps"].values()] == [1, 2]
    assert len(parts["p1"]["p1"]["tests"]) == 3  # before training, after 2 rounds, after 4


# What is found of 2nn, cnn, char-lstm, cifar-cnn, word-lstm, pfl-cnn, in the order of the check.
WRONG = """
import concurrent.futures
import accelerator
accelerator.ThreadPoolExecutor = lambda: concurrent.futures.ThreadPoolExecutor(1)  # in order
found = iter([0.01, 0.02, 0.0, 0.0, float("nan"), 0.001])
accelerator.accelerator_check.difference = lambda model: next(found)
accelerator.app.run(accelerator.main)
"""


@pytest.mark.slow
def test_nothing_is_measured_where_rounds_are_wrong(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-c", WRONG, f"--out={out}", "--tolerance=0.01"]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "cnn, word-lstm: a round on" in done.stderr.splitlines()[-1]
    report = json.loads(out.read_text())
    agrees = [row["agrees"] for row in report["parts"].pop("correctness").values()]
    assert agrees == [True, False, True, True, False, True]
    assert not report["parts"]


def test_an_unknown_part_is_refused_before_the_check():
    command = [sys.executable, BENCHMARKS / "accelerator.py", "--small", "--parts=p1,p2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "--parts=p2: no such part; wanted some of ceilings, rounds of 2, p1" in done.stderr
    assert "correctness" not in done.stderr


def test_what_a_round_costs_at_least_is_known_of_every_model(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from accelerator_models import cost, models

    small, full = models(small=True), models(small=False)
    assert small.keys() == full.keys()
    weights = {name: cost(small[name], 1).bytes for name in ("2nn", "cnn")}
    assert weights == {"2nn": 24 * 199_210, "cnn": 24 * 1_663_370}  # one step of 8 images
    # Rows of 600 examples, 60 steps of 10: operations as benchmarks/round_time.py counts them.
    assert cost(full["2nn"], 10).flops == 10 * 600 * 3 * 2 * (784 * 200 + 200 * 200 + 200 * 10)
    for name, model in full.items():
        once, twice = cost(model, 1), cost(model, 2)
        assert 0 < once.flops == twice.flops / 2, name
        assert 0 < once.bytes == twice.bytes / 2, name
