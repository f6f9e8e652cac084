"""Runs of scripts/train.py as a user runs it: another process, flags, files."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def train(*flags, cwd, check=True):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
