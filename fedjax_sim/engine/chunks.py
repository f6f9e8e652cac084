"""Chunks: a cohort is cut into chunks of lanes, which are spread over devices.

Here, in `queues.py`, where lanes pass from client to client, and in `learners.py`, where clients keep
their models, stand the only vmaps over clients.
"""

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

    Clients are sorted by work and cut into chunks of `L`; chunks go, longest first, to the least
    loaded device; a device walks its chunks and keeps one running sum, so that memory grows with
    the lanes and not with the cohort. Only chunks share a loop: its length is their longest client.

    Args:
      client_fn: `client_fn(shared, own_k, client, key) -> ClientOutput`, one client's mathematics. Its
        loops may be as long as the client's size says.
      shared: a pytree that every client receives.
      data: a `FederatedData`, on the devices of the cohort's layout.
      cohort: the clients, and where they run.
      key: PRNG key of the round; a client's own key folds in its id, so that what it computes does
        not depend on its lane, its device or the order.
      work: `work(sizes [K], keys [K]) -> [K, P]` int32, the work of clients of these sizes in each of
        the P loops that lanes walk together.
      own: `[K, ...]`, the clients' memory; `own_k` is one row of it.

    Returns:
      The sums over the cohort, the rows and the memory of its clients, on every device.
    """
    lanes, num_devices = lanes_and_devices(cohort)

    def on_one_device(shared, own, share: Share, key):
        # Absent clients get negative work, so they sort last and their chunks are skipped.
        load = jnp.where(share.ids[:, None] == ABSENT, -1, work(share.sizes, share.keys))
        chunks, cost, owner = _plan(load, lanes, num_devices)
        device = jax.lax.axis_index(CLIENTS) if num_devices > 1 else 0
        is_mine = (owner == device) & (cost >= 0)
        mine = jnp.argsort(~is_mine, stable=True)

        def one_client(member, own):
            k = jnp.minimum(member, share.ids.size - 1)
            client, there = share.client(k), None
            position = share.positions[k]
            if lanes > 1:  # with one lane, chunks without a client are never walked
                there = (member < share.ids.size) & (client.id != ABSENT)
                client = client._replace(size=jnp.where(there, client.size, 0))
                position = jnp.where(there, position, ABSENT)
            own_k = jax.tree.map(lambda rows: rows.at[position].get(mode="clip"), own)
            output = client_fn(shared, own_k, client, jax.random.fold_in(key, client.id))
            check_own(own_k, output.own)
            return present(output, there), position

        def walk(i, result: CohortResult):
            members = chunks[mine[i]]
            if lanes == 1:  # without a lane axis, under which conv2d would take its other body
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
    """Cuts a cohort into chunks and gives each to a device.

    Args:
      work: `[K, P]` int32, by client and loop; less than none of who is absent.
      lanes: `L`.
      devices: `D`.

    Returns:
      chunks `[C, L]` int32, positions in the cohort, `K` where a lane is empty;
      cost `[C]` int32, the work of a chunk: of each loop, its longest client's;
      owner `[C]` int32, the device of each chunk: longest first to the least loaded.
    """
    size, loops = work.shape
    count = -(-size // lanes)
    missing = count * lanes - size
    order = jnp.argsort(work.sum(axis=1), descending=True, stable=True).astype(jnp.int32)
    chunks = jnp.pad(order, (0, missing), constant_values=size).reshape(count, lanes)
    sorted_work = jnp.pad(work[order], ((0, missing), (0, 0)), constant_values=-1)
    longest = sorted_work.reshape(count, lanes, loops).max(axis=1)
    cost = longest.sum(axis=1, dtype=jnp.int32)  # in x64 mode sums are int64 otherwise

    def give(load, cost):
        device = jnp.argmin(load).astype(jnp.int32)
        # A client costs something even without examples: it is a trip of the loop.
        return load.at[device].add(cost + 1), device

    _, owner = jax.lax.scan(give, jnp.zeros(devices, jnp.int32), cost)
    return chunks, cost, owner
