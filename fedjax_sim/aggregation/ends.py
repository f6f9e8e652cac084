"""Ends of a chain: how the server turns the round's updates into one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_choice
from fedjax_sim.engine.results import weigh


class End(NamedTuple):
    """The last link of a chain.

    Attributes:
      name: for errors and settings.
      settings: name -> JSON value.
      send: `send(update, weight) -> (message, row)`, for ONE client: what is summed, and what the server
        sees of each client; see `ClientOutput`.
      receive: `receive(message, rows) -> (update, weight, report)`; a `weight` `[]` of zero means that
        there is no update. `report` is a dict of scalars for the round's info.
      weighting: "examples" or "uniform"; None for the algorithm's.
      sees_clients: whether it needs each client's update; otherwise its message is what `engine.weigh`
        returns, and stages may change the sum.
    """

    name: str
    settings: Mapping[str, Any]
    send: Callable[[Any, jax.Array], tuple[Any, Any]]
    receive: Callable[[Any, Any], tuple[Any, jax.Array, dict[str, Any]]]
    weighting: str | None = None
    sees_clients: bool = False


def mean(weighting: str | None = None) -> End:
    """Takes the weighted mean of the updates.

    Args:
      weighting: "examples" or "uniform", in place of the algorithm's weighting; None for the latter.

    Raises:
      ValueError: the weighting is unknown.
    """
    if weighting is not None:
        check_choice("weighting", weighting, ("examples", "uniform"))

    def send(update, weight):
        return weigh(update, weight), ()

    def receive(message, rows):
        return message.mean(), message.weight, {}

    return End("mean", {"weighting": weighting}, send, receive, weighting)


def majority_vote() -> End:
    """Takes the sign of the sum of the updates, entry by entry: 1, -1, or 0 for a tie.

    After `fs.compression.sign(majority=True)` each client has one vote. The server's rate is the size of
    its steps, so give one, such as `server_lr=0.001`.

    Source: J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar, "signSGD with majority vote is
    communication efficient and fault tolerant", ICLR 2019, https://arxiv.org/abs/1810.05291
    """

    def send(update, weight):
        # In 32 bits, as bfloat16 cannot count to 300.
        return weigh(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), update), weight), ()

    def receive(message, rows):
        return jax.tree.map(jnp.sign, message.mean()), message.weight, {}

    return End("majority_vote", {}, send, receive, "uniform")


def keep_updates(
    name: str,
    combine: Callable[[Any, jax.Array], Any],
    settings: Mapping[str, Any],
    *,
    least: int = 1,
) -> End:
    """Makes an end from a rule that needs the update of each client; they take K times the model.

    Args:
      name: for errors and settings.
      combine: `combine(updates, present) -> update`; `updates` is a pytree of `[K, ...]`, zero where
        `present` `[K]` is false: clients that are absent, have no examples, or were dropped.
      settings: name -> JSON value.
      least: number of clients that the rule needs. A round in which fewer are present changes nothing,
        and the column "skipped_rounds" counts it.

    The end raises ValueError, when traced, if a round has fewer than `least` clients.
    """

    def send(update, weight):
        return (), weigh(update, (weight > 0).astype(jnp.float32))

    def receive(message, rows):
        if rows.weight.size < least:
            raise ValueError(
                f"{name} with {dict(settings)} needs at least {least} clients a round, and a round has "
                f"{rows.weight.size}; wanted more clients a round, or other settings"
            )
        count = rows.weight.sum()
        enough = count >= least
        report = {"skipped_rounds": (~enough).astype(jnp.int32)} if least > 1 else {}
        return combine(rows.total, rows.weight > 0), jnp.where(enough, count, 0.0), report

    return End(name, settings, send, receive, sees_clients=True)
