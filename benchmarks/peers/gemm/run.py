"""The machine's float32 matrix multiplication rate, by JAX or by PyTorch, with every core at work.

One round multiplies square matrices of several sizes and reports the best rate, in GFLOP/s.
"""

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))
from workers import serve

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SIZES = (1024, 1536, 2048)
FLOPS = 4e10  # Of one measurement, long beside the cost of starting it.


def matrix(rows, size):
    """Entries so small that a chain of products stays finite."""
    return np.random.default_rng(0).uniform(-1, 1, (rows, size)).astype(np.float32) / size


def jax_chain(size):
    """Chains of products, one on each of as many host devices as there are cores."""
    import jax
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((CORES,), ("core",))
    length = max(1, round(FLOPS / (CORES * 2 * size**3)))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(P("core"), P("core")), out_specs=P("core"))
    def chain(a, b):
        return jax.lax.fori_loop(0, length, lambda _, c: a @ c, b)

    a = jax.device_put(matrix(CORES * size, size), jax.NamedSharding(mesh, P("core")))
    return lambda: chain(a, a).block_until_ready(), CORES * length * 2 * size**3


def torch_chain(size):
    """One product after another, each on all cores."""
    import torch

    length = max(1, round(FLOPS / (2 * size**3)))
    a = torch.from_numpy(matrix(size, size))
    c = torch.empty_like(a)

    def run():
        for _ in range(length):
            torch.mm(a, a, out=c)

    return run, length * 2 * size**3


def main(library):
    if library == "jax":
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", CORES)
        chains = [jax_chain(size) for size in SIZES]
    else:
        import torch

        torch.set_num_threads(CORES)
        chains = [torch_chain(size) for size in SIZES]

    def run_round():
        rates = []
        for run, flops in chains:
            start = time.perf_counter()
            run()
            rates.append(flops / (time.perf_counter() - start) / 1e9)
        return max(rates)

    serve(f"GEMM by {library}", {library: version(library)}, run_round, lambda r: {"gflops": r})


if __name__ == "__main__":
    main(sys.argv[1])
