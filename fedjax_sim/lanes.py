"""The engine: a cohort becomes chunks of lanes, spread over devices.

Here, in `queues.py`, where lanes pass from client to client, and in `learners.py`, where clients keep
their models, stand the only vmaps over clients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_sim import processes, trees
from fedjax_sim.base import ABSENT, CLIENTS, RUNS, Client, ClientOutput, Cohort, Layout

_HALF = 15  # bits of a count in the lower of its two floats
EVERYWHERE = PartitionSpec()  # a copy on every device
SPREAD = PartitionSpec(CLIENTS)  # each device has its part


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
    lanes, sharers = lanes_and_sharers(cohort)

    def on_one_device(broadcast, examples, offsets, ids, places, key):
        starts, sizes = offsets[places], offsets[places + 1] - offsets[places]
        # Absent clients get negative work, so they sort last and their chunks are skipped.
        load = jnp.where(ids[:, None] == ABSENT, -1, work(sizes))
        chunks, cost, owner = _plan(load, lanes, sharers)
        device = jax.lax.axis_index(CLIENTS) if sharers > 1 else 0
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


def lanes_and_sharers(cohort: Cohort) -> tuple[int, int]:
    """Lanes of a device, and how many devices plan together: each alone if it has its own clients."""
    devices = cohort.layout.num_devices
    lanes = min(cohort.layout.lanes, -(-cohort.num_clients // devices))
    return lanes, devices if cohort.size is None else 1


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


def on_every_device(
    fn: Callable[..., CohortSums], broadcast: Any, data: Any, cohort: Cohort, key: jax.Array
) -> CohortSums:
    """The sum of what `fn` returns on each device of the cohort's layout.

    Args:
      fn: `fn(broadcast, examples, offsets, ids, places, key) -> CohortSums`, of its device's share.
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


def map_rows(
    fn: Callable[[Any, Any], Any], broadcast: Any, rows: Any, layout: Layout, *, batch_size: int
) -> Any:
    """Applies `fn` to all rows in batches, each device taking its share of them.

    Args:
      fn: `fn(broadcast, batch) -> pytree of [B, ...]`, from `batch`, a pytree of `[B, ...]`.
      broadcast: a pytree that every batch receives.
      rows: a pytree of `[n, ...]`; `n` is a multiple of `D * batch_size` (see `pad_rows`).
      layout: where.
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


def pad_rows(rows: Any, layout: Layout, batch_size: int) -> tuple[Any, int]:
    """Pads NumPy rows with zeros for `map_rows` and puts each device's share on it.

    Returns:
      The placed rows, and the batch size to use: at most `batch_size`, less for few rows.
    """
    n = len(jax.tree.leaves(rows)[0])
    devices = layout.num_devices
    batch_size = max(1, min(batch_size, -(-n // devices)))
    missing = -n % (devices * batch_size)
    padded = jax.tree.map(lambda a: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)), rows)
    return place(padded, layout, SPREAD), batch_size


def place(tree: Any, layout: Layout, specs: Any = EVERYWHERE) -> Any:
    """Puts arrays on the layout's devices: a copy on each, unless `specs` share them out.

    Args:
      tree: what to place.
      layout: where.
      specs: a PartitionSpec, or a pytree of them of which `tree` may be deeper.
    """
    if not processes.several():
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
    """Where a layout puts what `specs` say, as JAX takes it; None for the default device."""
    if layout.mesh is None:
        return None
    return jax.tree.map(
        lambda spec: NamedSharding(layout.mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),  # a tuple to some versions of JAX
    )


def of_runs(specs: Any, layout: Layout) -> Any:
    """What `specs` say, of arrays with a leading axis of runs, which the parts of a mesh share."""
    runs = RUNS if layout.num_parts > 1 else None
    return jax.tree.map(
        lambda spec: PartitionSpec(runs, *spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
