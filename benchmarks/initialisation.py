"""Runs a cell of the FedAvg paper with other initialisations and other scalings of the inputs.

    python benchmarks/initialisation.py --data_dir=DIR --out=benchmarks/results/initialisation/NAME.json
    python benchmarks/initialisation.py --data_dir=DIR --partition=noniid --variants=glorot/centred
    python benchmarks/initialisation.py --data_dir=DIR --model=cnn --row=E=5/B=10 --seeds=0

McMahan et al. (2017) print neither. A cell of their tables runs to its target with initialisations and
inputs from TensorFlow examples of 2016, each at the best rate of the paper's grid, which is widened
until the best lies inside.
"""

import functools
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

sys.path.append(str(pathlib.Path(__file__).parents[1] / "scripts"))
from papers import fedavg

MODELS = {"2nn": (fs.models.MLP((200, 200, 10)), 4), "cnn": (fs.models.CNN(10), 2)}  # and their tables


def fans(shape):
    """Returns the numbers of inputs and outputs of a kernel `[..., in, out]`."""
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def truncated(stddev, key, shape):
    """Draws TensorFlow's `truncated_normal`: values beyond two standard deviations are redrawn."""
    return stddev * jax.random.truncated_normal(key, -2, 2, shape)


def glorot(key, shape):
    limit = math.sqrt(6 / sum(fans(shape)))
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def fan_in(key, shape):
    return truncated(1 / math.sqrt(fans(shape)[0]), key, shape)


def unit_scaling(key, shape):
    """Draws TensorFlow's `uniform_unit_scaling_initializer`, the default of `get_variable` in 2016."""
    limit = math.sqrt(3 / fans(shape)[0])
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


# name -> (initialiser of kernels, value of all biases, source).
INITS = {
    "glorot": (glorot, 0.0, "this package's, Keras's"),
    "tutorial": (functools.partial(truncated, 0.1), 0.1, "TensorFlow's MNIST tutorial for experts"),
    "fan_in": (fan_in, 0.0, "TensorFlow's mnist.py"),
    "unit_scaling": (unit_scaling, 0.0, "TensorFlow's default of get_variable"),
    "cifar": (functools.partial(truncated, 0.04), 0.1, "TensorFlow's CIFAR-10 tutorial, dense layers"),
    "normal": (jax.random.normal, 0.0, "normal with deviation 1, as in widely copied examples"),
}
# name -> function from bytes to floats. The paper's CNN has the layers of TensorFlow's
# models/image/mnist/convolutional.py, which reads its images "centred".
INPUTS = {
    "unit": lambda x: x.astype(jnp.float32) / 255,  # to [0, 1]
    "centred": lambda x: (x.astype(jnp.float32) - 127.5) / 255,  # to [-0.5, 0.5]
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
]
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST's files.", required=True)
_MODEL = flags.DEFINE_enum("model", "2nn", list(MODELS), "Model to train.")
_ROW = flags.DEFINE_string("row", "E=1/B=10", "Row of the paper's table 4 (2NN) or 2 (CNN).")
_PARTITION = flags.DEFINE_enum("partition", "iid", ["iid", "noniid"], "Partition.")
_VARIANTS = flags.DEFINE_list(
    "variants", VARIANTS, f"INIT/INPUTS or INIT/INPUTS/SHUFFLE, of {', '.join([*INITS, *INPUTS])}."
)
_RATES = flags.DEFINE_list("rates", None, "Rates to begin with; by default three likely ones.")
_MOST_RATES = flags.DEFINE_integer(
    "most_rates", 13, "Maximum number of rates; a grid with the best at its edge is widened up to it."
)
_EVAL_EVERY = flags.DEFINE_integer(
    "eval_every", None, "Rounds between evaluations; by default a hundredth of the paper's number."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of the runs; the clients' data is the same.")
_ROUNDS_LIMIT = flags.DEFINE_integer(
    "rounds_limit", None, "Maximum number of rounds; by default twice the paper's.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "File for all rates and rounds, as JSON.")
METHOD = (
    "MNIST's 60,000 rows over 100 clients, C = 0.1, all test rows. Rounds: where the monotone curve "
    "crosses the paper's target, by linear interpolation, at the best rate of each seed."
)


class Variant(NamedTuple):
    """A choice of everything that is varied; `name` joins the three others."""

    name: str
    init: str
    inputs: str
    shuffle: str


def named(text):
    """Parses INIT/INPUTS or INIT/INPUTS/SHUFFLE."""
    parts = text.split("/")
    if len(parts) == 2:
        parts.append("each_epoch")
    if len(parts) != 3:
        raise ValueError(f"got the variant {text!r}; wanted INIT/INPUTS or INIT/INPUTS/SHUFFLE")
    fs.checks.choose("init", parts[0], INITS)
    fs.checks.choose("inputs", parts[1], INPUTS)
    fs.checks.choose("shuffle", parts[2], SHUFFLES)
    return Variant(text, *parts)


def network(module, init, decode):
    """Returns a model as a task, with given kernels, biases and inputs."""
    kernel, bias, _ = init

    def start(key):
        params = module.init(key, jnp.zeros((1, 28, 28, 1)))["params"]
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            kernel(k, leaf.shape) if leaf.ndim > 1 else jnp.full(leaf.shape, bias)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)

    def apply(params, x):
        return module.apply({"params": params}, x)

    return fs.models.classifier((start, apply), (28, 28, 1), decode=decode)


def starting_rates(variant, cell):
    """Returns three rates of the paper's grid among which the best may lie."""
    if variant.inputs == "bytes":  # the first layer's gradient is 255 times larger, and so is its effect
        return [0.0001, 0.000215, 0.000464]
    if variant.init == "normal":
        return [0.000464, 0.001, 0.00215]
    usual = list(cell.starting_rates())
    if variant.inputs == "unit":
        return usual
    return fs.reporting.rate_grid(usual[0] / 2.5, usual[1], 3)  # a step lower


def measure(variant, cell, clients, test, settings):
    """Returns a row of one variant at its best rate."""
    started = time.perf_counter()
    task = network(MODELS[cell.model][0], INITS[variant.init], INPUTS[variant.inputs])
    rates = settings["rates"] or starting_rates(variant, cell)
    if cell.algorithm == "fed_sgd":
        algorithm = fs.fed_sgd(task, optax.sgd, client_lr=1.0)
    else:
        algorithm = fs.fed_avg(
            task,
            optax.sgd,
            local_epochs=cell.local_epochs,
            batch_size=cell.batch_size,
            client_lr=1.0,
            shuffle=variant.shuffle,
        )
    runs = fs.reporting.sweep_rates(
        algorithm,
        clients,
        rates=rates,
        seeds=settings["seeds"],
        num_rounds=settings["rounds_limit"],
        eval_every=settings["eval_every"],
        stop_at=cell.target,
        most_rates=settings["most_rates"],
        client_fraction=cell.client_fraction,
        evaluate=fedavg.evaluation(task, test, num_runs=len(rates) * len(settings["seeds"])),
        report=lambda text: print(f"{variant.name}: {text}", file=sys.stderr),
    )
    best = fs.reporting.best_of_each_seed(runs)
    kept = ("rate", "seed", "rounds_to_target", "best_accuracy", "diverged")
    return {
        "variant": variant.name,
        "init": INITS[variant.init][2],
        "rounds": fs.reporting.mean_rounds(best),
        "rounds_of_seeds": [b.rounds for b in best],
        "rates_of_seeds": [b.rate for b in best],
        "interior": all(b.interior for b in best),
        "seconds": round(time.perf_counter() - started, 1),
        "runs": [{name: run[name] for name in kept} | {"rounds": run["rounds"][-1]} for run in runs],
    }


def table(rows, papers):
    """Returns a Markdown table with a line per variant."""
    lines = ["| variant | rounds | by seed | best rates | over the paper's |"]
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
    variants = [named(variant) for variant in _VARIANTS.value]
    cells = fedavg.choose_rows(fedavg.published(MODELS[_MODEL.value][1], _MODEL.value), [_ROW.value])
    (cell,) = (cell for cell in cells if cell.partition == _PARTITION.value)
    twins = [twin for part in fedavg.PARTS for twin in fedavg.published(*part) if twin.name == cell.name]
    papers = sorted(twin.rounds for twin in twins)
    settings = {
        "rates": None if _RATES.value is None else [float(rate) for rate in _RATES.value],
        "most_rates": _MOST_RATES.value,
        "seeds": [int(seed) for seed in _SEEDS.value],
        "rounds_limit": _ROUNDS_LIMIT.value or 2 * papers[-1],
        "eval_every": _EVAL_EVERY.value or max(1, papers[-1] // 100),
    }
    train, test, _ = fedavg.paper_data(cell.model, _DATA_DIR.value)
    clients = fedavg.paper_clients(cell, train)
    report = {
        **fs.reporting.provenance(),
        "method": METHOD,
        "cell": cell.identity(),
        "paper": papers,
        "settings": settings,
        "rows": [],
    }
    for variant in variants:
        report["rows"].append(measure(variant, cell, clients, test, settings))
        print(table(report["rows"][-1:], papers).splitlines()[-1], file=sys.stderr, flush=True)
        if _OUT.value:
            pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["rows"], papers))
    print(f"\n{cell.name}; the paper: {' and '.join(map(str, papers))} rounds. {METHOD}")


if __name__ == "__main__":
    app.run(main)
