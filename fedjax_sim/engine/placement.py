"""Placement of arrays on a layout's devices, and functions of rows that are placed there."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_sim.core.types import CLIENTS, RUNS, Layout
from fedjax_sim.runtime import processes

EVERYWHERE = PartitionSpec()  # one copy on every device
SPREAD = PartitionSpec(CLIENTS)  # one part on each device


def place(tree: Any, layout: Layout, specs: Any = EVERYWHERE) -> Any:
    """Puts arrays on the layout's devices: a copy on each, unless `specs` divide them.

    Args:
      tree: a pytree of arrays.
      layout: the devices.
      specs: a PartitionSpec, or a pytree of them that is a prefix of `tree`.
    """
    if not processes.is_multiprocess():
        return jax.device_put(tree, shardings(layout, specs))
    if layout.mesh is None:
        return jax.device_put(jax.tree.map(processes.local, tree))
    where = shardings(layout, specs)
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(lambda leaf: processes.put(leaf, sharding), part),
        where,
        tree,
    )


def shardings(layout: Layout, specs: Any) -> Any:
    """Returns the JAX shardings for `specs` on a layout; None for the default device."""
    if layout.mesh is None:
        return None
    return jax.tree.map(
        lambda spec: NamedSharding(layout.mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),  # a tuple in some versions of JAX
    )


def of_runs(specs: Any, layout: Layout) -> Any:
    """Returns `specs` for arrays with a leading axis of runs, which the parts of a mesh share."""
    runs = RUNS if layout.num_parts > 1 else None
    return jax.tree.map(
        lambda spec: PartitionSpec(runs, *spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def pad_rows(rows: Any, layout: Layout, batch_size: int) -> tuple[Any, int]:
    """Pads NumPy rows with zeros for `map_rows` and puts each device's share on it.

    Returns:
      The placed rows, and the batch size to use, which is below `batch_size` if there are few rows.
    """
    n = len(jax.tree.leaves(rows)[0])
    devices = layout.num_devices
    batch_size = max(1, min(batch_size, -(-n // devices)))
    missing = -n % (devices * batch_size)
    padded = jax.tree.map(lambda a: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)), rows)
    return place(padded, layout, SPREAD), batch_size


def map_rows(
    fn: Callable[[Any, Any], Any], broadcast: Any, rows: Any, layout: Layout, *, batch_size: int
) -> Any:
    """Applies `fn` to all rows in batches; each device processes its share.

    Args:
      fn: `fn(broadcast, batch) -> pytree of [B, ...]`; `batch` is a pytree of `[B, ...]`.
      broadcast: a pytree that every batch receives.
      rows: a pytree of `[n, ...]`; `n` is a multiple of `D * batch_size` (see `pad_rows`).
      layout: the devices.
      batch_size: `B`, static.

    Returns:
      A pytree of `[n, ...]`, in the order of the rows.
    """

    def on_one_device(broadcast, rows):
        batches = jax.tree.map(lambda a: a.reshape(-1, batch_size, *a.shape[1:]), rows)
        outputs = jax.lax.map(lambda batch: fn(broadcast, batch), batches)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)

    if layout.is_single:
        return on_one_device(broadcast, rows)
    return jax.shard_map(
        on_one_device,
        mesh=layout.mesh,
        in_specs=(EVERYWHERE, SPREAD),
        out_specs=SPREAD,
        check_vma=False,
    )(broadcast, rows)
