"""Peers that compute something else, or are of another version, are named and never timed."""

import json
import pathlib
import subprocess
import sys

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

PEER = """
import json, sys
version, loss = sys.argv[1:3]
print(json.dumps({"ready": True, "versions": {"peer": version}}), flush=True)
for _ in sys.stdin:
    report = {"seconds": 1.0, "loss": float(loss), "param_norm": 2.0, "update_norm": 0.5}
    print(json.dumps(report), flush=True)
"""

CHECK = """
import json, pathlib, sys
import round_jobs, round_time
peers, job = map(pathlib.Path, sys.argv[1:])
commands = {
    "ours": [sys.executable, peers / "ours" / "run.py", "1.0", "3.0"],
    "near": [sys.executable, peers / "pinned" / "run.py", "2.1+cpu", "3.0001"],
    "far": [sys.executable, peers / "pinned" / "run.py", "2.1", "3.1"],
    "old": [sys.executable, peers / "pinned" / "run.py", "1.9", "3.0"],
    "crashed": [sys.executable, peers / "pinned" / "run.py"],
    "missing": [peers / "nowhere" / "python", peers / "pinned" / "run.py"],
}
data = {"digits": round_jobs.load_digits(None)}
able = round_time.check_agreement(commands, round_jobs.ROWS["2nn-10x600-b10"], data, job)
print(json.dumps(list(able)))
"""


def test_only_peers_that_agree_in_the_required_version_are_timed(tmp_path):
    for name in ("ours", "pinned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.py").write_text(PEER)
    (tmp_path / "pinned" / "requirements.txt").write_text("--extra-index-url x\npeer[extra]==2.1+cu1\n")
    command = [sys.executable, "-c", CHECK, tmp_path, tmp_path / "job.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["ours", "near"]
    lines = done.stderr.splitlines()
    for name, reason in (
        ("far", "'loss': '3.1 where ours is 3.0'"),
        ("old", "'peer': 'version 1.9 where 2.1+cu1 is required'"),
    ):
        assert [line for line in lines if f"2nn, B = 10: {name}: {{{reason}}}" in line], done.stderr
    assert any(line.startswith("Absent: crashed ended with status 1") for line in lines)
    assert any(line.startswith("Absent: missing did not start") for line in lines)
