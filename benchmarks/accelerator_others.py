"""Parts of `accelerator.py` with processes of their own: PyTorch's loop and the ways to convolve."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from accelerator_check import flat, reference_round
from accelerator_rounds import NotMeasuredError
from workers import Worker, save_job

HERE = Path(__file__).parent
_COHORT = 10
_ROUNDS = 5
_MOST_SECONDS = 15.0
_SMALL_SIZES = (10, 20, 30)
# TF32 products differ in the third digit, and rounding flips a ReLU now and then.
_AGREEMENT = 2e-2


def layers(name, params):
    """Returns our parameters under the job's names of layers."""
    if name == "2nn":
        return {f"fc{i + 1}": params[f"Dense_{i}"] for i in range(3)}
    return {
        "conv1": params["ConvPool_0"],
        "conv2": params["ConvPool_1"],
        "fc1": params["MLP_0"]["Dense_0"],
        "fc2": params["MLP_0"]["Dense_1"],
    }


def rounds_of(command, path, count, seconds):
    """Returns what the program says when it is ready, and after each of at most `count` rounds."""
    with closing(Worker("PyTorch", [*command, path])) as worker:
        reports, started = [], time.perf_counter()
        while len(reports) < count and (len(reports) < 2 or time.perf_counter() - started < seconds):
            reports.append(worker.round())
        return worker.ready, reports


def pytorch(context, name, python, ours, left):
    """Returns a row of PyTorch's loop over clients on the same device, beside `ours`, our row.

    Raises:
      NotMeasuredError: PyTorch is not installed.
      ValueError: PyTorch computes something else.
    """
    if python is None and importlib.util.find_spec("torch") is None:
        raise NotMeasuredError("no PyTorch here; give --pytorch_python")
    command = [python or sys.executable, HERE / "peers" / "pytorch" / "run.py"]
    model, task = context.model(name), context.model(name).task()
    params = jax.tree.map(np.asarray, jax.jit(task.init)(jax.random.key(0)))
    settings = {"model": name, "batch_size": model.batch_size, "local_epochs": 1, "learning_rate": 0.1}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.npz"

        def job(sizes, draws):
            columns = model.draw(np.random.default_rng(0), sum(sizes))
            offsets, own = np.cumsum([0, *sizes]), layers(name, params)
            save_job(path, **columns, offsets=offsets, params=own, draws=draws, **settings)
            return columns

        columns = job(_SMALL_SIZES, draws=False)
        _, (report, *_) = rounds_of(command, path, 1, 0)
        wanted = reference_round(task, params, columns, _SMALL_SIZES, 0.1, model.batch_size)
        norm = np.linalg.norm(flat(wanted) - flat(params))
        apart = abs(report["update_norm"] / norm - 1)
        if not apart <= _AGREEMENT:
            raise ValueError(f"PyTorch's update is {apart:.1e} off in length; wanted {_AGREEMENT}")

        job((model.size,) * _COHORT, draws=True)
        ready, reports = rounds_of(command, path, 1 + _ROUNDS, min(left, _MOST_SECONDS))
    seconds = [report["seconds"] for report in reports[1:]]  # the first one warms up
    median = statistics.median(seconds)
    row = {"block_seconds": seconds, "seconds": median, "apart": apart, "versions": ready["versions"]}
    return row | ({"over_ours": median / ours["seconds"]} if ours else {})


def pytorch_steps(context, python, rows):
    """Yields rows of the 2NN and the CNN; `rows` holds all rows so far, part -> name -> row."""

    def ours(name):
        return rows.get(f"rounds of {_COHORT}", {}).get(name)

    for name in ("2nn",) if context.small else ("2nn", "cnn"):
        row = f"{name}, cohort {_COHORT}"
        yield (
            f"PyTorch, {row}",
            lambda left, name=name, row=row: pytorch(context, name, python, ours(row), left),
        )


def lane_convolutions(left):
    """Returns a row with a few rows of `lane_convolutions.py`.

    Raises:
      NotMeasuredError: the program takes too long.
    """
    few = ("--layers=mnist-conv2,cifar-conv2,pfl-conv2", "--lanes=64", "--batch_sizes=10", "--repeats=3")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, HERE / "lane_convolutions.py", *few, f"--out={out}"]
        # This process holds most of the device's memory.
        settings = {"env": os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, "timeout": left}
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, **settings)
        except subprocess.TimeoutExpired as error:
            raise NotMeasuredError(f"took more than {left:.0f} s; run it by itself") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"lane_convolutions.py failed: {error.stderr[-500:]}") from error
        return {"rows": json.loads(out.read_text())["rows"]}
