"""The communication ledger: messages between clients and server, by direction and kind.

Messages are named `up_KIND` (to the server) or `down_KIND` (to a client), where a kind is any name of
lower-case letters and underscores. This package sends `model`, `update` (of a model), `violation` (a
model that its learner sends unasked), `request` (for a model) and, without a server, `neighbour` (from
one learner to another, counted as up). Rounds count messages inside the
compiled program. Message sizes follow from shapes, and the host converts counts to bytes in Python
integers, which do not overflow.

Two conventions, and what the papers say:

* Empty clients are charged like any others. Every drawn client receives the model and sends an
  update, since the server cannot know that the update will be empty. Likewise, all clients in S_t
  return a model in algorithm 1 of McMahan et al. (2017). A deployed system may let empty clients
  decline; these counts are then upper bounds.
* A number that is constant during a run is free; one that changes costs 4 bytes each time. The
  server knows FedAvg's n_k from the start, as the weights n_k / n of McMahan et al. assume. Under
  example weights, the B^i of dynamic averaging (examples since a learner's last synchronisation)
  travels with each model, since learners send (f^i, B^i) in algorithm 2 of Kamp et al. (2018)
  (unverified: from notes on the paper). Headers are not counted. McMahan et al. count rounds, not
  bytes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees

DIRECTIONS = ("up", "down")

_NAME = re.compile(f"({'|'.join(DIRECTIONS)})_[a-z_]+")


def traffic(name: str, messages: Any, trips: Any = 1) -> dict[str, jax.Array]:
    """Returns a round's `info` entries for one kind of message.

    Args:
      name: kind of message, such as "up_update".
      messages: number of messages in the round.
      trips: how often the round waits for such messages: parallel messages are one trip, sequential
        ones are many.

    Raises:
      ValueError: `name` is not a direction followed by a kind.
    """
    check_sizes({name: 0})
    counts = {f"messages_{name}": messages, f"trips_{name}": trips}
    return {key: jnp.asarray(count, jnp.int32) for key, count in counts.items()}


def exchange(num_clients: int | jax.Array) -> dict[str, jax.Array]:
    """Returns the `info` entries if each client receives a model and sends an update."""
    trips = 1 if isinstance(num_clients, int) else jnp.minimum(num_clients, 1)
    return traffic("down_model", num_clients, trips) | traffic("up_update", num_clients, trips)


def model_exchange(state: Any) -> dict[str, int]:
    """Returns the `message_bytes` of `exchange`: uncompressed `state.params` each way."""
    model = trees.num_bytes(state.params)
    return {"down_model": model, "up_update": model}


def check_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns the sizes of an algorithm's messages, in the ledger's order: up first, then by name.

    Raises:
      ValueError: a name is not a direction followed by a kind, or a size is negative.
    """
    strange = [name for name in sizes if not _NAME.fullmatch(name)]
    if strange:
        raise ValueError(
            f"unknown kind of message {strange[0]!r}; wanted up_KIND or down_KIND, where KIND has "
            "lower-case letters and underscores"
        )
    negative = [name for name, size in sizes.items() if size < 0]
    if negative:
        raise ValueError(f"message_bytes of {negative[0]} is {sizes[negative[0]]}; wanted at least 0")
    up_first = sorted(sizes, key=lambda name: (not name.startswith("up_"), name))
    return {name: int(sizes[name]) for name in up_first}


def check_counts(counted: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Checks that rounds count exactly the messages with known sizes.

    Args:
      counted: names in a round's `info`.
      sizes: see `check_sizes`.

    Raises:
      ValueError: a kind of message has a count but no size, or a size but no count.
    """
    counts = {name for name in counted if name.startswith(("messages_", "trips_"))}
    wanted = {f"{what}_{name}" for name in sizes for what in ("messages", "trips")}
    if counts != wanted:
        raise ValueError(
            f"rounds count {sorted(counts)} in their info, but message_bytes gives sizes of "
            f"{sorted(sizes)}; wanted the same kinds in both, as in exchange and model_exchange"
        )


def balance(row: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """Computes bytes and totals from the message counts of a row.

    Args:
      row: row with `messages_NAME`, the count so far, for each name in `sizes`.
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
