"""The benchmark of clients' memory, run as a user runs it, on few clients."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "client_memory.py"


@pytest.mark.slow
def test_a_small_benchmark_of_clients_memory_reports_what_it_promises(tmp_path):
    out = tmp_path / "out.json"
    flags = ("--smoke", "--clients=40,80", "--cohorts=4", "--rounds=4", "--repeats=2", f"--out={out}")
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| host | 80 | 4 |" in done.stdout

    report = json.loads(out.read_text())
    assert {"command", "date", "machine", "versions", "method"} <= report.keys()
    on_device, few, many = report["rows"]
    assert [row["memory"] for row in report["rows"]] == ["device", "host", "host"]
    row_bytes = 4 * 7_850  # of logistic regression
    for row in report["rows"]:
        assert [len(seconds) for seconds in row["round_seconds"]] == [3, 3]
        assert row["all_bytes"] == row["clients"] * row_bytes
        assert row["seconds_per_round"] > 0
    assert few["ratio"] == 1
    assert on_device["live_bytes"] > on_device["all_bytes"]
    assert many["live_bytes"] < few["all_bytes"]
    sizes = 4 * (many["clients"] - few["clients"])  # the sampler's `n_k` of all clients, int32
    assert many["live_bytes"] == few["live_bytes"] + sizes
    assert many["program_bytes"] == few["program_bytes"]
    assert 4 * row_bytes <= few["file_bytes"] <= 16 * row_bytes
