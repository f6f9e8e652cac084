"""Times the ways to convolve with one kernel per lane, for the layers of our models.

    python benchmarks/lane_convolutions.py --out=benchmarks/results/lane_convolutions.json

It times what makes up a training step: a convolution together with its kernel's gradient, which reads
the same images, and the gradient of the input by itself. Each runs in a compiled loop, as in a step,
where each pass waits for the one before. The variants take turns in one process, and nothing compiles
while timed. The winners belong in `fedjax_sim/models/ops/lane_conv.py`; its rows are printed last.
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from peak import timed

import fedjax_sim as fs


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution: images `size` x `size`, channels in and out, and a window `window` x `window`."""

    size: int
    channels: tuple[int, int]
    window: int
    padding: str
    first: bool = False  # in its network, so its input's gradient is not needed

    @property
    def pads(self):
        k = self.window
        return (((k - 1) // 2, k // 2),) * 2 if self.padding == "SAME" else ((0, 0),) * 2


LAYERS = {
    "mnist-conv1": Layer(28, (1, 32), 5, "SAME", first=True),
    "mnist-conv2": Layer(14, (32, 64), 5, "SAME"),
    "cifar-conv1": Layer(24, (3, 64), 5, "SAME", first=True),
    "cifar-conv2": Layer(12, (64, 64), 5, "SAME"),
    "pfl-conv1": Layer(32, (3, 32), 3, "VALID", first=True),
    "pfl-conv2": Layer(30, (32, 64), 3, "VALID"),
}
VARIANTS = fs.models.ops.lane_conv.VARIANTS
MOST_BYTES = 2e9  # of patches

_LAYERS = flags.DEFINE_list("layers", list(LAYERS), "Layers to time.")
_LANES = flags.DEFINE_list("lanes", ["4", "16"], "Numbers of lanes.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["10", "50"], "Images of a lane.")
_REPEATS = flags.DEFINE_integer("repeats", 4, "Turns to time.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 0.1, "Minimum seconds of a turn, unless it is one pass.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Layers of 6 x 6, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

METHOD = (
    "Float32, one device, the time of a pass in the best turn, since others may use the machine as "
    "well: on a CPU the processor time of all threads, which others disturb less than wall time, "
    "elsewhere wall time. Both are recorded. A pair is the convolution and its kernel's gradient, with "
    "a ReLU between them. Each pass changes an input by the result of the one before. Useful "
    "operations: two per weight, output position and image, twice as many in a pair. Patches are left "
    f"out if they would take more than {MOST_BYTES / 1e9:.0f} GB."
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A role in a layer, with its inputs' shapes and its `fs.models.ops.lane_conv.Shape`."""

    layer: str
    role: str  # one of `fs.models.ops.lane_conv.ROLES`
    pads: tuple
    inputs: tuple[tuple[int, ...], tuple[int, ...]]
    shape: tuple[int, ...]

    @property
    def flops(self):
        return 2 * math.prod(self.shape) * (2 if self.role == "pair" else 1)

    @property
    def patches_bytes(self):
        *outer, _, kh, kw = self.shape
        return 4 * math.prod(outer) * kh * kw  # float32

    def one_pass(self, variant):
        """Returns the function of both inputs to time."""
        if self.role == "input gradient":
            return functools.partial(variant.convolve, self.pads)

        def pair(x, kernel):
            # As in a step, the gradient waits for the convolution.
            dy = jax.nn.relu(variant.convolve(self.pads, x, kernel))
            return variant.kernel_gradient(self.pads, x, dy)

        return pair


def cases(name, layer, lanes, images):
    """Yields the cases that a training step computes for a layer."""
    (ci, co), k, pads = layer.channels, layer.window, layer.pads
    size, out = layer.size, layer.size + sum(layer.pads[0]) - k + 1
    x, y = (lanes, images, size, size, ci), (lanes, images, out, out, co)
    kernel, swapped = (lanes, k, k, ci, co), (lanes, k, k, co, ci)
    yield Case(name, "pair", pads, (x, kernel), (lanes, images, out, out, ci, co, k, k))
    if not layer.first:
        opposite = tuple((k - 1 - a, k - 1 - b) for a, b in pads)
        backward = (lanes, images, size, size, co, ci, k, k)
        yield Case(name, "input gradient", opposite, (y, swapped), backward)


def repeated(fn):
    """Returns `loop(count, a, b)`: `count` passes of `fn` that XLA can neither skip nor merge."""

    @jax.jit
    def loop(count, a, b):
        def one(_, carry):
            a, _ = carry
            out = fn(a, b)
            corner = a[(slice(0, 1),) * a.ndim] + 1e-9 * out[(slice(0, 1),) * out.ndim]
            # In place; only this makes a pass wait for the one before.
            return jax.lax.dynamic_update_slice(a, corner, (0,) * a.ndim), out

        out = jax.eval_shape(fn, a, b)
        return jax.lax.fori_loop(0, count, one, (a, jnp.zeros(out.shape, out.dtype)))

    return loop


def measure(case):
    """Returns each variant's seconds per pass, over turns: wall time, and processor time."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in case.inputs)
    runs, counts = {}, {}
    for name, variant in VARIANTS.items():
        if name == "patches" and case.patches_bytes > MOST_BYTES:
            continue
        loop = repeated(case.one_pass(variant))
        runs[name] = lambda count, loop=loop: loop(count, a, b)
        jax.block_until_ready(runs[name](jnp.int32(1)))  # compiles
        once = timed(functools.partial(runs[name], jnp.int32(1)))
        counts[name] = jnp.int32(max(1, round(_SECONDS.value / once)))
    passed, used = ({name: [] for name in runs} for _ in range(2))
    for _, (name, run) in itertools.product(range(_REPEATS.value), runs.items()):
        start = time.process_time()
        passed[name].append(timed(functools.partial(run, counts[name])) / int(counts[name]))
        used[name].append((time.process_time() - start) / int(counts[name]))
    return passed, used


def measured(case):
    """Returns a row of the report."""
    passed, used = measure(case)
    backend = jax.default_backend()
    best = {name: min(times) for name, times in (used if backend == "cpu" else passed).items()}
    return {
        "backend": backend,
        "layer": case.layer,
        "role": case.role,
        "shape": case.shape,
        "patches_bytes": case.patches_bytes,
        "seconds": passed,
        "processor_seconds": used,
        "best": best,
        "gflops": {name: case.flops / seconds / 1e9 for name, seconds in best.items()},
        "fastest": min(best, key=best.get),
    }


def milliseconds(seconds):
    """Returns milliseconds, to three digits."""
    return float(f"{1e3 * seconds:.3g}")


def table(rows):
    """Returns a Markdown table with a line per row."""
    head = ["layer", "role", "lanes", "images"]
    head += [f"{name} {unit}" for name in VARIANTS for unit in ("ms", "GFLOP/s")] + ["fastest"]
    lines = [head, ["---", "---"] + ["---:"] * (len(head) - 3) + ["---"]]
    for row in rows:
        line = [row["layer"], row["role"], str(row["shape"][0]), str(row["shape"][1])]
        for name in VARIANTS:
            if name in row["best"]:
                line += [f"{milliseconds(row['best'][name]):g}", f"{row['gflops'][name]:.0f}"]
            else:
                line += ["left out", ""]
        lines.append([*line, row["fastest"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(rows):
    """Yields the rows of `fedjax_sim/models/ops/lane_conv.py`, with times in milliseconds."""
    for row in rows:
        best = row["best"]
        times = [f"{milliseconds(best[name]):g}" if name in best else "math.inf" for name in VARIANTS]
        key = f'"{row["backend"]}", "{row["role"]}", {tuple(row["shape"])}'
        yield f'    Row({key}, {", ".join(times)}, "{row["fastest"]}"),'


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    if unknown := set(_LAYERS.value) - set(LAYERS):
        sys.exit(f"--layers: got {sorted(unknown)}, wanted some of {list(LAYERS)}")
    report = {
        **fs.reporting.provenance(),
        "flags": {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])},
        "method": METHOD,
        "rows": [],
    }
    for name, images, lanes in itertools.product(_LAYERS.value, _BATCH_SIZES.value, _LANES.value):
        layer = dataclasses.replace(LAYERS[name], size=6) if _SMOKE.value else LAYERS[name]
        for case in cases(name, layer, int(lanes), int(images)):
            report["rows"].append(measured(case))
            print(table(report["rows"][-1:]).splitlines()[-1], file=sys.stderr)

    print(table(report["rows"]))
    print(f"\n{METHOD}\n\nThe rows of fedjax_sim/models/ops/lane_conv.py:\n")
    print("\n".join(code(report["rows"])))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
