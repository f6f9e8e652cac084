"""How far numbers of flags may go together: what float32 holds and the engine counts."""

import math
from collections.abc import Sequence

from flags.kinds import LARGEST, LARGEST_FLOAT32

_EXAMPLES_EACH = 20  # of a synthetic client, by default
_MOST_SLOTS = 500_000_000  # example slots of a round: with idle lanes, the engine's counters hold 2**30


def check_population(num_clients: int, num_examples: int | None) -> None:
    """Checks that a synthetic population has an example for each client, and not too many.

    Raises:
      ValueError: it has not.
    """
    if num_examples is None:
        num_examples = _EXAMPLES_EACH * num_clients
    if not num_clients <= num_examples <= LARGEST:
        raise ValueError(
            f"--num_clients={num_clients} have {num_examples} examples; wanted --num_examples from "
            f"{num_clients} to {LARGEST}, by default {_EXAMPLES_EACH} for each client"
        )


def check_decay(decay: float, rates: Sequence[float], num_rounds: int) -> None:
    """Checks that the clients' rate remains a float32 in all rounds.

    Args:
      decay: multiplies it after each.
      rates: of the first round.
      num_rounds: that the run may have.

    Raises:
      ValueError: a rate grows beyond.
    """
    # The decay is raised to a power before it multiplies the rate, and neither may overflow.
    room = math.log(LARGEST_FLOAT32) - math.log(max(1.0, *rates))
    if decay > 1 and (num_rounds - 1) * math.log(decay) > room:
        first = math.floor(room / math.log(decay)) + 2
        raise ValueError(
            f"--lr_decay={decay:g} makes the clients' rate exceed {LARGEST_FLOAT32:.3g}, the largest "
            f"float32, in round {first} of {num_rounds}; wanted 1, which keeps the rate, or less"
        )


def check_work(local_epochs: int, batch_size: float, clients: int) -> None:
    """Checks that the engine's counters hold the example slots of a round.

    Args:
      local_epochs: `E`.
      batch_size: `B`, or infinity.
      clients: of a round, with at least one example each.

    Raises:
      ValueError: a round has more than 500 million, whatever the data.
    """
    # A batch that is not full is executed all the same.
    slots = clients * local_epochs * (1 if batch_size == math.inf else batch_size)
    if slots > _MOST_SLOTS:
        raise ValueError(
            f"local_epochs={local_epochs} with batch_size={batch_size} make at least {slots} examples a "
            f"round, of {clients} clients; wanted {_MOST_SLOTS} at most: lower them"
        )
