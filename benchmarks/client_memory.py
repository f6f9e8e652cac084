"""Times rounds whose clients remember something, drawn from populations of a thousand to 100,000.

    python benchmarks/client_memory.py --out=benchmarks/results/client_memory.json

SCAFFOLD keeps a control variate as large as the model for each client. With clients' memory on the host,
neither a round's time nor its device memory should depend on the number of clients to choose from.
"""

import json
import pathlib
import statistics
import subprocess
import sys

import jax
import numpy as np
from absl import app, flags, logging

import fedjax_sim as fs

_CLIENTS = flags.DEFINE_list("clients", ["1000", "10000", "100000"], "N, ascending.")
_COHORTS = flags.DEFINE_list("cohorts", ["10", "50"], "K, clients of a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 40, "Rounds of a turn.", lower_bound=3)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Turns of each line; lines take turns.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "Logistic regression and few clients, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")
_MEASURE = flags.DEFINE_string("measure", None, "For internal use: what one process measures.")

EXAMPLES = 2  # of each client
METHOD = (
    f"SCAFFOLD, E = 1, B = 10, 2NN (199,210 parameters), {EXAMPLES} random images a client. A line is a "
    "process per turn, and lines take turns. Each round is a block of its own. Round ms: the median of "
    "all rounds but the first of each turn, with reading and writing the memory. Live MB: the most "
    "that all arrays on the devices take after a round. Program MB: arguments and temporaries of the "
    "compiled round of a cohort, on one device. File MB: the rows of clients that took part. "
    "All MB: the rows of all clients."
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


def measure(placement, num_clients, size):
    """Returns what a process measures of its placement, population and cohort."""
    fs.use_all_cores()
    task = fs.models.logistic_regression() if _SMOKE.value else fs.models.mnist_2nn()
    algorithm = fs.scaffold(task, local_epochs=1, batch_size=10, client_lr=0.05)
    data, layout = federation(num_clients), fs.runtime.default_layout()
    result = fs.simulate(
        algorithm,
        data,
        key=jax.random.key(0),
        num_rounds=_ROUNDS.value,
        client_fraction=size / num_clients,
        evaluate=live_bytes,
        layout=layout,
        data_placement=placement,
    )
    row_bytes = 4 * result.summary()["num_params"]
    return {
        "round_seconds": [row["round_seconds"] for row in result.rows[2:]],
        "live_bytes": max(row["live_bytes"] for row in result.rows),
        "program_bytes": program_bytes(algorithm, data, result.state.server, size, layout),
        "file_bytes": result.state.clients.store.clients.size * row_bytes if placement == "host" else 0,
        "all_bytes": num_clients * row_bytes,
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


def lines():
    """Yields the placement, N and K of each line."""
    counts = [int(n) for n in _CLIENTS.value]
    for size in map(int, _COHORTS.value):
        yield "device", counts[0], size
        for num_clients in counts:
            yield "host", num_clients, size


def table(rows):
    """Returns a Markdown table with a line per row."""
    shown = []
    for row in rows:
        smallest = next(r for r in rows if (r["memory"], r["per_round"]) == ("host", row["per_round"]))
        ratio = row["seconds_per_round"] / smallest["seconds_per_round"]
        shown.append(
            {
                "memory": row["memory"],
                "clients": f"{row['clients']:,}",
                "per round": str(row["per_round"]),
                "round ms": f"{1e3 * row['seconds_per_round']:.1f}",
                "over the fewest": f"{ratio:.2f}",
                "live MB": f"{row['live_bytes'] / 1e6:.1f}",
                "program MB": f"{row['program_bytes'] / 1e6:.1f}",
                "file MB": f"{row['file_bytes'] / 1e6:,.0f}",
                "all MB": f"{row['all_bytes'] / 1e6:,.0f}",
            }
        )
    return fs.reporting.markdown(shown)


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    if _MEASURE.value is not None:
        placement, num_clients, size = _MEASURE.value.split(",")
        print(json.dumps(measure(placement, int(num_clients), int(size))))
        return
    rows = {}
    for _ in range(_REPEATS.value):
        for line in lines():
            told = ",".join(map(str, line))
            flags_ = [f"--measure={told}", f"--rounds={_ROUNDS.value}", f"--smoke={_SMOKE.value}"]
            command = [sys.executable, __file__, *flags_]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            row = rows.setdefault(line, found | {"round_seconds": []})
            row["round_seconds"] += found["round_seconds"]
            row |= dict(zip(("memory", "clients", "per_round"), line, strict=True))
            row["seconds_per_round"] = statistics.median(row["round_seconds"])
            print(told, f"{1e3 * statistics.median(found['round_seconds']):.1f} ms", file=sys.stderr)
    print(table(list(rows.values())))
    print(f"\n{METHOD}")
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": METHOD, "rows": list(rows.values())}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
