"""Times the ways to convolve with one kernel, for `_fastest` in `models/ops/conv.py` to choose from.

    python benchmarks/convolutions.py --out=benchmarks/results/convolutions.json

Each time is that of a layer's value and both gradients in a compiled loop, as in training, with every
core at work. Ways take turns in one process.
"""

import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import PartitionSpec

import fedjax_sim as fs

conv = fs.models.ops.conv

_STEPS = flags.DEFINE_integer("steps", 20, "Steps of a loop.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 7, "Loops to time.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

WAYS = ("direct", "winograd", "patches")


class Layer(NamedTuple):
    """A layer, and how many images it takes at once."""

    name: str
    images: int
    size: int  # height and width of the images
    window: int
    channels: tuple[int, int]  # in and out
    padding: str = "SAME"


LAYERS = (
    Layer("MNIST CNN, 1st", 10, 28, 5, (1, 32)),
    Layer("MNIST CNN, 2nd", 10, 14, 5, (32, 64)),
    Layer("MNIST CNN, 2nd", 50, 14, 5, (32, 64)),
    Layer("dropout CNN, 1st", 10, 32, 3, (3, 32), "VALID"),
    Layer("dropout CNN, 2nd", 10, 30, 3, (32, 64), "VALID"),
    Layer("CIFAR CNN, 1st", 50, 24, 5, (3, 64)),
    Layer("CIFAR CNN, 2nd", 10, 12, 5, (64, 64)),
    Layer("CIFAR CNN, 2nd", 50, 12, 5, (64, 64)),
    Layer("16 channels", 10, 32, 3, (16, 16)),
    Layer("32 channels", 10, 16, 3, (32, 32)),
    Layer("64 channels", 10, 8, 3, (64, 64)),
    Layer("256 channels", 10, 8, 3, (256, 256)),
)


def loops(layer):
    """Compiles a loop per way; the first layer of a network needs no gradient of its images."""
    cores = jax.device_count()
    mesh = jax.make_mesh((cores,), ("core",))
    rng = np.random.default_rng(0)
    shape = (cores * layer.images, layer.size, layer.size, layer.channels[0])
    x = rng.normal(size=shape).astype(np.float32)
    shape = (cores * layer.window, layer.window, *layer.channels)
    kernel = (rng.normal(size=shape) / layer.window**2).astype(np.float32)
    x, kernel = jax.device_put((x, kernel), jax.NamedSharding(mesh, PartitionSpec("core")))
    first = layer.channels[0] < 16

    def step(_, carry):
        x, kernel = carry
        y, pull_back = jax.vjp(functools.partial(fs.models.conv2d, padding=layer.padding), x, kernel)
        dx, dkernel = pull_back(y)
        return x if first else x + 1e-6 * dx, kernel + 1e-6 * dkernel

    core = PartitionSpec("core")
    compiled = {}
    for way in WAYS:
        conv._fastest = lambda *_, way=way: way
        jax.clear_caches()  # or JAX would find the first way's trace again

        @jax.jit
        @jax.shard_map(mesh=mesh, in_specs=(core, core), out_specs=(core, core))
        def loop(x, kernel):
            return jax.lax.fori_loop(0, _STEPS.value, step, (x, kernel))

        compiled[way] = loop.lower(x, kernel).compile()
    return {way: functools.partial(program, x, kernel) for way, program in compiled.items()}


def measure(layer):
    """Returns the seconds of a step, by way and turn."""
    seconds = {way: [] for way in WAYS}
    programs = loops(layer)
    for turn in range(_TURNS.value + 1):
        for way, play in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(play())
            if turn:  # the first warms up
                seconds[way].append((time.perf_counter() - start) / _STEPS.value)
    return seconds


def main(_):
    if jax.default_backend() != "cpu":
        sys.exit(f"the backend is {jax.default_backend()}; the table that this measures is for CPUs")
    chosen = conv._fastest
    report = fs.reporting.provenance() | {"steps": _STEPS.value, "rows": []}
    print("| layer | images | window | channels | direct ms | Winograd ms | patches ms | chosen |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for layer in LAYERS:
        seconds = measure(layer)
        choice = chosen(jnp.zeros(1), (layer.window, layer.window, *layer.channels))
        report["rows"].append(layer._asdict() | {"seconds": seconds, "chosen": choice})
        ms = " | ".join(f"{1e3 * statistics.median(seconds[way]):.2f}" for way in WAYS)
        channels = " to ".join(map(str, layer.channels))
        window = f"{layer.window} x {layer.window}"
        print(f"| {layer.name} | {layer.images} | {window} | {channels} | {ms} | {choice} |", flush=True)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
