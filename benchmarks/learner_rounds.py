"""Times rounds of dynamic averaging: learners' steps, checks of the condition, averaging.

    python benchmarks/learner_rounds.py --out=benchmarks/results/learner_rounds.json

A round is b steps of every learner and a check. Between two checks a learner needs no other, so its b
steps run together while its model is in the cache. Protocols take turns in one process, and nothing
compiles while timed.
"""

import json
import math
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from peak import measure_peak, timed

import fedjax_sim as fs

_LEARNERS = flags.DEFINE_integer("learners", 100, "m, learners.", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 10, "B.", lower_bound=1)
_PERIOD = flags.DEFINE_integer("period", 10, "b, steps between two checks.", lower_bound=1)
_DELTA = flags.DEFINE_float("delta", 1.0, "Delta of the row in which learners sometimes send.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds of a turn.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 9, "Turns to time.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "A small model and a hasty peak, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

METHOD = (
    "2NN on synthetic images, each learner with a stream of its own, medians over turns. Useful "
    "operations: three times the products of the forward pass. Check: the time of all models' squared "
    "distances to the reference alone, over that of the round, with models read from the cache and from "
    "memory. In a round they are in the cache if it is large enough."
)


def protocols():
    """Returns name -> protocol; all make rounds of equally many steps."""
    b = _PERIOD.value
    return {
        "none": fs.protocols.none(period=b),
        "dynamic, silent": fs.protocols.dynamic(delta=math.inf, period=b),
        "dynamic": fs.protocols.dynamic(delta=_DELTA.value, period=b),
        "fed_avg, C=0.3": fs.protocols.fed_avg(fraction=0.3, period=b),
        "periodic": fs.protocols.periodic(period=b),
    }


def layout():
    return fs.runtime.default_layout(num_learners=_LEARNERS.value)


def make_data(rows_of_each):
    """Returns a federation of dim, noisy images of ten patterns."""
    rng, n = np.random.default_rng(0), _LEARNERS.value * rows_of_each
    patterns = rng.integers(0, 32, (10, 28, 28, 1), np.uint8)
    y = rng.integers(0, 10, n, np.int32)
    x = patterns[y] + rng.integers(0, 32, (n, 28, 28, 1), np.uint8)
    offsets = np.arange(0, n + 1, rows_of_each, dtype=np.int32)
    return fs.data.FederatedData({"x": x, "y": y}, offsets)


def squared_distance(a, b):
    return sum(jnp.sum(jnp.square(x - y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@jax.jit
def check_from_memory(models, reference):
    """Returns the distances of all models `[m, ...]`, one after the other."""
    return jax.lax.map(lambda model: squared_distance(model, reference), models)


@jax.jit
def check_from_cache(models, reference):
    """Returns as many distances of the first model, scaled a little so that none is reused."""
    first = jax.tree.map(lambda leaf: leaf[0], models)

    def one(i):
        return squared_distance(jax.tree.map(lambda leaf: leaf * (1 + i), first), reference)

    return jax.lax.map(one, 1e-7 * jnp.arange(_LEARNERS.value, dtype=jnp.float32))


def check_seconds(task):
    """Yields the time to check all learners if devices share it: from memory, and from the cache."""
    reference = task.init(jax.random.key(0))
    models = jax.tree.map(lambda leaf: jnp.stack([leaf] * _LEARNERS.value), reference)
    for check in (check_from_memory, check_from_cache):
        jax.block_until_ready(check(models, reference))
        times = [timed(lambda check=check: check(models, reference)) for _ in range(_REPEATS.value)]
        yield statistics.median(times) / layout().num_devices


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    task = fs.models.mnist_2nn() if not _SMOKE.value else fs.models.logistic_regression(10, (28, 28, 1))
    data = make_data(60)
    flops = fs.reporting.training_flops(task, data.examples)
    algorithms = {
        name: fs.dynamic_averaging(
            task,
            protocol,
            num_learners=_LEARNERS.value,
            batch_size=_BATCH_SIZE.value,
            client_lr=0.1,
            stream="repeat",
        )
        for name, protocol in protocols().items()
    }

    def play(algorithm, rounds):
        result = fs.simulate(
            algorithm, data, key=jax.random.key(0), num_rounds=rounds, eval_every=_ROUNDS.value
        )
        return result.rows

    report = {
        **fs.reporting.provenance(),
        "devices": layout().num_devices,
        "flags": {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])},
        "method": METHOD,
        "gemm_gflops": measure_peak(0 if _SMOKE.value else 5),
    }
    turns = {name: [] for name in algorithms}
    for _ in range(_REPEATS.value):
        for name, algorithm in algorithms.items():
            # Learners are alike as the first block begins, so only the second is timed.
            rows = play(algorithm, 2 * _ROUNDS.value)
            turns[name].append(rows)
    examples = _LEARNERS.value * _BATCH_SIZE.value * _PERIOD.value
    checks = dict(zip(("memory", "cache"), check_seconds(task), strict=True))
    report["check_seconds"] = checks
    report["rows"] = []
    for name, runs in turns.items():
        seconds = [rows[-1]["round_seconds"] for rows in runs]
        median = statistics.median(seconds)
        last, before = runs[-1][-1], runs[-1][-2]
        report["rows"].append(
            {
                "protocol": name,
                "round_seconds": seconds,
                "median": median,
                "gflops": flops * examples / median / 1e9,
                "of_peak": flops * examples / median / 1e9 / report["gemm_gflops"],
                "over_none": median / statistics.median([r[-1]["round_seconds"] for r in turns["none"]]),
                "check_shares": {place: alone / median for place, alone in checks.items()},
                "models_up": (last["messages_up"] - before["messages_up"]) / _ROUNDS.value,
            }
        )
    print(table(report["rows"]))
    print(f"\n{METHOD}\n\nMatrix multiplication, the peak: {report['gemm_gflops']:.0f} GFLOP/s.")
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


def table(rows):
    """Returns a Markdown table with a line per protocol."""
    head = ["protocol", "round ms", "GFLOP/s", "of peak", "over none", "check", "models sent a round"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        line = [row["protocol"], f"{1e3 * row['median']:.1f}", f"{row['gflops']:.0f}"]
        line += [
            f"{row['of_peak']:.1%}",
            f"{row['over_none']:.2f}",
            f"{row['check_shares']['cache']:.1%} to {row['check_shares']['memory']:.1%}",
        ]
        lines.append([*line, f"{row['models_up']:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    app.run(main)
