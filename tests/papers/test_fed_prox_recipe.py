"""The recipe of FedProx, 60 rounds of one seed: what the paper's figures show."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "papers" / "fed_prox.py"


@pytest.mark.slow
def test_stragglers_help_and_the_pull_steadies(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), "--set=(1, 1)", "--seeds=1", "--rounds=60", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["runs"]) == 9
    loss = {(r["stragglers"], r["method"].split(",")[1]): r["loss"] for r in found["runs"]}
    dropped, kept, pulled = (loss[0.9, name] for name in (" drops stragglers", " mu = 0", " mu = 1"))
    assert dropped[10] > 1.5 * kept[10]  # in round 50: what stragglers did is worth keeping
    assert kept[10] > pulled[10]  # and worth more near the shared model
    # Without stragglers there is nothing to drop.
    assert loss[0.0, " drops stragglers"] == loss[0.0, " mu = 0"]
    assert "| (1, 1) | 90% | FedProx, mu = 1 |" in done.stdout
