"""Lanes as queues: a lane that finishes a client starts the next; none waits for a longer client.

A chunk of clients, as in `map_clients`, lasts as long as its longest client, and the sizes of real
clients differ a hundredfold. Here all lanes step together; a lane whose client is done sends the
result and starts its next client. Towards the end, when queues run empty, the lanes still at work
continue in a narrower program.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import ABSENT, CLIENTS, Client, ClientOutput, Cohort, Params
from fedjax_sim.engine.chunks import map_clients
from fedjax_sim.engine.collectives import (
    CohortResult,
    Share,
    choose_rows,
    lanes_and_devices,
    on_every_device,
)
from fedjax_sim.engine.results import check_own, collect, nothing, present
from fedjax_sim.engine.work import ClientWork

# Folded into a client's key, so that `enter`, `leave` and training draw differently.
_ENTER, _LEAVE = 2**32 - 1, 2**32 - 2
_NARROW = 16  # lanes of an accelerator whose step takes little longer than one lane's


def train_clients(
    work: ClientWork,
    shared: Any,
    data: Any,
    cohort: Cohort,
    *,
    key: jax.Array,
    leave: Callable[[Any, Any, Client, Any, jax.Array], ClientOutput],
    enter: Callable[[Any, Any, Client, jax.Array], tuple[Params, Any]] | None = None,
    own: Any = (),
) -> CohortResult:
    """Trains every client of the cohort and sums what they send.

    Args:
      work: a client's work, such as `local_training` returns.
      shared: a pytree that every client receives; without `enter` it is a tuple that begins with
        `(params, rate)`.
      data: a `FederatedData` on the devices of the cohort's layout.
      cohort: the clients, and where they run.
      key: PRNG key of the round; a client's key folds in its id.
      leave: `leave(shared, own_k, client, trained, key) -> ClientOutput`, where `trained` is what
        `work.run` returns.
      enter: `enter(shared, own_k, client, key) -> (params, rate)`, the parameters from which a client
        starts, and its optimizer's rate, which may be any pytree that the work takes.
      own: `[K, ...]`, the client states; `own_k` is one row.

    Returns:
      The sums over the cohort, and the rows and states of its clients, on every device. They depend on
      lanes and devices only through the order of float sums.

    Raises:
      ValueError: when traced, `shared` or what `enter` returns is no pair, or a client returns another
        state than it was given.
    """
    lanes, num_devices = lanes_and_devices(cohort)

    def start(shared, own_k, client, key):
        if enter is None:
            first = shared[:2] if isinstance(shared, tuple) else shared
            return _pair(first, "without `enter`, `shared`")
        began = enter(shared, own_k, client, jax.random.fold_in(key, _ENTER))
        return _pair(began, "what `enter` returns")

    def end(shared, own_k, client, trained, key):
        return leave(shared, own_k, client, trained, jax.random.fold_in(key, _LEAVE))

    if work.steps is None or lanes == 1:

        def whole(shared, own_k, client, key):
            params, rate = start(shared, own_k, client, key)
            return end(shared, own_k, client, work.run(params, client, key, rate), key)

        return map_clients(whole, shared, data, cohort, key=key, work=work.slots, own=own)

    widths, busy = widths_of(lanes, -(-cohort.num_clients // num_devices), jax.default_backend())
    lanes = widths[0]

    def on_one_device(shared, own, share: Share, key):
        # An empty client runs one discarded step so that it still reaches `leave`.
        count = work.steps.count(share.sizes, share.keys)
        count = jnp.where(share.ids == ABSENT, 0, jnp.maximum(count, 1))
        queues = plan_queues(count, widths, num_devices, busy)
        mine = jnp.arange(lanes) * num_devices + (jax.lax.axis_index(CLIENTS) if num_devices > 1 else 0)
        first, last, ends = queues.first[mine], queues.first[mine + 1], queues.loads[mine]
        room = share.ids.size

        def view(member):
            client = share.client(jnp.minimum(member, room - 1))
            client = client._replace(size=jnp.where(member < room, client.size, 0))
            return client, jax.random.fold_in(key, client.id)

        def memory_of(member, own):
            position = share.positions[jnp.minimum(member, room - 1)]
            return jax.tree.map(lambda rows: rows.at[position].get(mode="clip"), own)

        def begin(member, own):
            client, key = view(member)
            params, rate = start(shared, memory_of(member, own), client, key)
            # A rate shared by all clients gets no lane axis.
            return work.steps.begin(params, client, key, rate), () if enter is None else rate

        def step(i, carry, client):
            inner, rate = carry
            return work.steps.step(i, inner, client, shared[1] if enter is None else rate), rate

        of_lanes = Client(None, 0, 0, 0)  # all lanes read the same examples

        def finish(carry, member, done, own):
            client, key = view(member)
            fresh, own_k = begin(member, own), memory_of(member, own)
            choose = functools.partial(jnp.where, client.size == 0)
            trained = jax.tree.map(choose, work.steps.end(fresh[0]), work.steps.end(carry[0]))
            output = end(shared, own_k, client, trained, key)
            check_own(own_k, output.own)
            position = share.positions[jnp.minimum(member, room - 1)]
            return present(output, done), jnp.where(done, position, ABSENT)

        of_members = jax.vmap(finish, in_axes=(0, 0, 0, None))

        def enter_queue(position, last):
            """Returns the client at a position of the queues, and its number of steps."""
            there = position < last
            member = jnp.where(there, queues.clients[jnp.minimum(position, room - 1)], room)
            return member, jnp.where(there, count[jnp.minimum(member, room - 1)], 0)

        def advance(state: _State, end: jax.Array) -> _State:
            """Steps all lanes until the first client is done; its lane then starts the next one."""
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
            outputs, positions = of_members(carry, state.member, done, state.result.own)
            slots = width * work.steps.width * trips
            result = collect(state.result, outputs, positions, slots)
            position = state.position + done.astype(jnp.int32)
            member, left = enter_queue(position, last[:width])
            new = jax.vmap(begin, in_axes=(0, None))(member, result.own)
            return _State(
                time=state.time + trips,
                result=result,
                position=position,
                member=member,
                left=jnp.where(done, left, jnp.maximum(state.left - trips, 0)),
                i=jnp.where(done, 0, state.i + trips),
                carry=choose_rows(done, new, carry),
            )

        member, left = enter_queue(first, last)
        carry = jax.vmap(begin, in_axes=(0, None))(member, own)
        outputs, _ = jax.eval_shape(of_members, carry, member, left > 0, own)
        output = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), outputs)
        state = _State(
            time=jnp.zeros((), jnp.int32),
            result=nothing(output, own, cohort.num_clients),
            position=first,
            member=member,
            left=left,
            i=jnp.zeros_like(left),
            carry=carry,
        )
        for width, narrower in zip(widths, (*widths[1:], 0), strict=True):
            # Lanes are sorted by descending load: once lane `narrower` is done, so are all behind it.
            end_time = ends[narrower]
            state = state.narrowed(width)
            state = jax.lax.while_loop(
                lambda state, end=end_time: state.time < end,
                lambda state, end=end_time: advance(state, end),
                state,
            )
        return state.result

    return on_every_device(on_one_device, shared, own, data, cohort, key)


def _pair(given: Any, what: str) -> tuple[Params, Any]:
    """Returns where a client starts.

    Raises:
      ValueError: it is no pair.
    """
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(
            f"{what} is {jax.tree.structure(given)}; wanted a tuple of a client's parameters and its "
            "optimizer's rate"
        )
    return given


class _State(NamedTuple):
    """The state of the `w` lanes of one device.

    Attributes:
      time: `[]` int32, the number of steps so far.
      result: the result of the clients that are done.
      position: `[w]` int32, each lane's position in the queues.
      member: `[w]` int32, the place of each lane's client in the cohort; `K` in an idle lane.
      left: `[w]` int32, the remaining steps of each lane's client.
      i: `[w]` int32, the completed steps of each lane's client.
      carry: `[w, ...]`, the carry of each lane's work.
    """

    time: jax.Array
    result: CohortResult
    position: jax.Array
    member: jax.Array
    left: jax.Array
    i: jax.Array
    carry: Any

    def narrowed(self, width: int) -> "_State":
        """Returns the state of the first `width` lanes."""
        lanes = (self.position, self.member, self.left, self.i, self.carry)
        position, member, left, i, carry = jax.tree.map(lambda leaf: leaf[:width], lanes)
        return self._replace(position=position, member=member, left=left, i=i, carry=carry)


class Queues(NamedTuple):
    """The clients of each lane; lane j is lane `j // D` of device `j % D`.

    Attributes:
      clients: `[K]` int32, places in the cohort, one lane's queue after another; absent clients last.
      first: `[L * D + 1]` int32, the start of each lane's queue in `clients`.
      loads: `[L * D]` int32, the steps of each lane, in descending order.
    """

    clients: jax.Array
    first: jax.Array
    loads: jax.Array


def plan_queues(count: jax.Array, widths: tuple[int, ...], devices: int, busy: int | None) -> Queues:
    """Assigns each client, longest first, to the least loaded lane.

    The number of lanes is the one that ends the round soonest among those with few idle steps. A client
    with half of the data, for example, takes as long beside one other lane as beside ten.

    Args:
      count: `[K]` int32, the steps of each client, at least 1; 0 for absent clients, which get no lane.
      widths: numbers of lanes of a device that may step together, in descending order.
      devices: `D`.
      busy: idle lanes may add one step to this many; None allows any number.

    Source of the order: R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on
    Applied Mathematics 17(2), 1969, https://doi.org/10.1137/0117039
    """
    most = widths[0] * devices
    order = jnp.argsort(count, descending=True, stable=True).astype(jnp.int32)
    choices = jnp.array(widths[::-1], jnp.int32)  # ascending, so that a tie goes to the narrowest
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
    if busy is None:
        best = jnp.argmin(loads[:, 0])
    else:
        good = executed <= count.sum() + count.sum() // busy  # one lane is never idle
        best = jnp.argmin(jnp.where(good, loads[:, 0], never))

    lane = jnp.argsort(ranks[best])[lanes[:, best]]  # each client's in `order`; lanes by descending load
    lane = jnp.where(count[order] > 0, lane, most)
    clients = order[jnp.argsort(lane, stable=True)]
    lengths = jnp.bincount(lane, length=most + 1)[:-1]
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(lengths).astype(jnp.int32)])
    return Queues(clients, first, loads[best])


def widths_of(lanes: int, clients: int, backend: str) -> tuple[tuple[int, ...], int | None]:
    """Returns the widths in which lanes can step, in descending order, and `busy` of `plan_queues`.

    Each width is compiled by itself. On a CPU a step lasts as long as it is wide, so widths halve down
    to 1 and hardly any lane idles. On an accelerator a narrow step lasts as long as its kernels take to
    start, and a width takes seconds to compile: widths quarter down to a few lanes, which may idle. Only
    as many lanes are used as equal clients fill: 50 lanes take 100 clients as soon as 64 do.

    Args:
      lanes: most lanes of a device.
      clients: clients of a device in a round, at least as many.
      backend: name from `jax.default_backend()`.
    """
    if backend == "cpu":
        part, least, busy = 2, 1, 40
    else:
        part, least, busy = 4, _NARROW, None
        lanes = -(-clients // -(-clients // lanes))
    widths = [lanes]
    while widths[-1] > least:
        widths.append(max(-(-widths[-1] // part), least))
    return tuple(widths), busy
