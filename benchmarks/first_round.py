"""Times a first round from a fresh process, and where the time goes.

    python benchmarks/first_round.py --out=benchmarks/results/first_round.json

The README's example: digits, 100 clients, the 2NN, E = 5, B = 10, one round with two evaluations. "Cold"
processes find no compiled programs, "warm" ones those of a process before (`fs.runtime.keep_programs`).
Cold and warm processes take turns. "Again" runs the same lines once more in the same process.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from absl import app, flags

import fedjax_sim as fs

_TURNS = flags.DEFINE_integer("turns", 5, "Cold and warm processes to time.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

PROGRAM = """
import json, sys, time
started = last = time.perf_counter()
seconds = {}

def lap(name):
    global last
    now = time.perf_counter()
    seconds[name], last = now - last, now

import jax, optax
lap("import jax, optax")
import fedjax_sim as fs
lap("import fedjax_sim")
fs.runtime.keep_programs(sys.argv[1])

def cell():
    train, test = fs.data.load("mnist5k")
    clients = fs.data.federate(train, fs.data.shards(num_clients=100, shards_per_client=2, seed=0))
    lap("data")
    task = fs.models.mnist_2nn()
    algorithm = fs.fed_avg(task, optax.sgd, client_lr=0.1, local_epochs=5, batch_size=10)
    evaluate = fs.evaluator(task, test)
    lap("task, algorithm, evaluation")
    result = fs.simulate(algorithm, clients, key=jax.random.key(0), num_rounds=1, evaluate=evaluate)
    seconds["compiling (part of the first round)"] = result.compile_seconds
    seconds["programs"] = result.compilations
    lap("first round")

cell()
seconds["from start to first round"] = time.perf_counter() - started
again = time.perf_counter()
told = dict(seconds)
cell()
told["again"] = time.perf_counter() - again
told["programs again"] = seconds["programs"]
print(json.dumps(told))
"""


def timed(folder):
    """Returns name -> seconds of one process that keeps its programs in `folder`."""
    command = [sys.executable, "-c", PROGRAM, folder]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    turns = {"cold": [], "warm": []}
    for _ in range(_TURNS.value):
        with tempfile.TemporaryDirectory() as folder:
            for times in turns.values():
                times.append(timed(folder))
    medians = {
        kind: {name: statistics.median(turn[name] for turn in times) for name in times[0]}
        for kind, times in turns.items()
    }
    names = list(medians["cold"])
    rows = [{"": name} | {kind: f"{medians[kind][name]:.2f}" for kind in medians} for name in names]
    print(fs.reporting.markdown(rows))
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": __doc__, "medians": medians, "turns": turns}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
