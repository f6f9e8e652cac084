"""Streams: the examples that a learner reads at each step, and concept drift in them."""

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
_LIMIT = 2**31  # the first count that overflows an int32


class Streams(NamedTuple):
    """The rule by which learners read their examples.

    Attributes:
      widths: `B^i`, the examples per step of each learner.
      mode: "once", "repeat" or "shared"; see `dynamic_averaging`.
      drift: a change of batches over time, or None.
    """

    widths: tuple[int, ...]
    mode: str
    drift: Any

    @property
    def slots(self) -> int:
        """The number of example slots in a step, the same for all learners."""
        return max(self.widths)

    def open(
        self, client: Client, num_rows: jax.Array, t: jax.Array, key: jax.Array
    ) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array]], Callable[..., Batch]]:
        """Returns one learner's stream from step `t` on, in the form that `train_step` takes.

        Args:
          client: the learner.
          num_rows: `[]` int32, the number of rows of all clients.
          t: `[]` int32, the number of steps before.
          key: PRNG key of the run; it determines the orders of shared streams.

        Returns:
          `batch(i)` and `take(i, chosen)` for step `t + i`.
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
            # Each pass skips the rows that would not fill a batch; they differ from pass to pass.
            per_pass = jnp.maximum(client.size // width, 1)
            order = permutation(jax.random.fold_in(own_key, (t + i) // per_pass), client.size)
            return order(((t + i) % per_pass * width + slots) % client.size), slots < width

        def take(i, chosen):
            rows = client.take(chosen)
            return rows if self.drift is None else self.drift.apply(rows, t + i)

        return batch, take

    def check(self, data: Any, num_rounds: int, period: int) -> None:
        """Refuses data that is too short for the run or does not fit the drift.

        Raises:
          ValueError: a stream ends early, a learner has no examples, the steps overflow an int32, or the
            drift is due after the run or permutes another number of classes.
        """
        steps = num_rounds * period
        if steps * self.slots >= _LIMIT:
            raise ValueError(
                f"{steps} steps of {self.slots} examples overflow an int32; wanted fewer than 2**31"
            )
        sizes = np.asarray(data.offsets[1:]) - np.asarray(data.offsets[:-1])
        lasts = sizes // np.asarray(self.widths)
        if self.mode != "shared" and sizes.min() == 0:
            raise ValueError(
                f"learner {int(np.argmin(sizes))} has no examples; wanted at least one for each"
            )
        if self.mode == "once" and lasts.min() < steps:
            i = int(np.argmin(lasts))
            raise ValueError(
                f"the stream of learner {i} has {sizes[i]} examples and ends after step {lasts[i]} "
                f"(round {lasts[i] // period}); the run needs {steps} steps of {self.widths[i]}: give "
                "more data, run fewer rounds, or repeat the stream with stream='repeat'"
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
                f"the drift permutes {wanted} classes, but the data has {data.num_classes}; wanted "
                "the same number"
            )


def batch_sizes(batch_size: int | Sequence[int], m: int) -> tuple[int, ...]:
    """Returns `B^i` of all `m` learners, from one number or a sequence.

    Raises:
      ValueError: a batch size is not a whole number of at least 1, or there are not `m` of them.
    """
    if isinstance(batch_size, numbers.Real):
        return (check_count("batch_size", batch_size),) * m
    if isinstance(batch_size, str) or not np.iterable(batch_size):
        raise ValueError(f"batch_size is {batch_size!r}; wanted a whole number, or one for each learner")
    sizes = tuple(check_count("batch_size", size) for size in batch_size)
    if len(sizes) != m:
        raise ValueError(f"batch_size has {len(sizes)} entries for {m} learners; wanted one for each")
    return sizes
