"""Asks whether how the 2NN starts and how its inputs are scaled explains the FedAvg paper's rounds.

    python benchmarks/initialisation.py --data_dir=DIR --out=benchmarks/results/initialisation_iid.json
    python benchmarks/initialisation.py --data_dir=DIR --partition=noniid --seeds=0 \\
        --variants=glorot/unit,tutorial/unit --out=...

McMahan et al. (2017) print neither. FedAvg with E = 1, B = 10 and C = 0.1 on MNIST runs to 97 % test
accuracy from initialisations and with inputs that tutorials of TensorFlow used in 2016, each at the best
rate of the paper's grid, which is widened until the best lies inside.
"""

import functools
import itertools
import json
import math
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging

import fedjax_sim as fs

SIZES = (784, 200, 200, 10)
TARGET = 0.97


def truncated(stddev, key, shape):
    """TensorFlow's `truncated_normal`: what lies beyond two standard deviations is drawn again."""
    return stddev * jax.random.truncated_normal(key, -2, 2, shape)


def glorot(key, shape):
    limit = math.sqrt(6 / sum(shape))
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def unit_scaling(key, shape):
    """TensorFlow's `uniform_unit_scaling_initializer`, in 2016 what `get_variable` used by default."""
    limit = math.sqrt(3 / shape[0])
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


# name -> the weights of a layer `[in, out]`, all biases, and where that stood.
INITS = {
    "glorot": (glorot, 0.0, "this package's; Keras's"),
    "tutorial": (functools.partial(truncated, 0.1), 0.1, "Deep MNIST for experts"),
    "fan_in": (lambda k, s: truncated(1 / math.sqrt(s[0]), k, s), 0.0, "TensorFlow's mnist.py"),
    "unit_scaling": (unit_scaling, 0.0, "the default of get_variable"),
    "cifar": (functools.partial(truncated, 0.04), 0.1, "the dense layers of the CIFAR-10 tutorial"),
    "normal": (jax.random.normal, 0.0, "normal with deviation 1, as in widely copied examples"),
}
# name -> the floats made of bytes.
INPUTS = {
    "unit": lambda x: x.astype(jnp.float32) / 255,  # to [0, 1]
    "centred": lambda x: (x.astype(jnp.float32) - 127.5) / 255,  # as in TensorFlow's convolutional.py
    "standardised": lambda x: (x.astype(jnp.float32) / 255 - 0.1307) / 0.3081,
    "bytes": lambda x: x.astype(jnp.float32),  # 0 to 255
}
SHUFFLES = dict.fromkeys(("each_epoch", "once", "never"))
VARIANTS = [
    "glorot/unit",
    "tutorial/unit",
    "fan_in/unit",
    "unit_scaling/unit",
    "cifar/unit",
    "glorot/centred",
    "glorot/standardised",
    "glorot/bytes",
    "glorot/unit/once",
    "tutorial/centred",
    "fan_in/bytes",
    "tutorial/bytes",
    "normal/unit",
]
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST's files.", required=True)
_PARTITION = flags.DEFINE_enum("partition", "iid", ["iid", "noniid"], "Whose data.")
_VARIANTS = flags.DEFINE_list(
    "variants", VARIANTS, f"INIT/INPUTS or INIT/INPUTS/SHUFFLE, of {', '.join([*INITS, *INPUTS])}."
)
_RATES = flags.DEFINE_list("rates", None, "Rates to begin with; by default three likely ones.")
_MOST_RATES = flags.DEFINE_integer(
    "most_rates", 13, "The grid is widened up to so many rates while the best lies at its edge."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Of the runs; the clients' data is the same for all.")
_ROUNDS_LIMIT = flags.DEFINE_integer(
    "rounds_limit", None, "Rounds at most; by default 250, with two digits each 1,250.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "Where to write all rates and rounds, as JSON.")
METHOD = (
    "FedAvg, E = 1, B = 10, C = 0.1, MNIST's 60,000 rows over 100 clients, evaluated on all test rows "
    "after each round. Rounds: where the monotone curve crosses 97 %, by linear interpolation, at the "
    "best rate of each seed."
)


class Variant(NamedTuple):
    """What is varied; `name` is the three others as they are given."""

    name: str
    init: str
    inputs: str
    shuffle: str


def named(text):
    """Reads INIT/INPUTS or INIT/INPUTS/SHUFFLE."""
    parts = text.split("/")
    if len(parts) == 2:
        parts.append("each_epoch")
    if len(parts) != 3:
        raise ValueError(f"the variant {text!r}; wanted INIT/INPUTS or INIT/INPUTS/SHUFFLE")
    fs.choose("init", parts[0], INITS)
    fs.choose("inputs", parts[1], INPUTS)
    fs.choose("shuffle", parts[2], SHUFFLES)
    return Variant(text, *parts)


def network(init, decode):
    """The 2NN as a task, from given weights and inputs."""
    weights, bias, _ = init

    def start(key):
        keys = jax.random.split(key, len(SIZES) - 1)
        shapes = itertools.pairwise(SIZES)
        return [
            {"w": weights(k, shape), "b": jnp.full(shape[1], bias)}
            for k, shape in zip(keys, shapes, strict=True)
        ]

    def apply(layers, x):
        x = x.reshape(len(x), -1)
        for layer in layers[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
        return x @ layers[-1]["w"] + layers[-1]["b"][None]

    return fs.models.classifier((start, apply), (28, 28, 1), decode=decode)


def starting_rates(variant, partition):
    """Three rates of the paper's grid among which the best may lie."""
    if variant.inputs == "bytes":  # the first layer's gradient is 255 times larger, and so is its effect
        return [0.0001, 0.000215, 0.000464]
    if variant.init == "normal":
        return [0.000464, 0.001, 0.00215]
    return [0.1, 0.215, 0.464] if partition == "iid" else [0.0464, 0.1, 0.215]


def measure(variant, cell, clients, test, rates, seeds, limit):
    """One variant at its best rate."""
    task = network(INITS[variant.init], INPUTS[variant.inputs])
    rates, started = rates or starting_rates(variant, cell.partition), time.perf_counter()
    runs = fs.experiment.sweep_rates(
        fs.fed_avg(
            task, optax.sgd, local_epochs=1, batch_size=10, client_lr=1.0, shuffle=variant.shuffle
        ),
        clients,
        rates=rates,
        seeds=seeds,
        num_rounds=limit,
        stop_at=TARGET,
        most_rates=_MOST_RATES.value,
        client_fraction=cell.client_fraction,
        evaluate=fs.experiment.evaluation(task, test, num_runs=len(rates) * len(seeds)),
        report=lambda text: print(f"{variant.name}: {text}", file=sys.stderr),
    )
    best = fs.experiment.best_of_each_seed(runs)
    kept = ("rate", "seed", "rounds_to_target", "best_accuracy", "diverged")
    return {
        "variant": variant.name,
        "init": INITS[variant.init][2],
        "rounds": fs.experiment.mean_rounds(best),
        "rounds_of_seeds": [b.rounds for b in best],
        "rates_of_seeds": [b.rate for b in best],
        "interior": all(b.interior for b in best),
        "seconds": round(time.perf_counter() - started, 1),
        "runs": [{name: run[name] for name in kept} | {"rounds": run["rounds"][-1]} for run in runs],
    }


def table(rows, papers):
    """Markdown: a line per variant."""
    lines = ["| variant | rounds to 97 % | by seed | best rates | over the paper's |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        reached = row["rounds"]
        shown = "-" if reached is None else f"{reached:.0f}"
        seeds = ", ".join("-" if r is None else f"{r:.1f}" for r in row["rounds_of_seeds"])
        edge = "" if row["interior"] else " (edge of the grid)"
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(row["rates_of_seeds"])) + edge
        ratio = "-" if reached is None else f"{reached / statistics.mean(papers):.2f}"
        lines.append(f"| {row['variant']} | {shown} | {seeds} | {rates} | {ratio} |")
    return "\n".join(lines)


def main(_):
    logging.set_verbosity(logging.WARNING)
    fs.use_all_cores()
    variants = [named(variant) for variant in _VARIANTS.value]
    rates = None if _RATES.value is None else [float(rate) for rate in _RATES.value]
    seeds = [int(seed) for seed in _SEEDS.value]
    limit = _ROUNDS_LIMIT.value or (250 if _PARTITION.value == "iid" else 1250)
    cells = [
        cell
        for part in (1, 4)
        for cell in fs.experiment.published(part, "2nn")
        if (cell.partition, cell.local_epochs, cell.batch_size) == (_PARTITION.value, 1, 10)
        and cell.client_fraction == 0.1
    ]
    papers = [cell.rounds for cell in cells]
    train, test, _ = fs.experiment.paper_data("2nn", _DATA_DIR.value)
    clients = fs.experiment.paper_clients(cells[0], train)
    report = {
        **fs.experiment.provenance(),
        "method": METHOD,
        "partition": _PARTITION.value,
        "rounds_limit": limit,
        "seeds": seeds,
        "paper": papers,
        "rows": [],
    }
    for variant in variants:
        report["rows"].append(measure(variant, cells[0], clients, test, rates, seeds, limit))
        print(table(report["rows"][-1:], papers).splitlines()[-1], file=sys.stderr, flush=True)
        if _OUT.value:
            pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["rows"], papers))
    print(f"\nThe paper's rounds: {' and '.join(map(str, papers))} (tables 1 and 4). {METHOD}")


if __name__ == "__main__":
    app.run(main)
