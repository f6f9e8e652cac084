"""The profile of rounds, run as a user runs it, on little data."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def profile(*arguments):
    command = [sys.executable, BENCHMARKS / "round_profile.py", "--small", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.slow
def test_operations_are_listed_by_time(tmp_path):
    out = tmp_path / "out.json"
    done = profile("--rounds=2nn:2,p1", "--listed=4", f"--out={out}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rounds"]
    assert [row["round"] for row in rows] == ["2nn:2", "p1"]
    for row in rows:
        assert len(row["block_seconds"]) == 5
        assert row["busy"] > 0
        times = [float(operation["ms a round"]) for operation in row["operations"]]
        assert len(times) == 4
        assert times == sorted(times, reverse=True)
        assert sum(times) / 1e3 < 2 * row["traced_seconds"]  # two threads
        assert f"| {row['operations'][0]['name']} |" in done.stdout


@pytest.mark.slow
def test_an_unknown_model_is_refused():
    done = profile("--rounds=3nn:2")
    assert done.returncode == 1
    assert "got '3nn:2', wanted p1 or one of ['2nn'" in done.stderr + done.stdout
