"""FedAvg in DrJAX: local SGD mapped over the clients, which lie on the devices, and a weighted mean."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import drjax
import jax
import jax.numpy as jnp
import numpy as np

sys.path += [str(Path(__file__).parents[i]) for i in (1, 2)]
from jax_models import MODELS, cross_entropy
from workers import PROBE, load_job, norms, serve

CORES = len(os.sched_getaffinity(0))


def stacked(rows, offsets):
    """Stacks the clients' rows as `[K, longest, ...]`, zeros behind those of shorter clients."""
    sizes = np.diff(offsets)
    out = np.zeros((len(sizes), sizes.max(), *rows.shape[1:]), rows.dtype)
    for client, start, size in zip(out, offsets[:-1], sizes, strict=True):
        client[:size] = rows[start : start + size]
    return out


def main(path):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", CORES)
    job = load_job(path)
    if job.model not in MODELS:
        sys.exit(f"no {job.model}: only models of images")
    apply, decode = MODELS[job.model]
    sizes = np.diff(job.offsets)
    # All clients' models, their gradients and the new models exist at once.
    needed = 3 * len(sizes) * sum(a.nbytes for p in job.params.values() for a in p.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory / 2:
        sys.exit(f"the clients' models would take {needed / 1e9:.0f} GB of {memory / 1e9:.0f} GB")
    longest = int(sizes.max())
    batch_size = job.batch_size or longest
    if any(sizes % batch_size):
        sys.exit("the clients' sizes are not multiples of B: short last batches would need weights")

    def local_sgd(params, client, size, key):
        def step(params, batch_and_place):
            batch, start, key = batch_and_place
            rng = key if job.draws else None
            grads = jax.grad(lambda p: cross_entropy(batch, apply(p, batch, rng)).mean())(params)
            rate = jnp.where(start < size, job.learning_rate, 0.0)  # behind the client's examples
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

        def epoch(params, key):
            order_key, drop_key = jax.random.split(key)
            places = jnp.arange(longest)
            if job.draws:
                drawn = jax.random.uniform(order_key, (longest,))
                order = jnp.argsort(jnp.where(places < size, drawn, 2.0))
            else:
                order = places
            batches = jax.tree.map(lambda a: a[order].reshape(-1, batch_size, *a.shape[1:]), client)
            starts = places[::batch_size]
            return jax.lax.scan(step, params, (batches, starts, jax.random.split(drop_key, len(starts))))

        return jax.lax.scan(epoch, params, jax.random.split(key, job.local_epochs))[0]

    @jax.jit
    @drjax.program(placements={"clients": len(sizes)})
    def fed_avg(params, clients, sizes, keys):
        models = jax.tree.map(drjax.broadcast, params)
        models = drjax.map_fn(local_sgd, (models, clients, sizes, keys))
        weights = sizes.astype(jnp.float32)
        return jax.tree.map(lambda m: drjax.reduce_weighted_mean(m, weights), models)

    # The clients are spread over the cores where they can be spread evenly.
    devices = CORES if len(sizes) % CORES == 0 else 1
    mesh = jax.make_mesh((devices,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, everywhere = (
        jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["clients"], [])
    )
    clients = {"x": stacked(decode(job.x), job.offsets), "y": stacked(job.y, job.offsets)}
    keys = jax.random.split(jax.random.key(0), len(sizes))
    clients = jax.device_put((clients, sizes.astype(np.int32), keys), spread)
    initial = jax.device_put(job.params, everywhere)

    def run_round():
        with jax.set_mesh(mesh):
            return jax.block_until_ready(fed_avg(initial, *clients))

    def report(params):
        params = jax.device_get(params)
        probe = {"x": decode(job.x[:PROBE]), "y": job.y[:PROBE]}
        loss = cross_entropy(probe, jax.jit(apply)(params, probe)).mean()
        leaves = jax.tree.leaves
        return {"loss": float(loss), **norms(leaves(job.params), leaves(params))}

    versions = {name: version(name) for name in ("drjax", "jax")}
    serve("DrJAX", versions, run_round, report, threads=devices)


if __name__ == "__main__":
    main(sys.argv[1])
