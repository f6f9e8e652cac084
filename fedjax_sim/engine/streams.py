"""Streams: what a learner observes at which step, and how what it means drifts."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.permutation import permutation
from fedjax_sim.core.types import Batch, Client

MODES = ("once", "repeat", "shared")
_LIMIT = 2**31  # what an int32 counts


class Streams(NamedTuple):
    """How learners read their examples.

    Attributes:
      widths: `B^i`, the examples of a step, for each learner.
      mode: "once", "repeat" or "shared", see `dynamic_averaging`.
      drift: None, or changes batches as time goes by.
    """

    widths: tuple[int, ...]
    mode: str
    drift: Any

    @property
    def slots(self) -> int:
        """The example slots of a step, the same for all learners."""
        return max(self.widths)

    def open(
        self, client: Client, num_rows: jax.Array, t: jax.Array, key: jax.Array
    ) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array]], Callable[..., Batch]]:
        """One learner's stream from step `t` on, as `train_step` reads it.

        Args:
          client: whose.
          num_rows: `[]` int32, of all clients.
          t: `[]` int32, the steps before.
          key: of the run; the orders of shared streams follow from it.

        Returns:
          `batch(i)` and `take(i, chosen)` of step `t + i`.
        """
        width = self.widths[0]
        if min(self.widths) < self.slots:
            width = jnp.asarray(self.widths, jnp.int32)[client.id]
        if self.mode == "shared":
            client = Client(client.examples, jnp.zeros((), jnp.int32), num_rows, client.id)
            own_key = jax.random.fold_in(key, client.id)

        def batch(i):
            slots = jnp.arange(self.slots, dtype=jnp.int32)
            if self.mode != "shared":
                return ((t + i) * width + slots) % client.size, slots < width
            # A pass leaves out the rows that would not fill a batch, others each time.
            per_pass = jnp.maximum(client.size // width, 1)
            order = permutation(jax.random.fold_in(own_key, (t + i) // per_pass), client.size)
            return order(((t + i) % per_pass * width + slots) % client.size), slots < width

        def take(i, chosen):
            rows = client.take(chosen)
            return rows if self.drift is None else self.drift.apply(rows, t + i)

        return batch, take

    def check(self, data: Any, num_rounds: int, period: int) -> None:
        """Refuses data that does not last for so many rounds of so many steps, or that cannot drift so.

        Raises:
          ValueError: it is such.
        """
        steps = num_rounds * period
        if steps * self.slots >= _LIMIT:
            raise ValueError(
                f"{steps} steps of {self.slots} examples are too many to count; wanted less than 2**31"
            )
        sizes = np.asarray(data.offsets[1:]) - np.asarray(data.offsets[:-1])
        lasts = sizes // np.asarray(self.widths)
        if self.mode != "shared" and sizes.min() == 0:
            raise ValueError(
                f"learner {int(np.argmin(sizes))} has no examples; wanted at least one each"
            )
        if self.mode == "once" and lasts.min() < steps:
            i = int(np.argmin(lasts))
            raise ValueError(
                f"the stream of learner {i} has {sizes[i]} examples and ends after step {lasts[i]} "
                f"(round {lasts[i] // period}); the run wants {steps} steps of {self.widths[i]}: give "
                "more data or fewer rounds, or let it begin again with stream='repeat'"
            )
        if self.drift is None:
            return
        late = [step for step in self.drift.at if step >= steps]
        if late:
            raise ValueError(
                f"a drift is due at step {late[0]}, but the run ends after step {steps - 1} "
                f"({num_rounds} rounds of {period}); wanted earlier drifts or more rounds"
            )
        wanted = self.drift.settings.get("num_classes")
        if wanted not in (None, data.num_classes):
            raise ValueError(
                f"the drift permutes {wanted} classes, but the data has {data.num_classes}; wanted a "
                "drift of as many"
            )


def batch_sizes(batch_size: int | Sequence[int], m: int) -> tuple[int, ...]:
    """`B^i` of each learner, of one number or of one each.

    Raises:
      ValueError: one is not a whole number of at least 1, or there are not `m`.
    """
    if isinstance(batch_size, numbers.Real):
        return (check_count("batch_size", batch_size),) * m
    if isinstance(batch_size, str) or not np.iterable(batch_size):
        raise ValueError(f"batch_size is {batch_size!r}; wanted a whole number, or one for each learner")
    sizes = tuple(check_count("batch_size", size) for size in batch_size)
    if len(sizes) != m:
        raise ValueError(f"batch_size has {len(sizes)} entries for {m} learners; wanted one each")
    return sizes
