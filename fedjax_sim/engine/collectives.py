"""Runs one function on every device of a layout and sums what they return."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import CLIENTS, Cohort
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD

_HALF = 15  # bits of a count in the lower of its two floats


def lanes_and_devices(cohort: Cohort) -> tuple[int, int]:
    """Lanes of a device, and how many devices plan together: each alone if it has its own clients."""
    devices = cohort.layout.num_devices
    lanes = min(cohort.layout.lanes, -(-cohort.num_clients // devices))
    return lanes, devices if cohort.size is None else 1


def on_every_device(
    fn: Callable[..., Any], broadcast: Any, data: Any, cohort: Cohort, key: jax.Array
) -> Any:
    """The sum of what `fn` returns on each device of the cohort's layout.

    Args:
      fn: `fn(broadcast, examples, offsets, ids, places, key) -> pytree`, of its device's share.
      broadcast: a pytree.
      data: a `FederatedData`.
      cohort: who takes part, and where.
      key: PRNG key of the round.
    """
    examples = jax.tree.map(jnp.asarray, dict(data.examples))
    places = cohort.ids if cohort.places is None else cohort.places
    arguments = (broadcast, examples, jnp.asarray(data.offsets), cohort.ids, places, key)
    if cohort.layout.is_single:
        return fn(*arguments)
    of_clients = EVERYWHERE if cohort.size is None else SPREAD
    return jax.shard_map(
        lambda *arguments: sum_over_devices(fn(*arguments)),
        mesh=cohort.layout.mesh,
        in_specs=(EVERYWHERE, of_clients, of_clients, of_clients, of_clients, EVERYWHERE),
        out_specs=EVERYWHERE,
        check_vma=False,  # each device has its own loop bounds; the psum makes the result one
    )(*arguments)


def sum_over_devices(tree: Any) -> Any:
    """The sum over the devices that share a run's clients, by ONE message where all floats are float32.

    Each leaf by itself would be a collective of its own, and between hosts a collective of few numbers
    takes as long as one of a million. Counts, int32, travel as two floats each, which up to 512 devices
    are exact.
    """
    leaves, structure = jax.tree.flatten(tree)
    packs: dict[Any, list[jax.Array]] = {}
    for leaf in leaves:
        if leaf.dtype == jnp.int32:
            halves = jnp.stack([leaf >> _HALF, leaf & (1 << _HALF) - 1])
            packs.setdefault(jnp.dtype(jnp.float32), []).append(halves.astype(jnp.float32).ravel())
        else:
            packs.setdefault(leaf.dtype, []).append(leaf.ravel())
    sums = {dtype: jax.lax.psum(jnp.concatenate(pack), CLIENTS) for dtype, pack in packs.items()}
    taken = dict.fromkeys(sums, 0)

    def take(dtype, size):
        taken[dtype] += size
        return sums[dtype][taken[dtype] - size : taken[dtype]]

    def unpack(leaf):
        if leaf.dtype != jnp.int32:
            return take(leaf.dtype, leaf.size).reshape(leaf.shape)
        high, low = take(jnp.dtype(jnp.float32), 2 * leaf.size).reshape(2, *leaf.shape).astype(jnp.int32)
        return (high << _HALF) + low

    return jax.tree.unflatten(structure, [unpack(leaf) for leaf in leaves])
