"""Rows of all clients on the devices: one share on each device if they divide evenly, else one copy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_sim.core import trees
from fedjax_sim.core.types import ABSENT, CLIENTS, Layout
from fedjax_sim.engine.collectives import sum_over_devices
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD


def spec_of_rows(num_clients: int, layout: Layout) -> PartitionSpec:
    """Returns how the rows of `N` clients lie on a layout's devices."""
    is_spread = layout.num_devices > 1 and num_clients % layout.num_devices == 0
    return SPREAD if is_spread else EVERYWHERE


def make_rows(
    make: Callable[[Any, jax.Array], Any], shared: Any, num_clients: int, layout: Layout
) -> Any:
    """Returns the rows of all clients, `[N, ...]`; each device makes its own.

    Args:
      make: `make(shared, ids [n]) -> [n, ...]`.
      shared: a pytree that every device receives.
      num_clients: `N`.
      layout: the devices.
    """
    ids = jnp.arange(num_clients, dtype=jnp.int32)
    if spec_of_rows(num_clients, layout) == EVERYWHERE:
        return make(shared, ids)
    return _on_shares(make, layout, (EVERYWHERE, SPREAD), SPREAD)(shared, ids)


def take_rows(rows: Any, ids: jax.Array, num_clients: int, layout: Layout) -> Any:
    """Returns the rows of clients `[K]` on every device; those of absent clients are arbitrary.

    Args:
      rows: a pytree of `[N, ...]`, which lie as `spec_of_rows` says.
      ids: `[K]` int32, `ABSENT` for absent clients.
      num_clients: `N`.
      layout: the devices.
    """
    if spec_of_rows(num_clients, layout) == EVERYWHERE:
        return jax.tree.map(lambda leaf: leaf.at[ids].get(mode="clip"), rows)

    def take(rows, ids):
        places = _places(ids, num_clients // layout.num_devices)
        here = places != ABSENT

        def mine(leaf):
            bits = _to_bits(leaf.at[places].get(mode="clip"))
            return jnp.where(here.reshape(-1, *(1,) * (bits.ndim - 1)), bits, 0)

        # As bits, since in a sum of floats minus zero would become plus zero.
        bits = sum_over_devices(jax.tree.map(mine, rows))
        return jax.tree.map(_from_bits, bits, rows)

    return _on_shares(take, layout, (SPREAD, EVERYWHERE), EVERYWHERE)(rows, ids)


def put_rows(rows: Any, ids: jax.Array, new: Any, num_clients: int, layout: Layout) -> Any:
    """Returns all rows, with those of clients `[K]` replaced by `new` `[K, ...]`; see `take_rows`."""

    def put(rows, places, new):
        def write(leaf, new):
            return leaf.at[places].set(new, mode="drop", unique_indices=True)

        return jax.tree.map(write, rows, new)

    if spec_of_rows(num_clients, layout) == EVERYWHERE:
        return put(rows, ids, new)

    def put_mine(rows, ids, new):
        return put(rows, _places(ids, num_clients // layout.num_devices), new)

    return _on_shares(put_mine, layout, (SPREAD, EVERYWHERE, EVERYWHERE), SPREAD)(rows, ids, new)


def map_rows(fn: Callable[[Any, Any, jax.Array], Any], shared: Any, rows: Any, ids: jax.Array) -> Any:
    """Returns `fn(shared, row, id)` of clients `[n]`, given their rows `[n, ...]`, as `[n, ...]`."""
    return jax.vmap(functools.partial(fn, shared))(rows, ids)


def _on_shares(fn: Callable, layout: Layout, in_specs: Any, out_specs: Any) -> Callable:
    return jax.shard_map(fn, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _places(ids: jax.Array, share: int) -> jax.Array:
    """Returns where this device's share of the rows has each client `[K]`, `ABSENT` if it has not."""
    places = ids - jax.lax.axis_index(CLIENTS).astype(jnp.int32) * share
    return jnp.where((places >= 0) & (places < share), places, ABSENT)


def _to_bits(leaf: jax.Array) -> jax.Array:
    """Returns an array's bits as uint32, with one more axis for wide dtypes and keys."""
    if trees.is_key(leaf):
        return jax.random.key_data(leaf)
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint32)
    if leaf.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, _unsigned(leaf)).astype(jnp.uint32)


def _from_bits(bits: jax.Array, like: jax.Array) -> jax.Array:
    if trees.is_key(like):
        return trees.as_key(bits, like)
    if like.dtype == bool:
        return bits.astype(bool)
    if like.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(bits, like.dtype)
    return jax.lax.bitcast_convert_type(bits.astype(_unsigned(like)), like.dtype)


def _unsigned(leaf: jax.Array) -> Any:
    return jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
