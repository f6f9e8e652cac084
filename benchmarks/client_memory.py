"""Times rounds whose clients remember something, drawn from populations of a thousand to 100,000.

    python benchmarks/client_memory.py --out=benchmarks/results/client_memory.json

SCAFFOLD keeps a control variate as large as the model for each client. With clients' memory on the host,
neither a round's time nor its device memory should depend on the number of clients to choose from.
"""

import itertools
import pathlib
import statistics
import sys

import jax
import numpy as np
from absl import app, flags, logging

import fedjax_sim as fs

_CLIENTS = flags.DEFINE_list("clients", ["1000", "10000", "100000"], "N, ascending.")
_COHORTS = flags.DEFINE_list("cohorts", ["10", "50"], "K, clients of a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds of a turn.", lower_bound=3)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Turns of each line.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "Logistic regression, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

EXAMPLES = 2  # of each client
METHOD = (
    f"SCAFFOLD, E = 1, B = 10, 2NN (199,210 parameters), {EXAMPLES} random images a client. Each line "
    "runs once untimed; then lines take turns. Each round is a block of its own. Round ms: the median "
    "of all rounds but the first of each turn, with reading and writing the memory. Ratio: of a turn's "
    "median over that of the fewest clients on the host in the same turn; the median over turns. Live "
    "MB: the most that all arrays on the devices take after a round. Program MB: arguments and "
    "temporaries of the compiled round of a cohort, on one device. File MB: the rows of clients that "
    "took part in a turn. All MB: the rows of all clients."
)


def federation(num_clients):
    rng, n = np.random.default_rng(0), num_clients * EXAMPLES
    examples = {
        "x": rng.integers(0, 256, (n, 28, 28, 1), np.uint8),
        "y": rng.integers(0, 10, n).astype(np.int32),
    }
    return fs.data.FederatedData(examples, np.arange(0, n + 1, EXAMPLES, dtype=np.int32), num_classes=10)


def live_bytes(_):
    return {"live_bytes": sum(array.nbytes for array in jax.live_arrays())}


def turn(algorithm, data, placement, size, layout):
    """Returns what a turn of a line measures."""
    result = fs.simulate(
        algorithm,
        data,
        key=jax.random.key(0),
        num_rounds=_ROUNDS.value,
        client_fraction=size / data.num_clients,
        evaluate=live_bytes,
        layout=layout,
        data_placement=placement,
    )
    row_bytes = 4 * result.summary()["num_params"]
    took_part = result.state.clients.store.clients.size if placement == "host" else 0
    return {
        "round_seconds": [row["round_seconds"] for row in result.rows[2:]],
        "live_bytes": max(row["live_bytes"] for row in result.rows),
        "program_bytes": program_bytes(algorithm, data, result.state.server, size, layout),
        "file_bytes": took_part * row_bytes,
        "all_bytes": data.num_clients * row_bytes,
    }


def program_bytes(algorithm, data, server, size, layout):
    """Returns the bytes of a compiled round's arguments and temporaries, with its cohort's rows."""
    ids = np.arange(size, dtype=np.int32)
    key, ids, data = fs.engine.place((jax.random.key(0), ids, data.select(ids)), layout)
    # A control variate has the shapes of the model.
    own = jax.tree.map(lambda w: jax.ShapeDtypeStruct((size, *w.shape), w.dtype), server.params)
    cohort = fs.Cohort(ids, layout, ids)
    compiled = jax.jit(algorithm.round).lower(key, server, own, data, cohort).compile()
    about = compiled.memory_analysis()
    return about.argument_size_in_bytes + about.temp_size_in_bytes


def rows_of(algorithm, federations, size, layout):
    """Measures all lines of a cohort's size; `federations` has `N` -> data, ascending."""
    smallest = ("host", min(federations))
    lines = [("device", min(federations)), *(("host", n) for n in federations)]
    measured = {line: turn(algorithm, federations[line[1]], line[0], size, layout) for line in lines}
    turns = {line: [] for line in lines}
    for _ in range(_REPEATS.value):
        for placement, n in lines:
            found = turn(algorithm, federations[n], placement, size, layout)
            turns[placement, n].append(found["round_seconds"])
    medians = {line: [statistics.median(seconds) for seconds in turns[line]] for line in lines}
    for line in lines:
        ratios = [a / b for a, b in zip(medians[line], medians[smallest], strict=True)]
        about = {"memory": line[0], "clients": line[1], "per_round": size}
        yield (
            about
            | measured[line]
            | {
                "round_seconds": turns[line],
                "seconds_per_round": statistics.median(itertools.chain(*turns[line])),
                "ratio": statistics.median(ratios),
            }
        )


def table(rows):
    """Returns a Markdown table with a line per row."""
    shown = [
        {
            "memory": row["memory"],
            "clients": f"{row['clients']:,}",
            "per round": str(row["per_round"]),
            "round ms": f"{1e3 * row['seconds_per_round']:.1f}",
            "ratio": f"{row['ratio']:.2f}",
            "live MB": f"{row['live_bytes'] / 1e6:.1f}",
            "program MB": f"{row['program_bytes'] / 1e6:.1f}",
            "file MB": f"{row['file_bytes'] / 1e6:,.0f}",
            "all MB": f"{row['all_bytes'] / 1e6:,.0f}",
        }
        for row in rows
    ]
    return fs.reporting.markdown(shown)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    task = fs.models.logistic_regression() if _SMOKE.value else fs.models.mnist_2nn()
    algorithm = fs.scaffold(task, local_epochs=1, batch_size=10, client_lr=0.05)
    federations = {int(n): federation(int(n)) for n in _CLIENTS.value}
    layout, rows = fs.runtime.default_layout(), []
    for size in map(int, _COHORTS.value):
        rows += rows_of(algorithm, federations, size, layout)
        print(table(rows[-len(federations) - 1 :]), file=sys.stderr)
    print(table(rows))
    print(f"\n{METHOD}")
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": METHOD, "rows": rows}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
