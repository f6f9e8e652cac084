"""Times rounds of 100 clients drawn from populations of a thousand to a million.

    python benchmarks/population.py --out=benchmarks/results/population.json

The same rounds run with all data on the devices and with data in files on the host. The cost of a round
should not depend on the number of clients to choose from.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags, logging

import fedjax_sim as fs

_CLIENTS = flags.DEFINE_list("clients", ["1000", "10000", "100000", "1000000"], "N, ascending.")
_REFERENCE = flags.DEFINE_integer("reference", 10_000, "N to compare the largest with.")
_COHORT = flags.DEFINE_integer("cohort", 100, "K, clients of a round.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Rounds to time.", lower_bound=3)
_SMOKE = flags.DEFINE_bool("smoke", False, "200 clients only, for tests.")
_DIR = flags.DEFINE_string("dir", None, "Folder for temporary data; 40 bytes per example.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")
_MEASURE = flags.DEFINE_string("measure", None, "For internal use: what one process measures.")

PLACEMENTS = ("device", "host")
VOCABULARY, LENGTH = 1_000, 10
METHOD = (
    "FedAvg, E = 1, B = 10, on the synthetic population: 20 examples per client on average, sizes from "
    "a power law with exponent 2; a model that scores 1,000 words by 16 numbers for the word before. "
    "Each line is a process of its own; nothing compiles while timed, and nothing is evaluated. "
    "Cohorts differ in work by chance, so rounds are compared by the median of their seconds per "
    "example slot executed, padding included. Set-up: opening the data, placing it and starting the "
    "run. Hidden: the share of gathering and sending that no round waited for. Round MB: the "
    "temporaries of the compiled round, and the cohort's rows if they are sent. Peak MB: the "
    "largest resident memory of the process in the timed run."
)


def measure(folder, placement):
    """Returns what a process reports of its population and placement."""
    started = time.perf_counter()
    data = fs.data.open_federated(folder)
    if placement == "device":
        data = data.in_memory()  # read now, so that the files' pages do not count
    opened = time.perf_counter() - started
    module = nn.Sequential([nn.Embed(VOCABULARY, 16), nn.Dense(VOCABULARY)])
    task = fs.models.language_model(module, LENGTH, padding=0)
    algorithm = fs.fed_avg(task, local_epochs=1, batch_size=10, client_lr=0.5)

    def run(num_rounds):
        return fs.simulate(
            algorithm,
            data,
            key=jax.random.key(0),
            num_rounds=num_rounds,
            client_fraction=min(1, _COHORT.value / data.num_clients),
            layout=fs.runtime.default_layout(),
            data_placement=placement,
        )

    run(_ROUNDS.value)  # compiles for all sizes of cohorts to come
    reset_peak()
    started = time.perf_counter()
    result = run(_ROUNDS.value)
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    if result.compilations:
        sys.exit(f"{placement}: the timed run compiled {result.compilations} programs; wanted none")
    rounds = result.history()["round_seconds"][1:]
    slots = np.diff(result.history()["slots"])
    gathered = result.gather_seconds
    return {
        "setup_seconds": opened + seconds - float(rounds.sum()),
        "round_seconds": rounds.tolist(),
        "slots": slots.tolist(),
        "seconds_per_round": statistics.median(rounds),
        "seconds_per_slot": statistics.median(rounds / slots),
        "hidden": max(0.0, 1 - result.waited_seconds / gathered) if gathered else None,
        "round_bytes": round_bytes(algorithm, data, result.state, placement),
        "peak_bytes": peak,
    }


def round_bytes(algorithm, data, state, placement):
    """Returns the memory of a compiled round, beside the model and data already on the devices."""
    size = min(_COHORT.value, data.num_clients)
    ids = np.linspace(0, data.num_clients - 1, size).astype(np.int32)
    where, sent = fs.runtime.default_layout(), 0
    cohort = fs.Cohort(fs.engine.place(ids, where), where)
    if placement == "host":
        data = data.select(ids)
        sent = sum(column.nbytes for column in data.examples.values())
        cohort = fs.Cohort(cohort.ids, where, fs.engine.place(np.arange(size, dtype=np.int32), where))
    key, data = fs.engine.place((jax.random.key(0), data), where)
    compiled = jax.jit(algorithm.round).lower(key, state, (), data, cohort).compile()
    return compiled.memory_analysis().temp_size_in_bytes + sent


def reset_peak():
    """Counts the largest resident memory from now on (Linux only)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_bytes():
    """Returns the largest resident memory since `reset_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def rows_of(num_clients, folder):
    """Draws a population and yields a row for each placement."""
    started = time.perf_counter()
    data, _ = fs.data.synthetic(
        num_clients=num_clients, vocabulary_size=VOCABULARY, length=LENGTH, folder=folder
    )
    about = {
        "clients": num_clients,
        "examples": int(data.offsets[-1]),
        "data_bytes": sum(column.nbytes for column in data.examples.values()),
        "draw_seconds": time.perf_counter() - started,
    }
    for placement in PLACEMENTS:
        flags_ = [f"--measure={placement}", f"--dir={folder}", f"--rounds={_ROUNDS.value}"]
        command = [sys.executable, __file__, *flags_, f"--cohort={_COHORT.value}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield about | {"placement": placement} | json.loads(done.stdout)


def ratios(rows, reference):
    """Returns the cost of a round of the largest population over the reference's, by placement.

    Args:
      rows: rows of `rows_of`, N ascending.
      reference: N of the reference.
    """
    of_each = {}
    for placement in PLACEMENTS:
        ours = [row for row in rows if row["placement"] == placement]
        small = next((row for row in ours if row["clients"] == reference), None)
        if small is not None:
            names = ("seconds_per_slot", "round_bytes", "peak_bytes")
            of_each[placement] = {name: ours[-1][name] / small[name] for name in names}
    return of_each


def table(rows):
    """Returns a Markdown table with a line per row."""
    head = ["clients", "data", "examples", "MB", "set-up s", "round ms", "us / slot", "hidden"]
    head += ["round MB", "peak MB"]
    lines = [head, ["---:", "---"] + ["---:"] * (len(head) - 2)]
    for row in rows:
        hidden = "" if row["hidden"] is None else f"{row['hidden']:.0%}"
        lines.append(
            [
                f"{row['clients']:,}",
                row["placement"],
                f"{row['examples']:,}",
                f"{row['data_bytes'] / 1e6:,.0f}",
                f"{row['setup_seconds']:.2f}",
                f"{1e3 * row['seconds_per_round']:.1f}",
                f"{1e6 * row['seconds_per_slot']:.2f}",
                hidden,
                f"{row['round_bytes'] / 1e6:.2f}",
                f"{row['peak_bytes'] / 1e6:,.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    if _MEASURE.value is not None:
        print(json.dumps(measure(pathlib.Path(_DIR.value) / "train", _MEASURE.value)))
        return
    counts = [200] if _SMOKE.value else [int(n) for n in _CLIENTS.value]
    reference = 200 if _SMOKE.value else _REFERENCE.value
    report = {
        **fs.reporting.provenance(),
        "cohort": _COHORT.value,
        "rounds": _ROUNDS.value,
        "method": METHOD,
        "rows": [],
    }
    for num_clients in counts:
        with tempfile.TemporaryDirectory(dir=_DIR.value) as folder:
            for row in rows_of(num_clients, folder):
                report["rows"].append(row)
                print(table([row]).splitlines()[-1], file=sys.stderr)
    report["ratios"] = ratios(report["rows"], reference)

    print(table(report["rows"]))
    for placement, of_round in report["ratios"].items():
        told = ", ".join(f"{name} {value:.3f}" for name, value in of_round.items())
        print(f"\n{placement}, {counts[-1]:,} clients over {reference:,}: {told}")
    print(f"\n{METHOD}")
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
