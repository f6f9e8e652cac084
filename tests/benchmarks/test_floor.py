"""The floor of a round counts all products of a step, each as often as the step computes it."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

COUNT = """
import json, math, sys
import floor, round_jobs, workers
data = {"digits": round_jobs.load_digits(None), "text": round_jobs.draw_text()}
flops = {}
for name in ("2nn-10x600-b10", "lstm-10x20-b10"):
    round_jobs.make_job(sys.argv[1], round_jobs.ROWS[name], data)
    found = floor.step_products(workers.load_job(sys.argv[1]))
    flops[name] = 0
    for (_, params, ((left, _), (right, _))), count in found.items():
        (over, over_right), (batched, _) = dict(params)["dimension_numbers"]
        contracted = math.prod(left[i] for i in over)
        free = math.prod(n for i, n in enumerate(right) if i not in over_right and i not in batched)
        flops[name] += 2 * count * math.prod(left) * free
print(json.dumps(flops))
"""


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_products_of_a_step_have_all_its_operations(tmp_path):
    flops = json.loads(run(sys.executable, "-c", COUNT, tmp_path / "job.npz"))
    # Per layer: forward, gradient of the kernel and, except for the first, of the layer's input.
    assert flops["2nn-10x600-b10"] == 2 * 10 * (2 * 784 * 200 + 3 * 200 * 200 + 3 * 200 * 10)
    lstm1, lstm2, fc = (8 + 256) * 1024, (256 + 256) * 1024, 256 * 258
    # The first state of both LSTMs is zero, so it adds nothing to the gradient of their kernels.
    zero = 2 * 256 * 1024
    assert flops["lstm-10x20-b10"] == 2 * 10 * (80 * 3 * (lstm1 + lstm2 + fc) - zero)


@pytest.mark.slow
def test_a_row_prints_its_table(tmp_path):
    out = tmp_path / "floor.json"
    printed = run(sys.executable, "floor.py", "--rows=2nn-10x600-b10", "--turns=1", f"--out={out}")
    row = json.loads(out.read_text())["rows"]["2nn-10x600-b10"]
    assert f"2nn-10x600-b10: {1e3 * row['seconds']:.1f} ms, 600 steps" in printed
    each = sum(row["counts"][name] * seconds for name, seconds in row["parts"].items())
    cores = int(printed.partition("steps on ")[2].split()[0])
    assert row["seconds"] == pytest.approx(each * row["steps"] / cores)
