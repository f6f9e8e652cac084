"""The benchmark of resident memory, run as a user runs it, with few rounds."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "resident_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_benchmark_of_resident_memory_reports_what_it_promises(tmp_path):
    out = tmp_path / "out.json"
    flags = ("--models=2nn", "--rounds=1", f"--out={out}")
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| 2nn | without |" in done.stdout
    report = json.loads(out.read_text())
    assert {"command", "date", "machine", "versions", "method"} <= report.keys()
    assert [row["XLA"] for row in report["rows"]] == ["with YNNPACK", "without"]
    for row in report["rows"]:
        assert row["rounds"] == 20
        assert row["before"] > 100
        assert 0 <= row["growth"] < 1000
        assert row["ms per round"] > 0
