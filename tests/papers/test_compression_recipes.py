"""The recipes of papers on compression, on less than their own scale: what each shows."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts" / "papers"

pytestmark = pytest.mark.slow


def run(script, *arguments, out):
    command = [sys.executable, str(SCRIPTS / script), *arguments, f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_drive_has_the_errors_of_its_table(tmp_path):
    rows = run("drive.py", "--size=8192", "--trials=20", out=tmp_path / "found.json")["rows"]
    assert len(rows) == 6
    for row in rows:
        assert row["error"] == pytest.approx(row["published"], rel=0.03), row["codec"]


def test_signs_cope_with_sparse_noise_and_need_error_feedback(tmp_path):
    rows = run("sign_sgd.py", "--repeats=3", out=tmp_path / "found.json")["rows"]
    sgd, signs = (float(row["objective"]) for row in rows[:2])
    assert signs < sgd / 2
    outside = {row["method"]: float(row["squared distance from the span"]) for row in rows[2:]}
    assert outside["signSGD, scaled"] > 1
    assert max(outside["SGD"], outside["EF-signSGD"]) < 1e-3


def test_choco_goes_on_where_earlier_schemes_stall(tmp_path):
    size = ["--learners=9", "--size=200", "--rounds=4000"]
    found = run("choco.py", *size, f"--plot={tmp_path / 'curves.png'}", out=tmp_path / "found.json")
    ends = {row["scheme"]: row["errors"][-1] / found["start"] for row in found["runs"]}
    assert ends["exact"] < 1e-6
    for codec in ("top 1 %", "random 1 %", "QSGD, 8 bits"):
        assert ends[f"CHOCO, {codec}"] < 0.1 * ends[f"Q1, {codec}"]
    assert (tmp_path / "curves.png").stat().st_size > 0
