"""Rounds on data that stays on the host: each cohort is gathered and sent during the round before."""

import concurrent.futures
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core import trees
from fedjax_sim.core.checks import choose
from fedjax_sim.core.types import ABSENT, Algorithm, Cohort, Layout
from fedjax_sim.engine.placement import place
from fedjax_sim.runtime.devices import memory_bytes
from fedjax_sim.runtime.processes import fetch, is_multiprocess
from fedjax_sim.simulation import client_memory
from fedjax_sim.simulation.block import Blocks, split_key
from fedjax_sim.simulation.client_memory import WithMemory
from fedjax_sim.simulation.cohorts import CohortDraws, Drawn, sampler_state
from fedjax_sim.simulation.host_memory import HostMemory
from fedjax_sim.simulation.sharded_cohorts import send_parts, share_out

# The share of a device's memory that data may take; the rest is for models and activations.
_LARGEST_SHARE = 0.5
# Cohorts drawn by one call: enough to make the call cheap, few enough for short runs.
_DRAWN_TOGETHER = 16
_ROOM = 1.25  # the smallest shape has room for so many times the rows of the mean cohort


def stays_on_host(
    data_placement: str, algorithm: Algorithm, data: Any, layout: Layout, hparams: Mapping[str, Any]
) -> bool:
    """Returns whether a run's data and its clients' memory stay on the host; see `simulate`.

    Raises:
      ValueError: the placement is unknown, or the algorithm cannot run with it.
    """
    known = {"device": False, "host": True, "auto": None}
    chosen = choose("data_placement", data_placement, known)
    if chosen and algorithm.needs_all_data:
        raise ValueError(
            "data_placement is 'host', but this algorithm reads the data of all clients in every round; "
            "wanted 'device' or 'auto'"
        )
    if chosen is not None:
        return chosen
    if algorithm.needs_all_data:
        return False
    if not client_memory.fits_on_devices(algorithm, data.num_clients, hparams, layout):
        return True
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data)):
        return False
    if is_multiprocess() or any(isinstance(column, np.memmap) for column in data.examples.values()):
        return True
    limit = memory_bytes(jax.local_devices()[0])
    return limit is not None and trees.num_bytes(data) > _LARGEST_SHARE * limit


class PrefetchedCohort(NamedTuple):
    """A cohort on the devices.

    Attributes:
      drawn: clients that take part, and what else the sampler drew.
      data: a `FederatedData` of these clients alone, in this order.
      new_shape: whether this number of rows is new, so that the round must be compiled for it.
      seconds: time to gather and send it.
      stored: the clients' memory as it was before the round before, see `HostMemory.send`.
    """

    drawn: Drawn
    data: Any
    new_shape: bool
    seconds: float
    stored: Any


class CohortPrefetcher:
    """A thread that draws, gathers and sends each cohort one round ahead.

    Rows are padded to a power of two, so that cohorts of many sizes share few programs: at least to that
    of a mean cohort plus a margin, at most to the number of all rows.

    In one process, each device receives the whole cohort, and any device may train any client. With
    several processes, each device receives its own clients, and a process reads only their rows.

    Args:
      data: a `FederatedData`.
      key: PRNG key of the cohorts.
      draws: how cohorts are drawn.
      layout: lanes and devices that receive the cohorts.
      num_rounds: number of rounds; no cohort of a later round is gathered.
      spread: whether each device receives its own clients; by default with several processes.

    Attributes:
      memory: the `HostMemory` to gather from as well, or None.
      gather_seconds: time that the thread spent on the cohorts asked for so far.
      waited_seconds: time that rounds waited for the thread; the rest of its work was hidden behind
        rounds, evaluations and compilations.
    """

    def __init__(
        self,
        data: Any,
        key: jax.Array,
        draws: CohortDraws,
        layout: Layout,
        num_rounds: int,
        *,
        spread: bool | None = None,
    ):
        self.memory: HostMemory | None = None
        self.gather_seconds = self.waited_seconds = 0.0
        self._data = jax.tree.map(np.asanyarray, data)  # keeps memory maps
        consts, sizes = draws.program.consts, jnp.asarray(draws.sizes)
        self._draw = functools.partial(_draw, consts, key, sizes, program=draws.program)
        self._layout, self._num_rounds = layout, num_rounds
        self._parts = layout.num_devices if (is_multiprocess() if spread is None else spread) else 1
        share = draws.size / self._parts
        self._least_rows = math.ceil(_ROOM * share * int(data.offsets[-1]) / data.num_clients)
        self._first, self._state = None, ()  # round and sampler's state before the next call
        self._drawn: dict[int, Drawn] = {}
        self._futures: dict[int, concurrent.futures.Future[PrefetchedCohort]] = {}
        self._shapes: set[int] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "feed")

    @property
    def num_clients(self) -> int:
        """`N`."""
        return self._data.num_clients

    def cohort(self, r: int, state: Any = ()) -> PrefetchedCohort:
        """Returns the cohort of round `r`; after the first call, rounds must be consecutive.

        Args:
          r: the round.
          state: the sampler's state before it, read by the first call alone.

        Raises:
          ValueError: a file of the data has shrunk.
        """
        started = time.perf_counter()
        if self._first is None:
            # Copied, since a round consumes its state.
            self._first, self._state = r, jax.tree.map(np.array, fetch(state))
        fed = self._gathering(r).result()
        self.waited_seconds += time.perf_counter() - started
        self.gather_seconds += fed.seconds
        del self._futures[r]
        if r + 1 < self._num_rounds:
            self._gathering(r + 1)
        return fed

    def later(self, work: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        """Lets the thread do something after all cohorts that have been asked for."""
        return self._pool.submit(work, *arguments)

    def _gathering(self, r: int) -> concurrent.futures.Future[PrefetchedCohort]:
        if r not in self._futures:
            self._futures[r] = self._pool.submit(self._gather, r)
        return self._futures[r]

    def _gather(self, r: int) -> PrefetchedCohort:
        started = time.perf_counter()
        drawn = self._drawn_in(r)
        places = drawn.cohort.ids
        present = np.flatnonzero(places != ABSENT)
        ids = places[present]
        sizes = self._data.offsets[ids + 1] - self._data.offsets[ids]
        parts = share_out(sizes, self._parts)
        longest = max(int(sizes[part].sum()) for part in parts)
        num_rows = 1 << (max(longest, self._least_rows) - 1).bit_length()
        num_rows = min(num_rows, int(self._data.offsets[-1]))
        new_shape = num_rows not in self._shapes
        self._shapes.add(num_rows)
        drawn = place(drawn, self._layout)
        if self._parts == 1:
            cohort, data = self._send(drawn.cohort, present, ids, num_rows)
        else:
            parts = [present[part] for part in parts]
            cohort, data = send_parts(self._data, drawn.cohort, parts, num_rows, self._layout)
        stored = () if self.memory is None else self.memory.send(places)
        sent = (drawn._replace(cohort=cohort), data, stored)
        *sent, stored = jax.block_until_ready(sent)
        return PrefetchedCohort(*sent, new_shape, time.perf_counter() - started, stored)

    def _send(
        self, cohort: Cohort, present: np.ndarray, ids: np.ndarray, num_rows: int
    ) -> tuple[Cohort, Any]:
        """Sends the whole cohort to every device; the clients at positions `present` are `ids`."""
        data, room = self._data.select(ids, num_rows), cohort.num_clients
        offsets = np.pad(data.offsets, (0, room - ids.size), mode="edge")
        index = np.full(room, ids.size, np.int32)  # of an empty client
        index[present] = np.arange(ids.size)
        data = dataclasses.replace(data, offsets=offsets, client_ids=None)
        index, data = place((index, data), self._layout)
        return dataclasses.replace(cohort, layout=self._layout, data_index=index), data

    def _drawn_in(self, r: int) -> Drawn:
        """Returns what is drawn for a round, one call ahead, since a call waits for the round before."""
        call, within = divmod(r - self._first, _DRAWN_TOGETHER)
        for c in (call, call + 1):
            if c not in self._drawn:
                first = np.int32(self._first + c * _DRAWN_TOGETHER)
                self._state, self._drawn[c] = self._draw(first, self._state)
        self._drawn.pop(call - 1, None)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[within], self._drawn[call])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown(cancel_futures=True)


@functools.partial(jax.jit, static_argnames="program")
def _draw(consts, key, sizes, first, state, *, program):
    """Draws for the rounds from `first` on: the sampler's last state, and `[_DRAWN_TOGETHER, ...]`."""

    def draw(state, r):
        drawn = program.run(consts, jax.random.fold_in(key, r), r, state, sizes)
        return drawn.state, drawn

    # Not by vmap: under it, some kinds of keys draw other numbers.
    return jax.lax.scan(draw, state, first + jnp.arange(_DRAWN_TOGETHER, dtype=jnp.int32))


@dataclasses.dataclass(frozen=True)
class HostBlocks(Blocks):
    """Rounds on prefetched cohorts; `data` is the `CohortPrefetcher`.

    Attributes:
      memory_path: file of clients' memory; None for a temporary one.
    """

    memory_path: pathlib.Path | None = None

    @property
    def _specs(self) -> Any:
        return self.algorithm.specs

    def _start(self, key: jax.Array, hparams: Any, *params: Any) -> Any:
        return self.algorithm.init(key, hparams, self.num_clients, *params)

    def starts(
        self, runs: Iterable[tuple[jax.Array, Mapping[str, float]]], initial_params: Any = None
    ) -> list[tuple[Any, Any]]:
        """Returns the state before the first round of a single run; see `Blocks.starts`."""
        ((key, hparams),) = runs
        ((state, keys),) = super().starts([(key, hparams)], initial_params)
        if self.algorithm.memory is not None:
            first = client_memory.memory_key(place(split_key(key).init, self.layout))
            params = jax.tree.map(jnp.copy, state.params)  # the state is donated
            about = (self.algorithm.memory, first, params, self.num_clients)
            self.data.memory = HostMemory(*about, self.layout, self.memory_path)
            state = WithMemory(state, self.data.memory)
        return [(state, keys)]

    def run(
        self, state: Any, keys: Any, done: int, count: int
    ) -> tuple[Any, dict[str, np.ndarray], float]:
        """Runs each round by a call of its own, compiling new shapes off the clock; see `Blocks.run`."""
        infos, seconds, writing = [], 0.0, None
        for r in range(done, done + count):
            started = time.perf_counter()
            drawn, data, new_shape, _, stored = self.data.cohort(r, sampler_state(state))
            entering = time.perf_counter()
            entered = _enter(state, stored)
            if new_shape:
                entered, _ = self._play(entered, data, keys, r, 0, 1, drawn)
                started += time.perf_counter() - entering
            entered, info = self._play(entered, data, keys, r, 1, 1, drawn)
            if writing is not None:
                writing.result()
            state, writing = self._leave(state, entered, drawn.cohort)
            infos.append(jax.block_until_ready(info))
            seconds += time.perf_counter() - started
        started = time.perf_counter()
        if writing is not None:
            writing.result()  # now nothing reads or writes the file until the next block
        seconds += time.perf_counter() - started
        infos = jax.device_get(infos)
        names = infos[0] if infos else ()
        return state, {name: np.concatenate([info[name] for info in infos]) for name in names}, seconds

    def _leave(self, state: Any, entered: Any, cohort: Cohort) -> tuple[Any, Any]:
        """Returns the state after a round, and the future of writing its clients' memory, if any."""
        if not isinstance(state, WithMemory):
            return entered, None
        ids = np.asarray(cohort.ids)
        state.clients.keep(ids, entered.clients)
        writing = self.data.later(state.clients.put, ids, entered.clients)
        return state._replace(server=entered.server), writing


def _enter(state: Any, stored: Any) -> Any:
    """Returns the state for a round, with the memory of its cohort on the devices."""
    if not isinstance(state, WithMemory):
        return state
    return state._replace(clients=state.clients.take(*stored))
