"""Times codecs beside a client's local epoch, and the Hadamard transform beside a copy.

    python benchmarks/codecs.py --out=benchmarks/results/codecs.json

Encoding and decoding run in one compiled program on one core, as in a round of one lane; an epoch is 600
MNIST images in batches of 10, on one core as well. All take turns.
"""

import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from peak import timed

import fedjax_sim as fs
from fedjax_sim.compression import (
    bfloat16,
    drive,
    eden,
    ef21,
    error_feedback,
    fp8,
    hadamard_transform,
    low_rank,
    power_sgd,
    qsgd,
    quantize,
    random_k,
    random_mask,
    rotate,
    sign,
    subsample,
    tern_grad,
    top_k,
    whole,
)

_MODELS = flags.DEFINE_list("models", ["2nn", "cnn"], "Models: 2nn, cnn.")
_TURNS = flags.DEFINE_integer("turns", 7, "Turns, each of all codecs and an epoch.", lower_bound=1)
_LOG2_SIZE = flags.DEFINE_integer(
    "log2_size", 21, "Vectors to transform have 2^n floats.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

CODECS = {
    "bfloat16": bfloat16(),
    "fp8": fp8(),
    "quantize(2)": quantize(2),
    "qsgd(2, 512)": qsgd(2, 512),
    "tern_grad": tern_grad(),
    "sign": sign(),
    "rotate": rotate(),
    "whole(rotate)": whole(rotate()),
    "rotate >> quantize(2)": rotate() >> quantize(2),
    "drive": drive(),
    "eden(2)": eden(2),
    "subsample(0.0625)": subsample(0.0625),
    "random_k(0.01)": random_k(0.01),
    "top_k(0.01)": top_k(0.01),
    "random_mask(0.0625)": random_mask(0.0625),
    "low_rank(0.0625)": low_rank(0.0625),
    "error_feedback(sign)": error_feedback(sign()),
    "ef21(top_k(0.01))": ef21(top_k(0.01)),
    "power_sgd(2)": power_sgd(2),
}
MODELS = {"2nn": fs.models.mnist_2nn, "cnn": fs.models.mnist_cnn}


def epoch_of(task):
    """Returns a compiled local epoch, and the parameters that it begins with."""
    rng, n = np.random.default_rng(0), 600
    train = fs.data.from_arrays(
        rng.integers(0, 256, (n, 28, 28, 1), np.uint8), rng.integers(0, 10, n, np.int32), num_classes=10
    )
    data = fs.data.federate(train, [np.arange(n)])
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=10)
    layout = fs.Layout()
    hparams = {name: jnp.float32(value) for name, value in algorithm.hparams.items()}
    state = algorithm.init(jax.random.key(0), hparams, 1)
    cohort = fs.Cohort(jnp.zeros(1, jnp.int32), layout)
    placed = fs.engine.place((state, data, cohort), layout)
    round_fn = jax.jit(algorithm.round)
    return lambda: round_fn(jax.random.key(0), placed[0], (), *placed[1:])[0].params, state.params


def through(codec, params):
    """Returns a compiled program that encodes and decodes an update like `params`."""
    aggregator = fs.aggregate(codec)
    view = aggregator.view(aggregator.init({}), {})
    own = jax.tree.map(jnp.asarray, aggregator.memory(params))

    @jax.jit
    def encode_and_decode(params, own, key):
        sent, own, _ = aggregator.encode(view, own, params, key)
        for stage in reversed(aggregator.stages):
            sent = stage.decode(sent)
        return sent, own

    return lambda: encode_and_decode(params, own, jax.random.key(1))


def in_turns(calls):
    """Returns the median seconds of each call."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in calls}
    for _ in range(_TURNS.value):
        for name, call in calls.items():
            time.sleep(0.02)
            seconds[name].append(timed(call))
    return {name: statistics.median(values) for name, values in seconds.items()}


def transform():
    """Times the Hadamard transform and a copy of the same vector."""
    x = jax.random.normal(jax.random.key(0), (2**_LOG2_SIZE.value,))
    steps = 20

    def chain(step):
        return jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: step(x), x))

    calls = {"Hadamard transform": chain(hadamard_transform), "copy": chain(lambda x: 1 - x)}
    seconds = in_turns({name: lambda call=call: call(x) for name, call in calls.items()})
    return {name: 2 * x.nbytes * steps / taken / 1e9 for name, taken in seconds.items()}


def line(codec, models):
    """Returns a codec's line of the table."""
    found = {"codec": codec}
    for name, seconds in models.items():
        found[f"{name}, ms"] = f"{1e3 * seconds[codec]:.2f}"
        found[f"of {1e3 * seconds['epoch']:.0f} ms"] = f"{seconds[codec] / seconds['epoch']:.1%}"
    return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    report = fs.reporting.provenance() | {"models": {}}
    for name in _MODELS.value:
        task = fs.checks.choose("model", name, MODELS)()
        epoch, params = epoch_of(task)
        seconds = in_turns({"epoch": epoch} | {c: through(codec, params) for c, codec in CODECS.items()})
        report["models"][name] = seconds
    print(fs.reporting.markdown([line(codec, report["models"]) for codec in CODECS]))
    report["gbytes_per_s"] = transform()
    told = ", ".join(f"{name} {rate:.1f} GB/s" for name, rate in report["gbytes_per_s"].items())
    print(f"\n2^{_LOG2_SIZE.value} floats: {told}.")
    if _OUT.value:
        fs.reporting.write_json(pathlib.Path(_OUT.value), report)


if __name__ == "__main__":
    app.run(main)
