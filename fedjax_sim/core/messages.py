"""The ledger: the messages between clients and server, by direction and kind.

A kind of message is named `up_KIND` (to the server) or `down_KIND` (to a client): a `model`, an
`update` of one, a `violation` (a model that its learner sends unasked), or a `request` for a model. A
round counts messages inside the compiled program; their sizes follow from shapes, and counts become
bytes on the host, in Python's integers, which do not overflow.

Two conventions, and what the papers say:

* An empty client is charged like any other. Whoever is drawn receives the model and sends an
  update, since the server cannot know that there will be nothing in it; so does algorithm 1 of
  McMahan et al. (2017), whose clients in S_t all return a model. A deployed system may let such
  clients decline; then these are upper bounds.
* A number that stays the same during a run costs nothing, one that changes costs 4 bytes each time.
  FedAvg's n_k is known to the server from the start, as the weights n_k / n of McMahan et al. take
  it to be; the B^i of dynamic averaging, the examples since a learner's last meeting, travels with
  each model under example weights, as Kamp et al. (2018) have learners send (f^i, B^i) in their
  algorithm 2 (unverified: from notes on the paper). Headers are not counted. McMahan et al. count
  rounds, not bytes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees

DIRECTIONS = ("up", "down")
KINDS = ("model", "update", "violation", "request")


def traffic(name: str, messages: Any, trips: Any = 1) -> dict[str, jax.Array]:
    """Entries of a round's `info` for one kind of message.

    Args:
      name: such as "up_update".
      messages: how many are sent in the round.
      trips: how often somebody waits for them: messages that travel side by side are one trip, such
        that go one after the other are many.

    Raises:
      ValueError: the name is none of a direction and a kind.
    """
    check_sizes({name: 0})
    counts = {f"messages_{name}": messages, f"trips_{name}": trips}
    return {key: jnp.asarray(count, jnp.int32) for key, count in counts.items()}


def exchange(num_clients: int) -> dict[str, jax.Array]:
    """Entries of a round's `info`: each of the clients receives a model and sends an update."""
    return traffic("down_model", num_clients) | traffic("up_update", num_clients)


def model_exchange(state: Any) -> dict[str, int]:
    """The `message_bytes` of `exchange`: `state.params`, and an update of their size, uncompressed."""
    model = trees.num_bytes(state.params)
    return {"down_model": model, "up_update": model}


def check_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of an algorithm's messages, in the ledger's order.

    Raises:
      ValueError: a name is none of a direction and a kind, or a size is negative.
    """
    known = [f"{direction}_{kind}" for direction in DIRECTIONS for kind in KINDS]
    strange = [name for name in sizes if name not in known]
    if strange:
        raise ValueError(f"no kind of message is {strange[0]!r}; wanted some of {', '.join(known)}")
    negative = [name for name, size in sizes.items() if size < 0]
    if negative:
        raise ValueError(f"message_bytes of {negative[0]} is {sizes[negative[0]]}; wanted at least 0")
    return {name: int(sizes[name]) for name in known if name in sizes}


def check_counts(counted: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Checks that rounds count the messages whose sizes are known, and no others.

    Args:
      counted: the names of a round's `info`.
      sizes: see `check_sizes`.

    Raises:
      ValueError: a name is missing on one of the sides.
    """
    counts = {name for name in counted if name.startswith(("messages_", "trips_"))}
    wanted = {f"{what}_{name}" for name in sizes for what in ("messages", "trips")}
    if counts != wanted:
        raise ValueError(
            f"rounds count {sorted(counts)} in their info, but message_bytes gives sizes of "
            f"{sorted(sizes)}; wanted the same kinds in both, as exchange and model_exchange have"
        )


def balance(row: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """The bytes and totals that follow from a row's counts of messages.

    Args:
      row: has `messages_NAME` so far for each name of `sizes`.
      sizes: see `check_sizes`.

    Returns:
      `bytes_up`, `bytes_down`, `messages_up`, `messages_down`, and `bytes_NAME` for each name.
    """
    count = {name: row[f"messages_{name}"] for name in sizes}
    size = {name: count[name] * sizes[name] for name in sizes}
    totals = {
        f"{what}_{direction}": sum(of[name] for name in sizes if name.startswith(f"{direction}_"))
        for what, of in (("bytes", size), ("messages", count))
        for direction in DIRECTIONS
    }
    return totals | {f"bytes_{name}": value for name, value in size.items()}
