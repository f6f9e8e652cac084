"""The choice of a run's devices: the one place that asks JAX for them."""

import contextlib
import os
import warnings
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.types import CLIENTS, RUNS, Algorithm, Layout

# A single client of a small model is far too little work for an accelerator.
_ACCELERATOR_LANES = 64
_LANES_SHARE = 0.5  # of a device's memory; the rest is for data and what the estimate omits


def use_all_cores() -> None:
    """Asks JAX for one CPU device per core, so that each core trains its own clients.

    Importing this package calls it. It does nothing if you have set the number of CPU devices yourself
    (JAX_NUM_CPU_DEVICES, `jax_num_cpu_devices`, or `--xla_force_host_platform_device_count` in
    XLA_FLAGS) or if JAX's backend already runs, since something made an array.
    """
    if _devices_chosen():
        return
    with contextlib.suppress(RuntimeError):  # the backend already runs; its devices stay
        jax.config.update("jax_num_cpu_devices", available_cores())


def _devices_chosen() -> bool:
    """Returns whether the user has set the number of CPU devices."""
    in_flags = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    return in_flags or jax.config.jax_num_cpu_devices != -1


def available_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def layout_for(algorithm: Algorithm, data: Any, lanes: int | None = None, **mesh) -> Layout:
    """Returns a layout that suits an algorithm and its data.

    Args:
      algorithm: algorithm to run, such as `fed_avg(...)`.
      data: a `FederatedData`.
      lanes: number of lanes of a device; see `default_layout`.
      **mesh: `num_runs`, `mesh_runs` and `mesh_clients` of `default_layout`.

    Raises:
      ValueError: see `default_layout`.
    """
    needs = None
    if lanes is None and jax.devices()[0].platform != "cpu":
        needs = algorithm.lane_bytes and algorithm.lane_bytes(data.examples)
    return default_layout(lanes, num_learners=algorithm.num_learners, lane_bytes=needs, **mesh)


def default_layout(
    lanes: int | None = None,
    *,
    num_learners: int | None = None,
    lane_bytes: int | None = None,
    num_runs: int = 1,
    mesh_runs: int | None = None,
    mesh_clients: int | None = None,
) -> Layout:
    """Returns a layout of all devices of all processes, along the axes "runs" and "clients".

    A CPU device gets one lane, an accelerator as many as fit in half of its memory, at most 64.

    Args:
      lanes: number of lanes of a device, in place of this default.
      num_learners: number of learners, if each keeps its own model. Devices share them evenly: of seven
        devices, five take a hundred learners.
      lane_bytes: device memory that a lane takes.
      num_runs: number of runs of a sweep, if they are an axis of the program. Runs never communicate, so
        devices are split among them first; only leftover devices share the clients of a run.
      mesh_runs: number of device groups that share the runs, in place of the computed one.
      mesh_clients: number of devices that share the clients of a run, in place of the computed one.

    Raises:
      ValueError: `lanes` is less than 1, or the mesh does not divide the devices.
    """
    devices = jax.devices()
    on_cpu = devices[0].platform == "cpu"
    if on_cpu and len(devices) == 1 and available_cores() > 1 and not _devices_chosen():
        warnings.warn(
            f"JAX shows one CPU device for {available_cores()} cores, so clients train one at a time; "
            "import fedjax_sim before the first use of JAX, or set JAX_NUM_CPU_DEVICES=1",
            stacklevel=2,
        )
    runs, clients = _mesh_shape(len(devices), mesh_runs, mesh_clients, num_runs, num_learners)
    # The first devices of each part, so that no process is left out if possible.
    shape = (runs, len(devices) // runs)
    mesh = Mesh(np.array(devices).reshape(shape)[:, :clients], (RUNS, CLIENTS))
    _check_everybody_takes_part(mesh)
    if lanes is None:
        lanes = 1 if on_cpu else _ACCELERATOR_LANES
        limit = memory_bytes(jax.local_devices()[0])
        if lane_bytes and limit and not on_cpu:
            here = -(-num_runs // runs)
            lanes = max(1, min(lanes, int(_LANES_SHARE * limit) // (lane_bytes * here)))
    return Layout(lanes, mesh)


def with_fewer_parts(layout: Layout, num_runs: int) -> Layout:
    """Returns the layout with no more parts than runs; leftover devices share a run's clients."""
    if layout.num_parts <= num_runs:
        return layout
    parts = max(d for d in _divisors(layout.num_parts) if d <= num_runs)
    return Layout(layout.lanes, Mesh(layout.mesh.devices.reshape(parts, -1), (RUNS, CLIENTS)))


def memory_bytes(device: jax.Device) -> int | None:
    """Returns the memory that JAX may use on a device of this process; None on CPUs."""
    return (device.memory_stats() or {}).get("bytes_limit")


def machine_bytes() -> int | None:
    """Returns the machine's physical memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _mesh_shape(
    devices: int, runs: int | None, clients: int | None, num_runs: int, num_learners: int | None
) -> tuple[int, int]:
    """Returns the number of devices along each axis."""
    mesh_given = None not in (runs, clients)
    for name, size in (("mesh_runs", runs), ("mesh_clients", clients)):
        if size is not None and (size < 1 or devices % size):
            raise ValueError(
                f"{name} is {size}, which does not divide the {devices} devices; wanted one of "
                f"{', '.join(map(str, _divisors(devices)))}"
            )
    if runs is None:
        left = devices // (clients or 1)
        runs = max(d for d in _divisors(left) if d <= num_runs)
    if clients is None:
        clients = devices // runs
        if num_learners is not None:
            clients = max(d for d in range(1, clients + 1) if num_learners % d == 0)
    if mesh_given and devices % (runs * clients):
        raise ValueError(
            f"a mesh of {runs} times {clients} does not divide the {devices} devices; leave out "
            "mesh_runs or mesh_clients to have it computed from the other"
        )
    return runs, clients


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _check_everybody_takes_part(mesh: Mesh) -> None:
    """Refuses a mesh that leaves a process without devices, since it could not follow the run."""
    present = {device.process_index for device in mesh.devices.flat}
    if len(present) < jax.process_count():
        absent = sorted(set(range(jax.process_count())) - present)
        raise ValueError(
            f"a mesh of {mesh.size} of the {jax.device_count()} devices leaves process {absent[0]} "
            f"without any; start fewer processes, or choose a larger mesh"
        )
