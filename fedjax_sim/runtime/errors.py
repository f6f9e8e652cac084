"""Device errors, translated into messages that say what to do."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from fedjax_sim.core.types import Algorithm, Layout
from fedjax_sim.runtime.devices import memory_bytes
from fedjax_sim.runtime.processes import watched


class OutOfMemoryError(MemoryError):
    """Too little device memory for a round."""


@contextlib.contextmanager
def device_errors_explained(
    algorithm: Algorithm, data: Any, layout: Layout, num_runs: int = 1
) -> Iterator[None]:
    """Turns the errors of devices and collectives into ones that say what to do.

    Args:
      algorithm: algorithm that runs inside the context.
      data: a `FederatedData`.
      layout: lanes and devices of the run.
      num_runs: number of runs that a device works on side by side.

    Raises:
      OutOfMemoryError: a device runs out of memory.
      ProcessLostError: another process has ended.
    """
    with watched():
        try:
            yield
        except (RuntimeError, ValueError) as error:  # JAX raises one or the other
            if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
                raise
            raise OutOfMemoryError(_advice(algorithm, data, layout, num_runs, error)) from error


def _advice(algorithm: Algorithm, data: Any, layout: Layout, num_runs: int, error: Exception) -> str:
    device = jax.local_devices()[0]
    limit = memory_bytes(device)
    has = "" if limit is None else f", which has {_size(limit)} for JAX"
    lanes = f"{layout.lanes} lanes"
    if num_runs > 1:
        lanes += f" of each of {num_runs} runs"
    if algorithm.lane_bytes is not None:
        lanes += f", about {_size(algorithm.lane_bytes(data.examples))} a lane"
    return (
        f"a {device.device_kind} device is out of memory{has}: it trains {lanes}. Lower the lanes "
        "(--lanes, or Layout(lanes=...)); simulate can also keep the data on the host "
        "(--data_placement=host). "
        f"JAX said: {str(error).splitlines()[0][:200]}"
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
