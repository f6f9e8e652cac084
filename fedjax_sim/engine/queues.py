"""Lanes as queues: who is done with a client takes the next, and no client waits for a longer one.

Chunks of clients, as in `map_clients`, last as long as their longest client, and the sizes of real
people's data differ a hundredfold. Here all lanes step together, and at a step where some client is done
its lane sends what it has learned and begins with another. Towards the end, when queues are empty,
the lanes that are left move together into a narrower program.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.types import ABSENT, CLIENTS, Client, ClientOutput, Cohort, Params
from fedjax_sim.engine.chunks import CohortSums, map_clients, weighted
from fedjax_sim.engine.client import ClientWork
from fedjax_sim.engine.collectives import lanes_and_devices, on_every_device

_IDLE = 40  # one step in so many may be spent on idle lanes if the round ends sooner for it


def train_clients(
    work: ClientWork,
    send: Callable[[Params, Any, Client], ClientOutput],
    params: Params,
    rate: Any,
    data: Any,
    cohort: Cohort,
    *,
    key: jax.Array,
) -> CohortSums:
    """Has every client of the cohort train from `params` and sums what they send.

    Args:
      work: what a client does, such as `local_training` returns.
      send: `send(params, trained, client)`, where `trained` is what `work.run` returns.
      params: where each client starts.
      rate: for the clients' optimizers.
      data: a `FederatedData`, on the devices of the cohort's layout.
      cohort: who takes part, and where.
      key: PRNG key of the round; a client's own key folds in its id.

    Returns:
      The sums over the cohort, on every device. They depend on lanes and devices only through the order
      of float sums.
    """
    lanes, num_devices = lanes_and_devices(cohort)
    if work.steps is None or lanes == 1:

        def whole(broadcast, client, key):
            params, rate = broadcast
            return send(params, work.run(params, client, key, rate), client)

        return map_clients(whole, (params, rate), data, cohort, key=key, work=work.slots)

    widths = halving(lanes)

    def on_one_device(broadcast, examples, offsets, ids, places, key):
        params, rate = broadcast
        starts, sizes = offsets[places], offsets[places + 1] - offsets[places]
        # An empty client runs one step on nothing, which is discarded, so that it still reaches `send`.
        count = jnp.where(ids == ABSENT, 0, jnp.maximum(work.steps.count(sizes), 1))
        queues = plan_queues(count, widths, num_devices)
        mine = jnp.arange(lanes) * num_devices + (jax.lax.axis_index(CLIENTS) if num_devices > 1 else 0)
        first, last, ends = queues.first[mine], queues.first[mine + 1], queues.loads[mine]

        def view(member):
            k = jnp.minimum(member, ids.size - 1)
            size = jnp.where(member < ids.size, sizes[k], 0)
            return Client(examples, starts[k], size, ids[k]), jax.random.fold_in(key, ids[k])

        def begin(member):
            return work.steps.begin(params, *view(member), rate)

        def step(i, carry, client):
            return work.steps.step(i, carry, client, rate)

        of_lanes = Client(None, 0, 0, 0)  # all read the same examples

        def finish(carry, member, done):
            client, _ = view(member)
            empty = client.size == 0
            choose = functools.partial(jnp.where, empty)
            trained = jax.tree.map(choose, work.steps.end(begin(member)), work.steps.end(carry))
            return weighted(send(params, trained, client), done)

        def enter(position, last):
            """The client at a position of the queues, and how many steps it has."""
            there = position < last
            member = jnp.where(there, queues.clients[jnp.minimum(position, ids.size - 1)], ids.size)
            return member, jnp.where(there, count[jnp.minimum(member, ids.size - 1)], 0)

        def advance(state: _State, end: jax.Array) -> _State:
            """All lanes step until the first of them is done, which then turns to its next client."""
            width = state.left.size
            running = state.left > 0
            trips = jnp.min(jnp.where(running, state.left, end - state.time))
            trips = jnp.minimum(trips, end - state.time)
            clients, _ = jax.vmap(view, out_axes=(of_lanes, 0))(state.member)
            steps = jax.vmap(step, in_axes=(0, 0, of_lanes))
            carry = jax.lax.fori_loop(
                0, trips, lambda s, carry: steps(state.i + s, carry, clients), state.carry
            )
            done = running & (state.left == trips)
            outputs = jax.vmap(finish)(carry, state.member, done)
            sums = trees.add(state.sums, jax.tree.map(lambda leaf: leaf.sum(0), outputs))
            position = state.position + done.astype(jnp.int32)
            member, left = enter(position, last[:width])
            carry = jax.tree.map(functools.partial(_choose, done), jax.vmap(begin)(member), carry)
            return _State(
                time=state.time + trips,
                slots=state.slots + width * work.steps.width * trips,
                sums=sums,
                position=position,
                member=member,
                left=jnp.where(done, left, jnp.maximum(state.left - trips, 0)),
                i=jnp.where(done, 0, state.i + trips),
                carry=carry,
            )

        member, left = enter(first, last)
        carry = jax.vmap(begin)(member)
        shapes = jax.eval_shape(jax.vmap(finish), carry, member, left > 0)
        zero = jnp.zeros((), jnp.int32)
        state = _State(
            time=zero,
            slots=zero,
            sums=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shapes),
            position=first,
            member=member,
            left=left,
            i=jnp.zeros_like(left),
            carry=carry,
        )
        for width, narrower in zip(widths, (*widths[1:], 0), strict=True):
            # Lanes stand in the order of their loads: when that of the first one too many is done, all
            # behind it are.
            end = ends[narrower]
            state = state.narrowed(width)
            state = jax.lax.while_loop(
                lambda state, end=end: state.time < end,
                lambda state, end=end: advance(state, end),
                state,
            )
        return CohortSums(*state.sums, state.slots)

    return on_every_device(on_one_device, (params, rate), data, cohort, key)


class _State(NamedTuple):
    """Of the lanes of one device, `w` of them.

    Attributes:
      time: `[]` int32, the steps done.
      slots: `[]` int32, the example slots executed.
      sums: the sums over the clients that are done.
      position: `[w]` int32, where the lanes' present clients stand in the queues.
      member: `[w]` int32, their places in the cohort; `K` in a lane that is idle.
      left: `[w]` int32, the steps they have yet to do.
      i: `[w]` int32, the steps they have done.
      carry: of their work, `[w, ...]`.
    """

    time: jax.Array
    slots: jax.Array
    sums: Any
    position: jax.Array
    member: jax.Array
    left: jax.Array
    i: jax.Array
    carry: Any

    def narrowed(self, width: int) -> "_State":
        """The first `width` lanes."""
        lanes = (self.position, self.member, self.left, self.i, self.carry)
        position, member, left, i, carry = jax.tree.map(lambda leaf: leaf[:width], lanes)
        return self._replace(position=position, member=member, left=left, i=i, carry=carry)


class Queues(NamedTuple):
    """Which lane trains whom; lane j is the lane `j // D` of device `j % D`.

    Attributes:
      clients: `[K]` int32, places in the cohort, one lane's queue after the other's; then who is absent.
      first: `[L * D + 1]` int32, where each lane's queue begins.
      loads: `[L * D]` int32, the steps of each lane, in descending order.
    """

    clients: jax.Array
    first: jax.Array
    loads: jax.Array


def plan_queues(count: jax.Array, widths: tuple[int, ...], devices: int) -> Queues:
    """Gives each client, longest first, to the least loaded lane.

    How many lanes take part is chosen: as many as end the round soonest, among those that leave few
    steps to idle lanes. One client that has half the data lasts as long beside one lane as beside ten.

    Args:
      count: `[K]` int32, the steps of each client, at least 1; 0 of who is absent and gets no lane.
      widths: how many lanes of a device may step together, in descending order, the last 1.
      devices: `D`.

    Source of the order: R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on
    Applied Mathematics 17(2), 1969, https://doi.org/10.1137/0117039
    """
    most = widths[0] * devices
    order = jnp.argsort(count, descending=True, stable=True).astype(jnp.int32)
    choices = jnp.array(widths[::-1], jnp.int32)  # of equally good ones the narrowest
    takes_part = jnp.arange(most)[None] < choices[:, None] * devices
    never = jnp.iinfo(jnp.int32).max // 2

    def give(loads, steps):
        lane = jnp.argmin(loads, axis=1).astype(jnp.int32)
        return loads.at[jnp.arange(len(widths)), lane].add(steps), lane

    loads, lanes = jax.lax.scan(give, jnp.where(takes_part, 0, never), count[order])
    loads = jnp.where(takes_part, loads, 0)
    ranks = jnp.argsort(loads, axis=1, descending=True, stable=True)
    loads = jnp.take_along_axis(loads, ranks, axis=1)

    executed, before = jnp.zeros(len(widths), jnp.int32), 0
    for width, narrower in zip(widths, (*widths[1:], 0), strict=True):
        end = loads.reshape(-1, widths[0], devices)[:, narrower]
        executed = executed + width * (end - before).sum(axis=1)
        before = end
    good = executed <= count.sum() + count.sum() // _IDLE  # one lane is never idle
    best = jnp.argmin(jnp.where(good, loads[:, 0], never))

    lane = jnp.argsort(ranks[best])[lanes[:, best]]  # of each client in `order`, by descending load
    lane = jnp.where(count[order] > 0, lane, most)
    clients = order[jnp.argsort(lane, stable=True)]
    lengths = jnp.bincount(lane, length=most + 1)[:-1]
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(lengths).astype(jnp.int32)])
    return Queues(clients, first, loads[best])


def halving(lanes: int) -> tuple[int, ...]:
    """`L`, half of it, and so on to 1: the widths in which the lanes of a device can step."""
    widths = [lanes]
    while widths[-1] > 1:
        widths.append(-(-widths[-1] // 2))
    return tuple(widths)


def _choose(done: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` in the lanes that are done; `[w, ...]`."""
    return jnp.where(done.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
