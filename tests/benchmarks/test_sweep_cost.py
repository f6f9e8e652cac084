"""The benchmark of sweeps, run as a user runs it, on little data."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_small_benchmark_of_sweeps_reports_what_it_promises(tmp_path):
    out = tmp_path / "out.json"
    script = ROOT / "benchmarks" / "sweep_cost.py"
    flags = ("--small", "--models=logistic", "--rounds=2", "--rates=1,2", "--seeds=2", f"--out={out}")
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| logistic, 2 x 2 |" in done.stdout

    report = json.loads(out.read_text())
    assert {"command", "date", "machine", "versions", "flags", "method"} <= report.keys()
    assert report["gemm_gflops"] > 0
    assert [(row["rates"], row["seeds"]) for row in report["rows"]] == [
        ([0.01], [0, 1]),
        ([0.01, 0.1], [0, 1]),
    ]
    ratios = {"sweep_over_singles", "sweep_over_one_run", "of_peak"}
    for row in report["rows"]:
        assert row["model"] == "logistic"
        assert row["largest_difference"] <= 1e-4
        counts = {name: len(times) for name, times in row["seconds"].items()}
        assert counts == {"sweep": 3, "single run": 9}
        assert all(row[name] > 0 for name in {"sweep_seconds", "singles_seconds", "gflops"} | ratios)
