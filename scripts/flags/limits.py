"""Limits on combined values of flags: what float32 holds and what the engine counts."""

import math
from collections.abc import Sequence

from flags.kinds import LARGEST, LARGEST_FLOAT32

_EXAMPLES_EACH = 20  # per synthetic client, by default
_MOST_SLOTS = 500_000_000  # example slots of a round; the engine counts to 2**30, idle lanes included


def check_population(num_clients: int, num_examples: int | None) -> None:
    """Checks that a synthetic population has an example for each client, and not too many.

    Raises:
      ValueError: there are fewer examples than clients, or too many.
    """
    if num_examples is None:
        num_examples = _EXAMPLES_EACH * num_clients
    if not num_clients <= num_examples <= LARGEST:
        raise ValueError(
            f"--num_clients={num_clients} with {num_examples} examples; wanted num_examples of "
            f"--dataset=synthetic from {num_clients} to {LARGEST}, by default {_EXAMPLES_EACH} a client"
        )


def check_decay(decay: float, rates: Sequence[float], num_rounds: int) -> None:
    """Checks that the clients' rate remains a float32 in all rounds.

    Args:
      decay: factor on the rate after each round.
      rates: rates of the first round.
      num_rounds: maximum number of rounds of the run.

    Raises:
      ValueError: a rate grows beyond float32.
    """
    # The decay is raised to a power before it multiplies the rate, and neither may overflow.
    room = math.log(LARGEST_FLOAT32) - math.log(max(1.0, *rates))
    if decay > 1 and (num_rounds - 1) * math.log(decay) > room:
        first = math.floor(room / math.log(decay)) + 2
        raise ValueError(
            f"lr_decay={decay:g} of --algorithm makes the clients' rate exceed {LARGEST_FLOAT32:.3g}, "
            f"the largest float32, in round {first} of {num_rounds}; wanted 1, which keeps it, or less"
        )


def check_work(local_epochs: int, batch_size: float, clients: int) -> None:
    """Checks that the engine's counters hold the example slots of a round.

    Args:
      local_epochs: `E`.
      batch_size: `B`, or infinity.
      clients: number of clients of a round, with at least one example each.

    Raises:
      ValueError: a round has more than 500 million slots, whatever the data.
    """
    # A batch that is not full still executes all of its slots.
    slots = clients * local_epochs * (1 if batch_size == math.inf else batch_size)
    if slots > _MOST_SLOTS:
        raise ValueError(
            f"local_epochs={local_epochs} with batch_size={batch_size} makes at least {slots} examples "
            f"in a round of {clients} clients; wanted at most {_MOST_SLOTS}: lower them"
        )
