"""The benchmark of first rounds, run as a user runs it, once."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "first_round.py"


@pytest.mark.slow
def test_a_second_process_compiles_nothing_anew(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, SCRIPT, "--turns=1", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    medians = json.loads(out.read_text())["medians"]
    compiling = "compiling (part of the first round)"
    assert 0 < medians["warm"][compiling] < medians["cold"][compiling]
    assert medians["cold"]["programs again"] == medians["warm"]["programs again"] == 0
    assert "| first round |" in done.stdout
