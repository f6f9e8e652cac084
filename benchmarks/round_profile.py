"""Times rounds and names the operations that take their time, by JAX's profiler.

    python benchmarks/round_profile.py --rounds=2nn:100,cnn:10,p1 --out=profile.json

Each name is a model of `accelerator_models.py` and a number of clients per round; p1 is the CIFAR-10
benchmark of pfl-research. FedAvg, E = 1, generated data. Rounds are timed without the profiler, and more
of them are then traced. On a GPU, an operation is a kernel, and "busy" the share of time in which one
ran; on a CPU, threads add up.
"""

import collections
import glob
import os
import pathlib
import statistics
import tempfile

import jax
from absl import app, flags, logging
from accelerator_models import models
from accelerator_rounds import algorithm_of, normalised, p1_data

import fedjax_sim as fs

_ROUNDS = flags.DEFINE_list("rounds", ["2nn:100", "cnn:10", "p1"], "Rounds, each model:clients or p1.")
_LISTED = flags.DEFINE_integer("listed", 12, "Operations to list for each.", lower_bound=1)
_SMALL = flags.DEFINE_bool("small", False, "Little data, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all results, as JSON.")

TIMED = 5  # blocks of rounds, after an untimed one; one more is traced


class Tracer:
    """An evaluation that profiles the last block of rounds into `folder`."""

    def __init__(self, folder):
        self._folder, self._calls = folder, 0

    def __call__(self, params):
        jax.block_until_ready(params)
        self._calls += 1
        if self._calls == 2 + TIMED:
            jax.profiler.start_trace(self._folder)
        elif self._calls == 3 + TIMED:
            jax.profiler.stop_trace()
        return {}


def experiment(name):
    """Returns `(algorithm, data, clients per round, rounds per block)` of a name."""
    if name == "p1":
        train, _, _ = p1_data(None, _SMALL.value)
        users, cohort = (20, 2) if _SMALL.value else (1000, 50)
        task = normalised(models(_SMALL.value)["pfl-cnn"].task(), train.examples["x"])
        algorithm = fs.fed_avg(task, local_epochs=1, batch_size=10, client_lr=0.1, weighting="uniform")
        return algorithm, fs.data.federate(train, fs.data.iid(num_clients=users, seed=0)), cohort, 4
    model, cohort = name.split(":")
    model, cohort = models(_SMALL.value)[model], int(cohort)
    data = model.data(4 if _SMALL.value else 1000)
    return algorithm_of(model.task(), model), data, cohort, max(1, 40 // cohort)


def operations(folder):
    """Returns name -> [seconds, count] of a trace's operations, and the seconds that they span."""
    (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    planes = list(jax.profiler.ProfileData.from_file(path).planes)
    on_gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    totals, starts, ends = collections.defaultdict(lambda: [0.0, 0]), [], []
    for event in (e for plane in on_gpu or planes for line in plane.lines for e in line.events):
        # On a CPU, a loop's time is that of its operations again.
        loop = event.name.startswith(("while", "call", "conditional"))
        if not loop and any(key == "hlo_op" for key, _ in event.stats):
            totals[event.name][0] += event.duration_ns / 1e9
            totals[event.name][1] += 1
            starts.append(event.start_ns)
            ends.append(event.start_ns + event.duration_ns)
    return totals, (max(ends) - min(starts)) / 1e9


def profiled(name):
    """Returns the report of a round."""
    algorithm, data, cohort, block = experiment(name)
    with tempfile.TemporaryDirectory() as folder:
        result = fs.simulate(
            algorithm,
            data,
            key=jax.random.key(0),
            num_rounds=(2 + TIMED) * block,
            client_fraction=cohort / data.num_clients,
            evaluate=Tracer(folder),
            eval_every=block,
        )
        totals, span = operations(folder)
    seconds = [row["round_seconds"] for row in result.rows[2 : 2 + TIMED]]
    listed = sorted(totals.items(), key=lambda item: -item[1][0])[: _LISTED.value]
    return {
        "round": name,
        "lanes": result.layout.lanes,
        "compile_seconds": round(result.compile_seconds, 2),
        "block_rounds": block,
        "block_seconds": seconds,
        "seconds": statistics.median(seconds),
        "traced_rounds": block,
        "traced_seconds": span,
        "busy": sum(total for total, _ in totals.values()) / span,
        "operations": [
            {
                "name": operation[:80],
                "ms a round": f"{1e3 * total / block:.3f}",
                "count": f"{count / block:g}",
            }
            for operation, (total, count) in listed
        ],
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    known = models(_SMALL.value)
    for name in _ROUNDS.value:
        model, _, cohort = name.partition(":")
        if name != "p1" and not (model in known and cohort.isdigit() and int(cohort) > 0):
            raise app.UsageError(f"--rounds: got {name!r}, wanted p1 or one of {list(known)}:CLIENTS")
    report = fs.reporting.provenance() | {"xla_flags": os.environ.get("XLA_FLAGS", ""), "rounds": []}
    for name in _ROUNDS.value:
        row = profiled(name)
        report["rounds"].append(row)
        took, compiling = f"{1e3 * row['seconds']:.2f} ms a round", f"{row['compile_seconds']:.1f} s"
        print(f"{name}: {took}, compiled in {compiling}; busy for {row['busy']:.0%} of the trace\n")
        print(fs.reporting.markdown(row["operations"]), flush=True)
        if _OUT.value:
            fs.reporting.write_json(pathlib.Path(_OUT.value), report)


if __name__ == "__main__":
    app.run(main)
