"""The benchmarks of learners, run as a user runs them, on little data."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


def run(script, *flags):
    command = [sys.executable, ROOT / "benchmarks" / script, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_small_benchmark_of_communication_reports_what_it_promises(tmp_path):
    flags = (
        "--experiments=drift",
        "--learners=6",
        "--steps=40",
        "--periods=10,20",
    )
    grids = (
        "--deltas=0,0.3",
        "--hedged_deltas=",
        "--fraction_period=20",
        "--fractions=0.5",
        "--rates=0.1",
    )
    done = run("communication.py", *flags, *grids, f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "- rate 0.1: dynamic, b=10, Δ=0" in done.stdout

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"drift.json", "drift.md", "drift.png", "drift_over_time.png"}
    report = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert {"command", "date", "machine", "versions", "flags"} <= report.keys()
    points = report["points"]
    found = {(p["protocol"], p["b"], p.get("delta"), p.get("fraction")): p for p in points}
    periodic, zero = found["periodic", 10, None, None], found["dynamic", 10, 0.0, None]
    model = 4 * (50 * 2 + 2)
    assert periodic["bytes"] == zero["bytes"] == 4 * 6 * 2 * model
    # Compiled apart, so that sums may differ in their last digits.
    assert periodic["cumulative_loss"] == pytest.approx(zero["cumulative_loss"], rel=1e-6)
    assert found["fed_avg", 20, None, 0.5]["bytes"] == 2 * 3 * (2 * model + 4)
    assert found["none", 10, None, None]["bytes"] == 0
    assert len(points) == 6


def test_the_benchmark_of_communication_refuses_what_it_cannot_compare(tmp_path):
    done = run("communication.py", "--periods=50", f"--out={tmp_path}")
    assert done.returncode == 1
    assert "--periods lack --period=10" in done.stderr


def test_a_small_benchmark_of_rounds_reports_what_it_promises(tmp_path):
    out = tmp_path / "out.json"
    done = run(
        "learner_rounds.py", "--smoke", "--learners=4", "--rounds=2", "--repeats=1", f"--out={out}"
    )
    assert done.returncode == 0, done.stderr
    assert "| dynamic, silent |" in done.stdout
    report = json.loads(out.read_text())
    assert {"command", "date", "machine", "versions", "method", "gemm_gflops"} <= report.keys()
    sent = {row["protocol"]: row["models_up"] for row in report["rows"]}
    assert (sent["none"], sent["dynamic, silent"], sent["periodic"]) == (0, 0, 4)
    assert all(row["median"] > 0 and row["of_peak"] > 0 for row in report["rows"])
