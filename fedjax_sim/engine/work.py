"""The types of a client's work."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class SteppedWork(NamedTuple):
    """A client's work as equal steps, between which a lane may switch to its next client.

    Attributes:
      begin: `begin(params, client, key, rate) -> carry`.
      step: `step(i, carry, client, rate) -> carry`, for i from 0.
      end: `end(carry)`, returns what `ClientWork.run` does once all steps are done.
      count: `count(sizes [K], keys [K]) -> [K]` int32, numbers of steps of these clients.
      width: `B`, the example slots of a step.
    """

    begin: Callable
    step: Callable
    end: Callable
    count: Callable[[jax.Array, jax.Array], jax.Array]
    width: int


class ClientWork(NamedTuple):
    """A client's work in a round, and its cost.

    Attributes:
      run: a function of one client.
      slots: `slots(sizes [K], keys [K]) -> [K, P]` int32, the example slots, padding included, that
        these clients execute in each of their P loops. Lanes run a loop together.
      steps: the same work as equal steps; None if it cannot be divided so.
    """

    run: Callable
    slots: Callable[[jax.Array, jax.Array], jax.Array]
    steps: SteppedWork | None = None
