"""Times sweeps over client rates and seeds beside as many single runs.

    python benchmarks/sweep_cost.py --out=benchmarks/results/sweep_cost.json

Single runs have all devices to themselves, as a user's do. The first rounds of a sweep must match those
of its single runs; then both take turns in one process, and nothing compiles while timed.
"""

import functools
import itertools
import json
import math
import statistics
import sys
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from peak import measure_peak, timed

import fedjax_sim as fs

_MODELS = flags.DEFINE_list("models", ["2nn"], "Models: some of 2nn, cnn, logistic.")
_BATCH_SIZE = flags.DEFINE_string("batch_size", "10", "B, examples in a local batch, or inf.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds of a run, in blocks of 10.", lower_bound=1)
_RATES = flags.DEFINE_list("rates", ["1", "4", "11"], "How many client rates to sweep.")
_SEEDS = flags.DEFINE_list("seeds", ["1", "3"], "How many seeds to sweep.")
_STACKED = flags.DEFINE_enum("stacked", "default", ["default", "true", "false"], "See `sweep`.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Turns to time.", lower_bound=3)
_RTOL = flags.DEFINE_float("rtol", 1e-4, "Maximum difference in losses of sweep and single run.")
_SMALL = flags.DEFINE_bool("small", False, "40 clients of 20 images and a hasty peak, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

MODELS = {
    "2nn": fs.models.mnist_2nn,
    "cnn": fs.models.mnist_cnn,
    "logistic": fs.models.logistic_regression,
}
SINGLES = 3  # Timed in each turn.
# Rounds; after more, rounding flips some ReLUs and runs drift apart, on other devices as well.
COMPARED = 3
METHOD = (
    "FedAvg, C = 0.1, E = 1, equal clients of synthetic images, no evaluation. Single runs: their "
    f"number times the median of those timed, {SINGLES} per turn, each on all devices. Useful "
    "operations: three times the products of the forward pass. Largest difference: the relative "
    f"difference in the losses of the first {COMPARED} rounds."
)


def make_data(num_clients, size):
    """Draws dim, noisy images of ten patterns; a fifth of the labels is random, to keep losses large."""
    rng, n = np.random.default_rng(0), num_clients * size
    patterns = rng.integers(0, 32, (10, 28, 28, 1), np.uint8)
    y = rng.integers(0, 10, n, np.int32)
    x = patterns[y] + rng.integers(0, 32, (n, 28, 28, 1), np.uint8)
    y = np.where(rng.random(n) < 0.2, rng.integers(0, 10, n, np.int32), y)
    return fs.data.FederatedData({"x": x, "y": y}, np.arange(0, n + 1, size, dtype=np.int32))


def difference(rows, others):
    """Returns the largest relative difference of two runs' losses; infinite if their counts differ."""
    counts = [[[r[k] for k in ("round", "examples", "bytes_up")] for r in run] for run in (rows, others)]
    if counts[0] != counts[1]:
        return math.inf
    pairs = zip(rows[1:], others[1:], strict=True)
    return max(abs(a["train_loss"] / b["train_loss"] - 1) for a, b in pairs)


def measure(model, data):
    """Yields a row for each number of rates and of seeds."""
    task = MODELS[model](10, (28, 28, 1))
    batch_size = math.inf if _BATCH_SIZE.value == "inf" else int(_BATCH_SIZE.value)
    algorithm = fs.fed_avg(task, client_lr=1.0, local_epochs=1, batch_size=batch_size)
    flops = fs.reporting.training_flops(task, data.examples)
    common = {"client_fraction": 0.1, "eval_every": min(10, _ROUNDS.value)}
    stacked = {"default": None, "true": True, "false": False}[_STACKED.value]

    def single(rate, seed, num_rounds=_ROUNDS.value):
        settings = common | {"num_rounds": num_rounds, "layout": fs.runtime.default_layout()}
        key = jax.random.key(seed)
        return fs.simulate(algorithm, data, key=key, hparams={"client_lr": rate}, **settings)

    def sweep(rates, seeds, num_rounds=_ROUNDS.value):
        settings = common | {"num_rounds": num_rounds, "stacked": stacked}
        return fs.sweep(algorithm, data, hparams={"client_lr": rates}, seeds=seeds, **settings).runs

    compared = min(COMPARED, _ROUNDS.value)
    rows_of = functools.cache(lambda rate, seed: single(rate, seed, compared).rows)
    counts = [[int(n) for n in flag.value] for flag in (_RATES, _SEEDS)]
    all_rates = np.geomspace(0.01, 0.1, max(counts[0])).round(5).tolist()
    for num_rates, num_seeds in itertools.product(*counts):
        rates, seeds = all_rates[:num_rates], list(range(num_seeds))
        runs = sweep(rates, seeds, compared)  # compiles, like the single runs
        apart = max(difference(r.rows, rows_of(r.hparams["client_lr"], r.seed)) for r in runs)
        if not apart <= _RTOL.value:
            sys.exit(f"{model}, {rates} x {seeds}: losses are {apart:.1e} from those of single runs")
        examples = sum(run.rows[-1]["examples"] for run in runs) * _ROUNDS.value // compared

        turns, sweeps, singles = itertools.cycle(itertools.product(rates, seeds)), [], []
        for _ in range(_REPEATS.value):
            sweeps.append(timed(lambda r=rates, s=seeds: [run.state for run in sweep(r, s)]))
            for turn in itertools.islice(turns, SINGLES):
                singles.append(timed(lambda turn=turn: single(*turn).state))
        whole, one = statistics.median(sweeps), statistics.median(singles)
        yield {
            "model": model,
            "rates": rates,
            "seeds": seeds,
            "largest_difference": apart,
            "seconds": {"sweep": sweeps, "single run": singles},
            "sweep_seconds": whole,
            "singles_seconds": one * len(runs),
            "sweep_over_singles": whole / (one * len(runs)),
            "sweep_over_one_run": whole / one,
            "gflops": flops * examples / whole / 1e9,
        }


def table(rows):
    """Returns a Markdown table with a line per row."""
    head = ["model, rates x seeds", "sweep s", "single runs s", "sweep / single runs"]
    head += ["sweep / one run", "GFLOP/s", "of peak"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        line = [f"{row['model']}, {len(row['rates'])} x {len(row['seeds'])}"]
        line += [f"{row[key]:.3f}" for key in ("sweep_seconds", "singles_seconds")]
        line += [f"{row[key]:.2f}" for key in ("sweep_over_singles", "sweep_over_one_run")]
        lines.append([*line, f"{row['gflops']:.0f}", f"{row['of_peak']:.1%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    if unknown := set(_MODELS.value) - set(MODELS):
        sys.exit(f"--models: got {sorted(unknown)}, wanted some of {list(MODELS)}")
    num_clients, size = (40, 20) if _SMALL.value else (100, 600)
    report = {
        **fs.reporting.provenance(),
        "devices": jax.local_device_count(),
        "flags": {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])},
        "clients": num_clients,
        "examples_of_each": size,
        "method": METHOD,
        "gemm_gflops": measure_peak(0 if _SMALL.value else 5),
        "rows": [],
    }
    data = make_data(num_clients, size)
    for row in itertools.chain.from_iterable(measure(model, data) for model in _MODELS.value):
        report["rows"].append(row | {"of_peak": row["gflops"] / report["gemm_gflops"]})
        print(table(report["rows"][-1:]).splitlines()[-1], file=sys.stderr)

    print(table(report["rows"]))
    print(f"\n{METHOD}\n\nMatrix multiplication, the peak: {report['gemm_gflops']:.0f} GFLOP/s.")
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
