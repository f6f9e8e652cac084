"""Which devices a run uses: the one place that asks JAX for them."""

import contextlib
import os
import warnings

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.base import Layout
from fedjax_sim.lanes import CLIENTS

# On an accelerator a client of a small model is far too little work alone.
_ACCELERATOR_LANES = 64


def use_all_cores() -> None:
    """Asks JAX for one CPU device per core, so that each core trains its own clients.

    Call it before anything touches JAX's backend, such as making an array. It does nothing where you
    have chosen a number of CPU devices yourself (`jax_num_cpu_devices`, or
    `--xla_force_host_platform_device_count` in XLA_FLAGS) or where the backend already runs.
    """
    chosen = (
        jax.config.jax_num_cpu_devices != -1
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if chosen:
        return
    with contextlib.suppress(RuntimeError):  # the backend already runs; its devices are what there is
        jax.config.update("jax_num_cpu_devices", available_cores())


def available_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_layout(lanes: int | None = None, *, num_learners: int | None = None) -> Layout:
    """All local devices along one axis; one lane each on CPU, many on an accelerator.

    Args:
      lanes: overrides the number of lanes.
      num_learners: of an algorithm whose learners keep models of their own. Devices share them evenly,
        so that of seven devices five take a hundred learners.

    Raises:
      ValueError: `lanes` is less than 1.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu" and len(devices) == 1 and available_cores() > 1:
        warnings.warn(
            f"JAX shows one CPU device for {available_cores()} cores, so clients train one at a time; "
            "call fedjax_sim.use_all_cores() before using JAX",
            stacklevel=2,
        )
    if num_learners is not None:
        most = min(len(devices), num_learners)
        devices = devices[: next(d for d in range(most, 0, -1) if num_learners % d == 0)]
    if lanes is None:
        lanes = 1 if devices[0].platform == "cpu" else _ACCELERATOR_LANES
    return Layout(lanes, Mesh(np.array(devices), (CLIENTS,)))
