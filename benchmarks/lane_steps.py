"""Times training steps of lanes with convolutions chosen by the table, beside patches everywhere.

    python benchmarks/lane_steps.py --out=benchmarks/results/lane_steps.json

`lane_convolutions.py` times products alone; this times what their choice gains in a whole step. Rounds
of FedAvg on generated images, with one client per lane, take turns in one process.
"""

import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import fedjax_sim as fs

lane_conv = fs.models.ops.lane_conv

_CASES = flags.DEFINE_list(
    "cases",
    ["cnn:4:10", "cnn:16:10", "cifar:4:10", "dropout_cnn:4:10", "dropout_cnn:16:10"],
    "Cases to time, each model:lanes:B.",
)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of each client in a round.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 7, "Rounds to time.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

MODELS = {
    "cnn": (fs.models.mnist_cnn, (28, 28, 1)),
    "cifar": (fs.models.cifar_cnn, (32, 32, 3)),
    "dropout_cnn": (lambda: fs.models.dropout_cnn(10, (32, 32, 3)), (32, 32, 3)),
}
WAYS = {"patches": lambda *_: "patches", "chosen": lane_conv.choose}


def compiled_round(model, lanes, batch_size, choose):
    """Compiles a round with convolutions chosen by `choose`."""
    make_task, shape = MODELS[model]
    rng, size = np.random.default_rng(0), batch_size * _STEPS.value
    x = rng.integers(0, 256, (lanes * size, *shape), np.uint8)
    rows = fs.data.from_arrays(x, rng.integers(0, 10, len(x)).astype(np.int32), num_classes=10)
    data = fs.data.federate(rows, fs.data.iid(num_clients=lanes, seed=0))
    algorithm = fs.fed_avg(make_task(), client_lr=0.01, local_epochs=1, batch_size=batch_size)
    rates = {name: np.float32(value) for name, value in algorithm.hparams.items()}
    state = algorithm.init(jax.random.key(0), rates, data.num_clients)
    cohort = fs.Cohort(jnp.arange(lanes, dtype=jnp.int32), fs.Layout(lanes))
    lane_conv.choose = choose
    program = jax.jit(algorithm.round).lower(jax.random.key(1), state, (), data, cohort).compile()
    return lambda: jax.block_until_ready(program(jax.random.key(1), state, (), data, cohort))


def measure(case):
    """Returns the seconds of a step for each way of convolving, as wall and processor time."""
    model, lanes, batch_size = case.split(":")
    rounds = {
        name: compiled_round(model, int(lanes), int(batch_size), way) for name, way in WAYS.items()
    }
    wall, processor = ({name: [] for name in WAYS} for _ in range(2))
    for turn in range(_TURNS.value + 1):
        for name, play in rounds.items():
            started, used = time.perf_counter(), time.process_time()
            play()
            if turn:  # the first warms up
                processor[name].append((time.process_time() - used) / _STEPS.value)
                wall[name].append((time.perf_counter() - started) / _STEPS.value)
    return {"case": case, "wall_seconds": wall, "processor_seconds": processor}


def ratio(times):
    """Returns the median over turns of chosen over patches everywhere."""
    return statistics.median(c / p for c, p in zip(times["chosen"], times["patches"], strict=True))


def main(_):
    report = fs.reporting.provenance() | {"steps": _STEPS.value, "rows": []}
    print("| model:lanes:B | patches, ms a step | chosen, ms | wall ratio | processor ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for case in _CASES.value:
        row = measure(case)
        ms = {name: 1e3 * statistics.median(seconds) for name, seconds in row["wall_seconds"].items()}
        row["wall_ratio"] = ratio(row["wall_seconds"])
        row["processor_ratio"] = ratio(row["processor_seconds"])
        report["rows"].append(row)
        ratios = f"{row['wall_ratio']:.2f} | {row['processor_ratio']:.2f}"
        print(f"| {case} | {ms['patches']:.1f} | {ms['chosen']:.1f} | {ratios} |", flush=True)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
