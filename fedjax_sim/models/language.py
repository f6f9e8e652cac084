"""Language models: the FedAvg paper's character LSTM, and any sequence model as a `Task`.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3.
The parameter count that the paper prints determines what it leaves open: 258 symbols, one bias vector
for each layer, peepholes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import Batch, Params, Task
from fedjax_sim.models.lstm import LSTM


class StackedLSTM(nn.Module):
    """Embeds symbols, reads them with layers of LSTM, scores the next symbol at every position.

    Attributes:
      symbols: `V`.
      embedding: numbers for each symbol.
      units: of each layer.
      layers: how many.
      peepholes: see `LSTM`.
    """

    symbols: int
    embedding: int
    units: int
    layers: int
    peepholes: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T]` integers to logits `[B, T, V]`."""
        table = self.param("embedding", nn.initializers.uniform(0.2), (self.symbols, self.embedding))
        x = jnp.take(table, x.T.astype(jnp.int32), axis=0, mode="clip")  # time first: [T, B, embedding]
        for _ in range(self.layers):
            x = LSTM(self.units, self.peepholes)(x)
        logits = nn.Dense(self.symbols, kernel_init=nn.initializers.glorot_uniform())(x)
        return logits.swapaxes(0, 1)


def language_model(module: nn.Module, length: int, padding: int) -> Task:
    """The task of predicting `batch["y"]` `[B, T]` from `batch["x"]` `[B, T]`.

    Each example starts from a state of zeros. The loss is a mean over real positions.

    Args:
      module: maps integers `[B, T]` to logits `[B, T, V]`.
      length: `T`.
      padding: where y has this symbol, nothing counts.

    Returns:
      A task with the metrics "accuracy" and "loss".
    """

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros((1, length), jnp.int32))["params"]

    def positions(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        y = batch["y"].astype(jnp.int32)
        real = (y != padding).astype(jnp.float32)
        return module.apply({"params": params}, batch["x"]), y, real

    def losses(logits: jax.Array, y: jax.Array, real: jax.Array) -> jax.Array:
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.where(real > 0, each, 0).sum(axis=1)

    def loss(params: Params, batch: Batch, key: jax.Array):
        del key
        logits, y, real = positions(params, batch)
        return losses(logits, y, real), real.sum(axis=1)

    def metrics(params: Params, batch: Batch) -> dict[str, Any]:
        logits, y, real = positions(params, batch)
        correct = jnp.where(jnp.argmax(logits, axis=-1) == y, real, 0)
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
