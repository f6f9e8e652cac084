"""The benchmark of populations, run as a user runs it, on few clients."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_a_small_benchmark_of_populations_reports_what_it_promises(tmp_path):
    out = tmp_path / "out.json"
    script = ROOT / "benchmarks" / "population.py"
    flags = ("--smoke", "--rounds=3", f"--dir={tmp_path}", f"--out={out}")
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| 200 | host | 4,000 |" in done.stdout

    report = json.loads(out.read_text())
    assert {"command", "date", "machine", "versions", "cohort", "rounds", "method"} <= report.keys()
    assert [row["placement"] for row in report["rows"]] == ["device", "host"]
    for row in report["rows"]:
        assert (row["clients"], row["examples"], row["data_bytes"]) == (200, 4_000, 160_000)
        assert len(row["round_seconds"]) == len(row["slots"]) == 3
        positive = {"draw_seconds", "setup_seconds", "seconds_per_round", "seconds_per_slot"}
        assert all(row[name] > 0 for name in positive | {"round_bytes", "peak_bytes"})
    on_device, on_host = report["rows"]
    assert on_device["slots"] == on_host["slots"]
    assert on_device["hidden"] is None
    assert 0 <= on_host["hidden"] <= 1
    names = {"seconds_per_slot", "round_bytes", "peak_bytes"}
    assert report["ratios"] == {p: dict.fromkeys(names, 1) for p in ("device", "host")}
    assert list(tmp_path.iterdir()) == [out]


def test_the_largest_population_is_compared_with_the_reference():
    from population import ratios

    rows = [
        {
            "placement": placement,
            "clients": n,
            "seconds_per_slot": seconds,
            "round_bytes": n,
            "peak_bytes": 5,
        }
        for placement in ("device", "host")
        for n, seconds in ((10, 2.0), (100, 3.0), (1000, 5.0))
    ]
    expected = {"seconds_per_slot": 5 / 3, "round_bytes": 10, "peak_bytes": 1}
    assert ratios(rows, 100) == {"device": expected, "host": expected}
