"""Times rounds of algorithms over those of FedAvg, on the same clients.

    python benchmarks/algorithm_cost.py --out=benchmarks/results/algorithm_cost.json

2NN, B = 10, E = 1, random images on one device. Algorithms take turns, and medians are over all rounds
but the first of each turn. With long clients a round is local training; with short ones it is mostly
what an algorithm does once per client, such as reading and writing control variates.

Columns of FedAvg with an aggregator: "kept updates" keeps the update of every client and takes the
first, which is what any robust rule costs beside its own arithmetic; "median" ranks them as well;
"top_k" keeps 1 % of each update with error feedback, so that it chooses entries and reads and writes
residuals.
"""

import functools
import pathlib
import statistics

import jax
import numpy as np
from absl import app, flags

import fedjax_sim as fs

_ROUNDS = flags.DEFINE_integer("rounds", 8, "Rounds of a turn.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Turns of each algorithm.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "Logistic regression with one setting, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

CLIENTS = ((10, 600), (50, 30))  # clients of a round, examples of each
LANES = (1, 8)
ALGORITHMS = {
    "fed_avg": fs.fed_avg,
    "fed_prox": lambda task, **settings: fs.fed_prox(task, mu=0.1, **settings),
    "fed_nova": fs.fed_nova,
    "scaffold": fs.scaffold,
}


def first_row(updates, present):
    return jax.tree.map(lambda rows: rows[0], updates)


def aggregators():
    """Returns the aggregators to time, name -> aggregator of FedAvg."""
    top_k = fs.aggregation.error_feedback(fs.compression.top_k(0.01))
    kept = fs.aggregation.keep_updates("first", first_row, {})
    return {
        "kept updates": fs.aggregate(end=kept),
        "median": fs.aggregate(end=fs.aggregation.median()),
        "top_k": fs.aggregate(top_k),
    }


def federation(num_clients, size):
    rng, n = np.random.default_rng(0), num_clients * size
    x = rng.integers(0, 256, (n, 28, 28, 1), np.uint8)
    rows = fs.data.from_arrays(x, rng.integers(0, 10, n).astype(np.int32), num_classes=10)
    return fs.data.federate(rows, fs.data.iid(num_clients=num_clients, seed=0))


def seconds_of_rounds(algorithm, clients, lanes):
    """Returns the seconds of each round of a turn but the first."""
    result = fs.simulate(
        algorithm,
        clients,
        key=jax.random.key(0),
        num_rounds=_ROUNDS.value,
        client_fraction=1.0,
        layout=fs.Layout(lanes),
    )
    return [row["round_seconds"] for row in result.rows[2:]]


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    task = fs.models.logistic_regression() if _SMOKE.value else fs.models.mnist_2nn()
    settings = {"local_epochs": 1, "batch_size": 10, "client_lr": 0.05}
    factories = ALGORITHMS | {
        name: functools.partial(fs.fed_avg, aggregator=aggregator)
        for name, aggregator in aggregators().items()
    }
    made = {name: make(task, **settings) for name, make in factories.items()}
    rows = []
    for num_clients, size in CLIENTS[:1] if _SMOKE.value else CLIENTS:
        clients = federation(num_clients, size)
        for lanes in LANES[:1] if _SMOKE.value else LANES:
            seconds = {name: [] for name in made}
            for _ in range(_REPEATS.value):
                for name, algorithm in made.items():
                    seconds[name] += seconds_of_rounds(algorithm, clients, lanes)
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            row = {"clients": num_clients, "examples of each": size, "lanes": lanes}
            row["fed_avg, ms"] = round(1000 * medians["fed_avg"], 1)
            row |= {
                f"{name} / fed_avg": round(medians[name] / medians["fed_avg"], 2)
                for name in made
                if name != "fed_avg"
            }
            rows.append(row | {"seconds": seconds})
    shown = [{k: str(v) for k, v in row.items() if k != "seconds"} for row in rows]
    print(fs.reporting.markdown(shown))
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": __doc__, "rows": rows}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
