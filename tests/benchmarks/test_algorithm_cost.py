"""The benchmark of algorithms' rounds runs, and has a column for each algorithm."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARK = pathlib.Path(__file__).parents[2] / "benchmarks" / "algorithm_cost.py"


@pytest.mark.slow
def test_rounds_are_timed_over_those_of_fed_avg(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARK), "--smoke", "--rounds=3", "--repeats=1", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [(row["clients"], row["lanes"]) for row in found["rows"]] == [(10, 1)]
    for name in ("scaffold", "kept updates", "median", "top_k"):
        assert all(row[f"{name} / fed_avg"] > 0 for row in found["rows"]), name
    assert "| scaffold / fed_avg |" in done.stdout
