"""Runs one function on every device of a layout and sums what they return."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.types import ABSENT, CLIENTS, Client, Cohort
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD

_HALF = 15  # bits of a count in the lower of its two floats


class CohortResult(NamedTuple):
    """The result of training a cohort.

    Attributes:
      message: the sum of the clients' messages.
      metrics: the sums of the clients' metrics.
      own: `[K, ...]`, the client states after the round; those of absent clients are unchanged.
      rows: `[K, ...]`, what the server sees of each client; zeros for absent clients.
      slots: `[]` int32, the work executed, idle lanes included. In chunks each lane counts the longest
        client of each loop; in queues every step of every lane counts.
      trained: the clients that a device has trained, for use by the engine.
    """

    message: Any
    metrics: Any
    own: Any
    rows: Any
    slots: jax.Array
    trained: Any = ()


def lanes_and_devices(cohort: Cohort) -> tuple[int, int]:
    """Returns the number of lanes of a device, and of devices that plan together.

    A device that has only the rows of its own clients plans alone.
    """
    devices = cohort.layout.num_devices
    lanes = min(cohort.layout.lanes, -(-cohort.num_clients // devices))
    return lanes, devices if cohort.members is None else 1


class Share(NamedTuple):
    """One device's share of a cohort: `K` places, for the whole cohort or the device's own clients.

    Attributes:
      examples: column name -> `[n, ...]`.
      starts: `[K]` int32, the first row of each client.
      sizes: `[K]` int32, `n_k`.
      ids: `[K]` int32, `ABSENT` in empty places.
      positions: `[K]` int32, each client's position in the cohort.
      keys: `[K]` PRNG keys, one for each client.
    """

    examples: Any
    starts: jax.Array
    sizes: jax.Array
    ids: jax.Array
    positions: jax.Array
    keys: jax.Array

    def client(self, k: jax.Array) -> Client:
        """Returns the client at place `k` `[]`, from 0 to `K - 1`."""
        return Client(self.examples, self.starts[k], self.sizes[k], self.ids[k])


def on_every_device(
    fn: Callable[..., CohortResult], shared: Any, own: Any, data: Any, cohort: Cohort, key: jax.Array
) -> CohortResult:
    """Runs `fn` on each device of the cohort's layout and combines the results.

    Args:
      fn: `fn(shared, own, share, key) -> CohortResult` of the clients that this device trains. Other
        clients' rows are zero and their states unchanged.
      shared: a pytree that every client receives.
      own: `[K, ...]`, the states of the cohort's clients.
      data: a `FederatedData`.
      cohort: the clients, and where they run.
      key: PRNG key of the round; a client's key folds in its id.
    """
    everybody = jnp.arange(cohort.num_clients, dtype=jnp.int32)
    index = cohort.ids if cohort.data_index is None else cohort.data_index
    members = everybody if cohort.members is None else cohort.members

    def on_one(shared, own, examples, offsets, members, ids, index, key):
        if cohort.members is not None:
            ids = jnp.where(members == ABSENT, ABSENT, ids[jnp.minimum(members, ids.size - 1)])
            index = everybody
        starts, sizes = offsets[index], offsets[index + 1] - offsets[index]
        # Not by vmap, under which some kinds of keys are others.
        keys = jax.lax.map(functools.partial(jax.random.fold_in, key), ids)
        return fn(shared, own, Share(examples, starts, sizes, ids, members, keys), key)

    examples = jax.tree.map(jnp.asarray, dict(data.examples))
    arguments = (shared, own, examples, jnp.asarray(data.offsets), members, cohort.ids, index, key)
    if cohort.layout.is_single:
        return on_one(*arguments)._replace(trained=())

    def summed(shared, own, *rest):
        mine = on_one(shared, own, *rest)
        if not jax.tree.leaves(own):
            return sum_over_devices(mine._replace(trained=()))
        changed = choose_rows(mine.trained > 0, mine.own, trees.zeros_like(own))
        total = sum_over_devices(mine._replace(own=changed))
        return total._replace(own=choose_rows(total.trained > 0, total.own, own), trained=())

    of_rows = EVERYWHERE if cohort.members is None else SPREAD
    return jax.shard_map(
        summed,
        mesh=cohort.layout.mesh,
        in_specs=(EVERYWHERE, EVERYWHERE, of_rows, of_rows, of_rows, EVERYWHERE, EVERYWHERE, EVERYWHERE),
        out_specs=EVERYWHERE,
        check_vma=False,  # loop bounds differ by device; the psum makes the results equal
    )(*arguments)


def sum_over_devices(tree: Any) -> Any:
    """Sums over the devices that share a run's clients, in ONE message if all floats are float32.

    Summing each leaf separately would take one collective per leaf, and between hosts a collective of a
    few numbers takes as long as one of a million. Counts, int32, travel as two floats each, which is
    exact on up to 512 devices.
    """
    given, structure = jax.tree.flatten(tree)
    leaves = [_summable(leaf) for leaf in given]
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

    sums_of = [_as_before(unpack(leaf), before) for leaf, before in zip(leaves, given, strict=True)]
    return jax.tree.unflatten(structure, sums_of)


def _summable(leaf: jax.Array) -> jax.Array:
    """Returns flags as counts and PRNG keys as their data."""
    if trees.is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf.astype(jnp.int32) if leaf.dtype == bool else leaf


def _as_before(leaf: jax.Array, before: jax.Array) -> jax.Array:
    return trees.as_key(leaf, before) if trees.is_key(before) else leaf.astype(before.dtype)


def choose_rows(chosen: jax.Array, new: Any, old: Any) -> Any:
    """Returns `new` in rows where `chosen` `[K]`, else `old`; both are pytrees of `[K, ...]`."""

    def choose(a, b):
        return jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
