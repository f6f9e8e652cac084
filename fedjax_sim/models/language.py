"""Language models: the FedAvg paper's two LSTMs, and any sequence model as a `Task`.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3.
The parameter counts that the paper prints determine what it leaves open: 258 characters, one bias vector
for each layer, peepholes, and scores of words that read the 256 units without a projection.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.types import Batch, Params, Task
from fedjax_sim.models.ops.lstm import LSTM


class StackedLSTM(nn.Module):
    """Embeds symbols, reads them with layers of LSTM, scores the next symbol at every position.

    Attributes:
      symbols: `V`.
      embedding: numbers for each symbol.
      units: of each layer.
      layers: how many.
      peepholes: see `LSTM`.
      output_embedding: how many numbers the units are projected to, without biases, before symbols are
        scored; by default they are scored by the units themselves.
    """

    symbols: int
    embedding: int
    units: int
    layers: int
    peepholes: bool = True
    output_embedding: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T]` integers to logits `[B, T, V]`."""
        # Of unit variance: with Glorot's small numbers the character model takes twice as many steps to
        # see more in a text than how often each symbol occurs.
        table = self.param("embedding", nn.initializers.normal(1.0), (self.symbols, self.embedding))
        # Looked up in float32, so that the gradients of a frequent symbol are added in float32: XLA adds
        # bfloat16 rows in bfloat16 on GPUs (its GpuFloatSupport).
        wide = table.astype(jnp.float32)
        x = jnp.take(wide, x.T.astype(jnp.int32), axis=0, mode="clip")  # time first: [T, B, embedding]
        x = x.astype(table.dtype)
        for _ in range(self.layers):
            x = LSTM(self.units, self.peepholes)(x)
        glorot = nn.initializers.glorot_uniform()
        if self.output_embedding is not None:
            x = nn.Dense(self.output_embedding, use_bias=False, kernel_init=glorot, name="projection")(x)
        logits = nn.Dense(self.symbols, kernel_init=glorot)(x)
        return logits.swapaxes(0, 1)


def language_model(module: nn.Module, length: int, padding: int, unknown: int | None = None) -> Task:
    """The task of predicting `batch["y"]` `[B, T]` from `batch["x"]` `[B, T]`.

    Each example starts from a state of zeros. The loss is a mean over real positions.

    Args:
      module: maps integers `[B, T]` to logits `[B, T, V]`.
      length: `T`.
      padding: where y has this symbol, nothing counts.
      unknown: where y has this symbol, which stands for many words, no prediction is right: the position
        counts in the accuracy, as a miss, and in the loss as any other.

    Returns:
      A task with the metrics "accuracy" and "loss".
    """

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros((1, length), jnp.int32))["params"]

    def positions(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        y = batch["y"].astype(jnp.int32)
        real = (y != padding).astype(jnp.float32)
        return module.apply({"params": params}, batch["x"]).astype(jnp.float32), y, real

    def losses(logits: jax.Array, y: jax.Array, real: jax.Array) -> jax.Array:
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.where(real > 0, each, 0).sum(axis=1)

    def loss(params: Params, batch: Batch, key: jax.Array):
        del key
        logits, y, real = positions(params, batch)
        return losses(logits, y, real), real.sum(axis=1)

    def metrics(params: Params, batch: Batch) -> dict[str, Any]:
        logits, y, real = positions(params, batch)
        hits = jnp.argmax(logits, axis=-1) == y
        if unknown is not None:
            hits = hits & (y != unknown)
        correct = jnp.where(hits, real, 0)
        count = real.sum(axis=1)
        return {"accuracy": (correct.sum(axis=1), count), "loss": (losses(logits, y, real), count)}

    return Task(init, loss, metrics)


def char_lstm(
    symbols: int = 258, length: int = 80, *, padding: int = 257, peepholes: bool = True
) -> Task:
    """The paper's model of Shakespeare: 866,578 parameters.

    Args:
      symbols: `V`.
      length: characters of an example.
      padding: see `language_model`.
      peepholes: without them there are 1,536 parameters fewer.
    """
    module = StackedLSTM(symbols, embedding=8, units=256, layers=2, peepholes=peepholes)
    return language_model(module, length, padding)


def word_lstm(
    symbols: int = 10_000,
    length: int = 10,
    *,
    padding: int = 0,
    unknown: int | None = 1,
    output_embedding: int | None = None,
    peepholes: bool = True,
) -> Task:
    """The paper's model of next words: 4,950,544 parameters.

    Its text also names an output embedding of 192; with that there are 4,359,696, not the count that it
    prints, so by default there is none. Nor does it say whether a model may predict that a word is
    unknown; here that is never right, see `language_model`. The defaults fit `data.messages`.

    Args:
      symbols: `V`.
      length: words of an example.
      padding: see `language_model`.
      unknown: see `language_model`.
      output_embedding: see `StackedLSTM`; 192 for the paper's text.
      peepholes: without them there are 768 parameters fewer.
    """
    module = StackedLSTM(
        symbols,
        embedding=192,
        units=256,
        layers=1,
        peepholes=peepholes,
        output_embedding=output_embedding,
    )
    return language_model(module, length, padding, unknown)
