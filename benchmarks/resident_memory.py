"""Measures the memory of a process while rounds run on a CPU, with XLA's YNNPACK and without it.

    python benchmarks/resident_memory.py --out=benchmarks/results/resident_memory.json

Each row is a process of its own, with a device per core: 10 clients, E = 1, B = 10, random data.
"before" is the resident memory after two rounds, "growth" how much more there was at most in one block
of many rounds, both in MB (2^20 bytes).
"""

import json
import os
import pathlib
import subprocess
import sys

from absl import app, flags

import fedjax_sim as fs

_ROUNDS = flags.DEFINE_integer("rounds", 20, "Factor on the rounds of the long block.", lower_bound=1)
_MODELS = flags.DEFINE_list("models", ["2nn", "cnn", "lstm"], "Models: 2nn, cnn, lstm.")
_OUT = flags.DEFINE_string("out", None, "File for the results, as JSON.")

FLAGS = {"with YNNPACK": "", "without": "--xla_cpu_experimental_ynn_fusion_type="}
PROGRAM = """
import json, pathlib, sys, threading
import jax, numpy as np
import fedjax_sim as fs

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) / 256

name, factor = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
if name == "lstm":
    task, rounds = fs.models.char_lstm(), 2
    x, y = rng.integers(0, 257, (2, 200, 80)).astype(np.int32)
else:
    task, rounds = (fs.models.mnist_2nn(), 20) if name == "2nn" else (fs.models.mnist_cnn(), 4)
    x = rng.integers(0, 256, (1000, 28, 28, 1)).astype(np.uint8)
    y = rng.integers(0, 10, 1000).astype(np.int32)
data = fs.data.federate(
    fs.data.from_arrays(x, y, num_classes=258 if name == "lstm" else 10), fs.data.iid(num_clients=10)
)
algorithm = fs.fed_avg(task, client_lr=0.01, local_epochs=1, batch_size=10)
about = {"key": jax.random.key(0), "clients_per_round": 10}
fs.simulate(algorithm, data, num_rounds=2, **about)
before, most, done = resident(), 0.0, threading.Event()

def watch():
    global most
    while not done.wait(0.01):
        most = max(most, resident())

watcher = threading.Thread(target=watch)
watcher.start()
rounds *= factor
result = fs.simulate(algorithm, data, num_rounds=rounds, eval_every=rounds, **about)
done.set()
watcher.join()
print(json.dumps({
    "before": before, "growth": most - before, "rounds": rounds,
    "ms per round": 1e3 * result.rows[-1]["round_seconds"],
}))
"""


def measured(model: str, xla_flags: str) -> dict[str, float]:
    """Returns the figures of one process."""
    given = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model, str(_ROUNDS.value)],
        env=os.environ | {"XLA_FLAGS": f"{given} {xla_flags}".strip()},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    found = [
        {"model": model, "XLA": name} | measured(model, xla_flags)
        for model in _MODELS.value
        for name, xla_flags in FLAGS.items()
    ]
    shown = [
        {name: f"{value:.0f}" if isinstance(value, float) else str(value) for name, value in row.items()}
        for row in found
    ]
    print(fs.reporting.markdown(shown))
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": __doc__, "rows": found}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
