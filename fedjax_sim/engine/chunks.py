"""The engine: a cohort becomes chunks of lanes, spread over devices.

Here, in `queues.py`, where lanes pass from client to client, and in `learners.py`, where clients keep
their models, stand the only vmaps over clients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.types import ABSENT, CLIENTS, Client, ClientOutput, Cohort
from fedjax_sim.engine.collectives import lanes_and_devices, on_every_device


class CohortSums(NamedTuple):
    """What a round learns of its cohort.

    Attributes:
      update: the sum of `weight * update` over the cohort.
      weight: `[]` float32, the sum of the weights.
      metrics: the sums of the clients' metrics.
      slots: `[]` int32, the work executed, by clients and in idle lanes: of each loop of a chunk, its
        longest client's in every lane; in queues every step of every lane.
    """

    update: Any
    weight: jax.Array
    metrics: dict[str, jax.Array]
    slots: jax.Array


def map_clients(
    client_fn: Callable[[Any, Client, jax.Array], ClientOutput],
    broadcast: Any,
    data: Any,
    cohort: Cohort,
    *,
    key: jax.Array,
    work: Callable[[jax.Array], jax.Array],
) -> CohortSums:
    """Runs `client_fn` for every client of the cohort and sums what they send.

    Clients are sorted by work and cut into chunks of `L`; chunks go, longest first, to the least
    loaded device; a device walks its chunks and keeps one running sum, so that memory grows with
    the lanes and not with the cohort. Only chunks share a loop: its length is their longest client.

    Args:
      client_fn: `client_fn(broadcast, client, key) -> ClientOutput`, one client's mathematics. Its
        loops may be as long as the client's size says.
      broadcast: a pytree that every client receives.
      data: a `FederatedData`, on the devices of the cohort's layout.
      cohort: who takes part, and where.
      key: PRNG key of the round; a client's own key folds in its id, so that what it computes does
        not depend on its lane, its device or the order.
      work: sizes `[K]` -> `[K, P]` int32, the work of clients of these sizes in each of the P loops
        that lanes walk together.

    Returns:
      The sums over the cohort, on every device.
    """
    lanes, num_devices = lanes_and_devices(cohort)

    def on_one_device(broadcast, examples, offsets, ids, places, key):
        starts, sizes = offsets[places], offsets[places + 1] - offsets[places]
        # Absent clients get negative work, so they sort last and their chunks are skipped.
        load = jnp.where(ids[:, None] == ABSENT, -1, work(sizes))
        chunks, cost, owner = _plan(load, lanes, num_devices)
        device = jax.lax.axis_index(CLIENTS) if num_devices > 1 else 0
        is_mine = (owner == device) & (cost >= 0)
        mine = jnp.argsort(~is_mine, stable=True)

        def one_client(member):
            k = jnp.minimum(member, ids.size - 1)
            present = (member < ids.size) & (ids[k] != ABSENT)
            client = Client(examples, starts[k], jnp.where(present, sizes[k], 0), ids[k])
            return weighted(client_fn(broadcast, client, jax.random.fold_in(key, client.id)), present)

        def one_chunk(members):
            if lanes == 1:  # without a lane axis, under which conv2d would take its other body
                return one_client(members[0])
            return jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(one_client)(members))

        def walk(i, sums):
            *outputs, slots = sums
            chunk = mine[i]
            return *trees.add(tuple(outputs), one_chunk(chunks[chunk])), slots + lanes * cost[chunk]

        nothing = trees.zeros_like(jax.eval_shape(one_chunk, chunks[0]))
        count = jnp.sum(is_mine)
        sums = jax.lax.fori_loop(0, count, walk, (*nothing, jnp.zeros((), jnp.int32)))
        return CohortSums(*sums)

    return on_every_device(on_one_device, broadcast, data, cohort, key)


def weighted(output: ClientOutput, present: jax.Array) -> tuple[Any, jax.Array, Any]:
    """What a client adds to a cohort's update, weight and metrics; zeros where it is not `present`.

    Raises:
      ValueError: the update holds integers, which times a weight would be rounded or wrap.
    """
    whole = [leaf.dtype for leaf in jax.tree.leaves(output.update) if not _is_float(leaf)]
    if whole:
        raise ValueError(
            f"a client's update holds {whole[0]}, and updates are multiplied by the client's weight; "
            "wanted floats: send integers in `metrics`, which are summed as they are"
        )
    weight = jnp.where(present, output.weight, 0).astype(jnp.float32)
    metrics = jax.tree.map(lambda m: jnp.where(present, m, 0), output.metrics)
    # Not by the weight alone: zero times what an empty client divides by zero is NaN.
    update = jax.tree.map(lambda u: jnp.where(weight > 0, weight * u, 0).astype(u.dtype), output.update)
    return update, weight, metrics


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


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
    cost = sorted_work.reshape(count, lanes, loops).max(axis=1).sum(axis=1)

    def give(load, cost):
        device = jnp.argmin(load).astype(jnp.int32)
        # A client costs something even without examples: it is a trip of the loop.
        return load.at[device].add(cost + 1), device

    _, owner = jax.lax.scan(give, jnp.zeros(devices, jnp.int32), cost)
    return chunks, cost, owner
