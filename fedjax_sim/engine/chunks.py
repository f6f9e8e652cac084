"""Chunks: a cohort is cut into chunks of `L` clients, which are spread over devices.

The only vmaps over clients are here, in `queues.py`, where a lane trains one client after another, in
`learners.py`, where clients keep their models, and in `client_rows.py`, for functions without training.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import ABSENT, CLIENTS, Client, ClientOutput, Cohort
from fedjax_sim.engine.collectives import CohortResult, Share, lanes_and_devices, on_every_device
from fedjax_sim.engine.results import check_own, collect, nothing, present


def map_clients(
    client_fn: Callable[[Any, Any, Client, jax.Array], ClientOutput],
    shared: Any,
    data: Any,
    cohort: Cohort,
    *,
    key: jax.Array,
    work: Callable[[jax.Array, jax.Array], jax.Array],
    own: Any = (),
) -> CohortResult:
    """Runs `client_fn` for every client of the cohort and sums what they send.

    Clients are sorted by work and cut into chunks of `L`, which go, longest first, to the least loaded
    device. A device walks its chunks and keeps one running sum, so memory grows with the lanes and not
    with the cohort. Only the clients of a chunk share a loop, which lasts as long as the longest.

    Args:
      client_fn: `client_fn(shared, own_k, client, key) -> ClientOutput`, the mathematics of one client.
        The length of its loops may depend on the client's size.
      shared: a pytree that every client receives.
      data: a `FederatedData` on the devices of the cohort's layout.
      cohort: the clients, and where they run.
      key: PRNG key of the round. A client's key folds in its id, so its results do not depend on its
        lane, its device or the order.
      work: `work(sizes [K], keys [K]) -> [K, P]` int32, the work of these clients in each of the P
        loops that lanes run together.
      own: `[K, ...]`, the client states; `own_k` is one row.

    Returns:
      The sums over the cohort, and the rows and states of its clients, on every device.
    """
    lanes, num_devices = lanes_and_devices(cohort)

    def on_one_device(shared, own, share: Share, key):
        # Absent clients get negative work, so they sort last and their chunks are skipped.
        load = jnp.where(share.ids[:, None] == ABSENT, -1, work(share.sizes, share.keys))
        chunks, cost, owner = _plan(load, lanes, num_devices)
        device = jax.lax.axis_index(CLIENTS) if num_devices > 1 else 0
        is_mine = (owner == device) & (cost >= 0)
        mine = jnp.argsort(~is_mine, stable=True)

        @functools.partial(jax.jit, inline=True)  # traced once, for shapes and for the loop
        def one_client(member, own):
            k = jnp.minimum(member, share.ids.size - 1)
            client, there = share.client(k), None
            position = share.positions[k]
            if lanes > 1:  # with one lane, empty chunks are never walked
                there = (member < share.ids.size) & (client.id != ABSENT)
                client = client._replace(size=jnp.where(there, client.size, 0))
                position = jnp.where(there, position, ABSENT)
            own_k = jax.tree.map(lambda rows: rows.at[position].get(mode="clip"), own)
            output = client_fn(shared, own_k, client, jax.random.fold_in(key, client.id))
            check_own(own_k, output.own)
            return present(output, there), position

        def walk(i, result: CohortResult):
            members = chunks[mine[i]]
            if lanes == 1:  # without a lane axis, which would switch conv2d to its other body
                output, position = one_client(members[0], result.own)
            else:
                of_lanes = jax.vmap(one_client, in_axes=(0, None))
                output, position = of_lanes(members, result.own)
            return collect(result, output, position, lanes * cost[mine[i]])

        output, _ = jax.eval_shape(one_client, jnp.zeros((), jnp.int32), own)
        start = nothing(output, own, cohort.num_clients)
        return jax.lax.fori_loop(0, jnp.sum(is_mine), walk, start)

    return on_every_device(on_one_device, shared, own, data, cohort, key)


def _plan(work: jax.Array, lanes: int, devices: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cuts a cohort into chunks and assigns each to a device.

    Args:
      work: `[K, P]` int32, by client and loop; negative for absent clients.
      lanes: `L`.
      devices: `D`.

    Returns:
      chunks `[C, L]` int32, positions in the cohort, `K` where a lane is empty;
      cost `[C]` int32, the work of each chunk: the longest client's of each loop, summed over loops;
      owner `[C]` int32, the device of each chunk, assigned longest first to the least loaded.
    """
    size, loops = work.shape
    count = -(-size // lanes)
    missing = count * lanes - size
    order = jnp.argsort(work.sum(axis=1), descending=True, stable=True).astype(jnp.int32)
    chunks = jnp.pad(order, (0, missing), constant_values=size).reshape(count, lanes)
    sorted_work = jnp.pad(work[order], ((0, missing), (0, 0)), constant_values=-1)
    longest = sorted_work.reshape(count, lanes, loops).max(axis=1)
    cost = longest.sum(axis=1, dtype=jnp.int32)  # in x64 mode sums would be int64

    def give(load, cost):
        device = jnp.argmin(load).astype(jnp.int32)
        # The 1 is a trip of the loop, which even a client without examples takes.
        return load.at[device].add(cost + 1), device

    _, owner = jax.lax.scan(give, jnp.zeros(devices, jnp.int32), cost)
    return chunks, cost, owner
