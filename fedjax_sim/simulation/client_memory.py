"""The memory of clients: a row for each, which the simulation keeps and an algorithm sees by cohorts."""

import functools
import operator
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.types import Algorithm, Cohort, Layout
from fedjax_sim.engine.client_rows import make_rows, put_rows, spec_of_rows, take_rows
from fedjax_sim.engine.placement import EVERYWHERE
from fedjax_sim.runtime.devices import machine_bytes, memory_bytes
from fedjax_sim.simulation.row_store import free_bytes

# The share of a device's memory that clients' memory may take; the rest is for models and activations.
_LARGEST_SHARE = 0.5


class WithMemory(NamedTuple):
    """The state of an algorithm whose clients remember something.

    Attributes:
      server: the algorithm's own state.
      clients: `[N, ...]`, a row for each client; or a `HostMemory` of these rows, and while a round runs
        `[K, ...]`, the rows of its cohort.
      visited: `[N]` bool, the clients that have taken part; `()` with memory on the host.
    """

    server: Any
    clients: Any
    visited: Any = ()

    @property
    def params(self) -> Any:
        """The model to evaluate."""
        return self.server.params


def server_state(state: Any) -> Any:
    """Returns the algorithm's own state."""
    return state.server if isinstance(state, WithMemory) else state


def start(
    algorithm: Algorithm,
    num_clients: int,
    layout: Layout,
    key: jax.Array,
    hparams: Mapping[str, Any],
    *params: Any,
) -> Any:
    """Returns the state before the first round, with the memory of `N` clients if there is any."""
    state = algorithm.init(key, hparams, num_clients, *params)
    if algorithm.memory is None:
        return state

    def make(shared, ids):
        return first_rows(algorithm.memory, *shared, ids)

    # A barrier, since rows on the host are made from parameters that another program has computed.
    shared = (memory_key(key), jax.lax.optimization_barrier(state.params))
    rows = make_rows(make, shared, num_clients, layout)
    return WithMemory(state, rows, jnp.zeros(num_clients, bool))


def memory_key(key: jax.Array) -> jax.Array:
    """Returns the key of clients' first rows, from the key of `init`."""
    # Apart from what `init` draws: the parts of a split key are the key with 0, 1, ... folded in.
    return jax.random.fold_in(key, 2**32 - 1)


def first_rows(memory: Callable, key: jax.Array, params: Any, ids: jax.Array) -> Any:
    """Returns what clients `[K]` remember before they first take part, `[K, ...]`."""
    # Not by vmap, under which a row may depend on the others: some kinds of keys draw other numbers.
    return jax.lax.map(functools.partial(first_row, memory, key, params), ids)


def first_row(memory: Callable, key: jax.Array, params: Any, id: jax.Array) -> Any:
    """Returns what client `id` `[]` remembers before it first takes part."""
    return memory(jax.random.fold_in(key, id), params)


def play(round_fn: Callable, key: jax.Array, state: Any, data: Any, cohort: Cohort) -> tuple[Any, Any]:
    """Runs one round, which sees the memory of its cohort alone.

    Returns:
      The state, in which rows of absent clients are as before, and the round's info.

    Raises:
      ValueError: the round returns other memory than it should.
    """
    if not isinstance(state, WithMemory):
        state, own, info = round_fn(key, state, (), data, cohort)
        if jax.tree.leaves(own):
            raise ValueError(
                "the round returns clients' memory, but the algorithm has no `memory`; wanted "
                "Algorithm(memory=...), which says what a client remembers at first, or ()"
            )
        return state, info
    if isinstance(state.visited, tuple):  # these are the rows of the cohort alone
        server, own, info = round_fn(key, state.server, state.clients, data, cohort)
        _check_returned(state.clients, own)
        return WithMemory(server, own), info
    where = (state.visited.size, cohort.layout)
    before = take_rows(state.clients, cohort.ids, *where)
    server, own, info = round_fn(key, state.server, before, data, cohort)
    _check_returned(before, own)
    rows = put_rows(state.clients, cohort.ids, own, *where)
    return WithMemory(server, rows, state.visited.at[cohort.ids].set(True, mode="drop")), info


def _check_returned(own: Any, returned: Any) -> None:
    """Checks the memory that a round returns for its cohort.

    Raises:
      ValueError: it has other shapes than the memory that the round was given, or is that very memory.
    """
    given, got = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (own, returned)
    )
    if given != got:
        raise ValueError(
            f"the round returns the memory {got}; wanted {given}, as it was given: return the `own` of "
            "what train_clients or map_clients returns"
        )
    if all(map(operator.is_, jax.tree.leaves(own), jax.tree.leaves(returned))):
        raise ValueError(
            "the round returns the memory that it was given, so clients would never remember anything; "
            "wanted the `own` of what train_clients or map_clients returns"
        )


def without_keys(rows: Any) -> Any:
    """Returns rows with the data of PRNG keys in place of keys."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if trees.is_key(leaf) else leaf, rows)


def with_keys(rows: Any, like: Any) -> Any:
    """Returns the rows of which `without_keys` made `rows`, with the kinds of keys of `like`."""

    def restore(leaf, like):
        return trees.as_key(leaf, like) if trees.is_key(like) else leaf

    return jax.tree.map(restore, rows, like)


def row_like(algorithm: Algorithm, num_clients: int, hparams: Mapping[str, Any]) -> Any:
    """Returns the shapes and dtypes of one client's row."""

    def make(key):
        return algorithm.memory(key, algorithm.init(key, hparams, num_clients).params)

    return jax.eval_shape(make, jax.random.key(0))


def fits_on_devices(
    algorithm: Algorithm, num_clients: int, hparams: Mapping[str, Any], layout: Layout
) -> bool:
    """Returns whether clients' memory takes at most half of a device's, as far as that is known."""
    needed, room = _on_devices(algorithm, num_clients, hparams, layout)
    return room is None or needed <= _LARGEST_SHARE * room


def check_room(
    algorithm: Algorithm,
    num_clients: int,
    hparams: Mapping[str, Any],
    layout: Layout,
    num_copies: int = 1,
) -> None:
    """Refuses clients' memory for which the devices have no room.

    Args:
      algorithm: whose clients may remember something.
      num_clients: `N`.
      hparams: the algorithm's hyper-parameters.
      layout: devices that hold the rows.
      num_copies: how many times the rows lie there at the same time, in several runs.

    Raises:
      ValueError: the rows need more memory than the device, or the machine, has.
    """
    needed, room = _on_devices(algorithm, num_clients, hparams, layout, num_copies)
    if room is not None and needed > room:
        raise ValueError(
            f"the memory of {num_clients} clients takes {needed / 1e9:.3g} GB in {num_copies} copies, "
            f"and there are {room / 1e9:.3g} GB; wanted fewer clients, a smaller model, fewer runs at "
            "once or, in simulate, data_placement='host', which keeps it in a file"
        )


def check_disk(
    algorithm: Algorithm,
    num_clients: int,
    hparams: Mapping[str, Any],
    num_visits: int,
    path: pathlib.Path | None,
) -> None:
    """Refuses clients' memory for which the disk has no room.

    Args:
      algorithm: whose clients may remember something.
      num_clients: `N`.
      hparams: the algorithm's hyper-parameters.
      num_visits: clients of all rounds; only clients that take part need room.
      path: file of the rows; None for a temporary one.

    Raises:
      ValueError: the rows may need more than is free.
    """
    if algorithm.memory is None:
        return
    count = min(num_clients, num_visits)
    needed = count * trees.num_bytes(row_like(algorithm, num_clients, hparams))
    free = free_bytes(path)
    if needed > free:
        where = "the folder of temporary files (TMPDIR)" if path is None else f"the disk of {path}"
        raise ValueError(
            f"the memory of {count} clients takes {needed / 1e9:.3g} GB, and {where} has "
            f"{free / 1e9:.3g} GB free; wanted more room, fewer clients or rounds, or a smaller model"
        )


def specs(algorithm: Algorithm, num_clients: int, layout: Layout) -> Any:
    """Returns how a state is spread over the devices of a layout."""
    if algorithm.memory is None:
        return algorithm.specs
    return WithMemory(algorithm.specs, spec_of_rows(num_clients, layout), EVERYWHERE)


def _on_devices(
    algorithm: Algorithm,
    num_clients: int,
    hparams: Mapping[str, Any],
    layout: Layout,
    num_copies: int = 1,
) -> tuple[int, int | None]:
    """Returns the bytes that rows take on a device, and those that it has; on CPUs of the machine."""
    if algorithm.memory is None:
        return 0, None
    total = num_copies * num_clients * trees.num_bytes(row_like(algorithm, num_clients, hparams))
    devices = layout.num_devices
    share = total if spec_of_rows(num_clients, layout) == EVERYWHERE else total // devices
    room = memory_bytes(jax.local_devices()[0])
    if room is not None:
        return share, room
    here = min(devices * layout.num_parts, len(jax.local_devices()))
    return share * here, machine_bytes()
