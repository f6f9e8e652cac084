"""The peak that benchmarks are measured against, and timing without compiling."""

import sys
import time
from contextlib import closing
from pathlib import Path

import jax
from workers import Worker

import fedjax_sim as fs

GEMM = Path(__file__).parent / "peers" / "gemm" / "run.py"


def measure_peak(repeats):
    """Returns the best float32 matrix multiplication rate of all devices, in GFLOP/s."""
    if jax.default_backend() != "cpu":
        return _measure_accelerators(repeats)
    # In a process of its own, so that its threads are gone before anything is timed.
    with closing(Worker("GEMM", [sys.executable, GEMM, "jax"])) as worker:
        return max(worker.round()["gflops"] for _ in range(1 + repeats))


def _measure_accelerators(repeats, size=8192, length=40):
    """Returns one device's rate, at the default precision as in training, times the devices."""
    chain = jax.jit(lambda a: jax.lax.fori_loop(0, length, lambda _, c: a @ c, a))
    # Entries so small that a chain of products stays finite.
    a = jax.random.uniform(jax.random.key(0), (size, size), minval=-1, maxval=1) / size
    jax.block_until_ready(chain(a))
    seconds = min(timed(lambda: chain(a)) for _ in range(1 + repeats))
    return jax.local_device_count() * length * 2 * size**3 / seconds / 1e9


def timed(call):
    """Returns the seconds of `call`, which returns what to wait for.

    Raises:
      RuntimeError: `call` compiled something.
    """
    with fs.runtime.CompilationCounter() as compiled:
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds = time.perf_counter() - start
    if compiled.count:
        raise RuntimeError(f"a timed call compiled {compiled.count} programs; wanted none")
    return seconds
