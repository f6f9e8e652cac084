"""The floor of a round of FedAvg: its steps' own products, each alone, and a pass over the parameters.

    python benchmarks/floor.py --rows=cnn-10x100-b10,lstm-10x20-b10 --out=floor.json

The products (of matrices, and convolutions) are those that a client's step consists of, found in its
jaxpr. Each is timed in a compiled loop with its operands in the caches, and so is the update of the
parameters, with every core at work. `round_time.py` starts this program on a job, as a participant
that takes turns with the others.
"""

import collections
import functools
import math
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.extend import core
from jax.sharding import PartitionSpec
from peers.ours.run import initial_params, make_task
from round_jobs import ROWS, draw_colours, draw_text, load_digits, make_job
from workers import load_job, serve

import fedjax_sim as fs

_ROWS = flags.DEFINE_list("rows", None, "Rows of round_time.py, by name; all of them by default.")
_TURNS = flags.DEFINE_integer("turns", 5, "Times to measure each product.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

PRODUCTS = ("dot_general", "conv_general_dilated")
_LOOP = 0.01  # seconds that a loop over one product takes at least


def products(jaxpr, times=1):
    """Counts the products of a jaxpr, each as often as its loops repeat it.

    Returns:
      A Counter of `(primitive, its parameters, avals of its operands)`, the parameters as a tuple.
    """
    found = collections.Counter()
    for eqn in jaxpr.eqns:
        repeats = times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times
        if eqn.primitive.name == "while":
            raise ValueError("the step has a loop of unknown length, so its products cannot be counted")
        if eqn.primitive.name in PRODUCTS:
            avals = tuple((v.aval.shape, v.aval.dtype) for v in eqn.invars)
            found[eqn.primitive, tuple(eqn.params.items()), avals] += times
        for inner in jax.tree.leaves(
            tuple(eqn.params.values()), is_leaf=lambda p: isinstance(p, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(inner, core.ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, core.Jaxpr):
                found += products(inner, repeats)
    return found


def on_each_core(loop, *shapes):
    """Compiles `loop(trips, *arrays)` for all cores at once and returns it as a function of `trips`."""
    mesh = jax.make_mesh((jax.device_count(),), ("core",))
    each = jax.NamedSharding(mesh, PartitionSpec("core"))
    rng = np.random.default_rng(0)
    arrays = [
        jax.device_put(rng.normal(size=(mesh.size, *shape)).astype(dtype) / 100, each)
        for shape, dtype in shapes
    ]
    spec = PartitionSpec("core")

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(PartitionSpec(), *[spec] * len(arrays)), out_specs=spec)
    def run(trips, *arrays):
        out = loop(trips, *(array[0] for array in arrays))
        return jax.tree.map(lambda x: x[None], out)

    return lambda trips: jax.block_until_ready(run(jnp.int32(trips), *arrays))


def product_loop(primitive, params, avals):
    """Returns a compiled loop over one product."""
    operands = [jax.ShapeDtypeStruct(*aval) for aval in avals]
    out = jax.eval_shape(functools.partial(primitive.bind, **dict(params)), *operands)

    def loop(trips, *operands):
        def trip(_, carry):
            first, *others = carry[0]
            y = primitive.bind(first, *others, **dict(params))
            # One element depends on the product, so that the loop cannot be done without.
            return [first.at[(0,) * first.ndim].add(1e-6 * y[(0,) * y.ndim]), *others], y

        start = jax.lax.pcast(jnp.zeros(out.shape, out.dtype), "core", to="varying")
        return jax.lax.fori_loop(0, trips, trip, (list(operands), start))

    return on_each_core(loop, *avals)


def pass_loop(params):
    """Returns a compiled loop over the update of the parameters by SGD."""
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)]

    def loop(trips, *arrays):
        weights, gradients = arrays[: len(shapes)], arrays[len(shapes) :]

        def trip(_, weights):
            return [w - 1e-6 * g for w, g in zip(weights, gradients, strict=True)]

        return jax.lax.fori_loop(0, trips, trip, list(weights))

    return on_each_core(loop, *shapes, *shapes)


def seconds_per_trip(loop, trips):
    start = time.perf_counter()
    loop(trips)
    return (time.perf_counter() - start) / trips


def enough_trips(loop):
    """Returns how many trips make a loop long beside the cost of starting it; compiles it."""
    trips = 1
    loop(trips)
    while (taken := seconds_per_trip(loop, trips) * trips) < _LOOP:
        trips = math.ceil(trips * min(10, 1.5 * _LOOP / taken))
    return trips


def batch_size(job):
    return job.batch_size or int(np.diff(job.offsets).max())


def step_products(job):
    """Counts the products of one step of the job's model, see `products`."""
    task, size = make_task(job), batch_size(job)
    batch = {"x": job.x[:size], "y": job.y[:size]}

    def loss(params):
        total, count = task.loss(params, batch, jax.random.key(0))
        return total.sum() / count.sum()

    return products(jax.make_jaxpr(jax.grad(loss))(initial_params(job)).jaxpr)


class Floor:
    """The parts of a round's floor.

    Attributes:
      steps: steps of the round, of all clients.
      counts: `{name: count}` of the products of one step, and "update".
    """

    def __init__(self, job):
        clients = np.diff(job.offsets)
        self.steps = sum(-(-int(n) // batch_size(job)) for n in clients) * job.local_epochs
        self.counts, self._loops = {"update": 1}, {"update": pass_loop(initial_params(job))}
        for product, count in step_products(job).items():
            name = self._name(*product)
            self.counts[name] = count
            self._loops[name] = product_loop(*product)
        self._trips = {name: enough_trips(loop) for name, loop in self._loops.items()}

    def _name(self, primitive, params, avals):
        name = " x ".join(str(list(shape)) for shape, _ in avals)
        if primitive.name == "dot_general":
            (left, right), (batched, _) = dict(params)["dimension_numbers"]
            name += f" over {list(left)}, {list(right)}" + (
                f", batched {list(batched)}" if batched else ""
            )
        while name in self.counts:
            name += "'"
        return name

    def measure(self):
        """Returns the seconds of each part, once: `{name: seconds}`."""
        return {name: seconds_per_trip(loop, self._trips[name]) for name, loop in self._loops.items()}

    def round_seconds(self, parts):
        """Returns the floor of the round: its steps' parts, spread over the cores."""
        step = sum(self.counts[name] * seconds for name, seconds in parts.items())
        return step * self.steps / jax.device_count()


def participate(path):
    floor = Floor(load_job(path))

    def report(parts):
        return {"seconds": floor.round_seconds(parts), "parts": parts, "counts": floor.counts}

    serve("floor", {"jax": jax.__version__}, floor.measure, report)


def measure_rows(names):
    """Measures rows, and prints a table of each."""
    data = {"digits": load_digits(None), "colours": draw_colours(), "text": draw_text()}
    report = fs.reporting.provenance() | {"rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "job.npz"
        for name in names:
            make_job(path, ROWS[name], data)
            floor = Floor(load_job(path))
            measured = [floor.measure() for _ in range(_TURNS.value)]
            parts = {part: statistics.median(m[part] for m in measured) for part in floor.counts}
            total = floor.round_seconds(parts)
            report["rows"][name] = {"seconds": total, "steps": floor.steps}
            report["rows"][name] |= {"parts": parts, "counts": floor.counts}
            print(f"\n{name}: {1e3 * total:.1f} ms, {floor.steps} steps on {jax.device_count()} cores\n")
            print(table(floor.counts, parts), flush=True)
    return report


def table(counts, parts):
    """Returns a Markdown table of what a step consists of, the longest first."""
    each = {name: 1e3 * counts[name] * seconds for name, seconds in parts.items()}
    rows = [
        {"part of a step": name, "count": str(counts[name]), "ms": f"{ms:.3f}"}
        for name, ms in sorted(each.items(), key=lambda item: -item[1])
    ]
    return fs.reporting.markdown(rows)


def main(argv):
    if jax.default_backend() != "cpu":
        sys.exit(f"the backend is {jax.default_backend()}; accelerator.py measures its ceilings")
    if len(argv) > 1:
        participate(argv[1])
        return
    names = _ROWS.value or list(ROWS)
    if unknown := set(names) - set(ROWS):
        sys.exit(f"--rows: got {sorted(unknown)}, wanted some of {list(ROWS)}")
    report = measure_rows(names)
    if _OUT.value:
        fs.reporting.write_json(pathlib.Path(_OUT.value), report)


if __name__ == "__main__":
    app.run(main)
