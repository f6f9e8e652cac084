"""Language models: the FedAvg paper's two LSTMs, and any sequence model as a `Task`.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3.
The paper's parameter counts determine what its text leaves open: 258 characters, one bias vector per
layer, peepholes, and word scores computed from the 256 units without a projection.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.types import Batch, Ratio, Task
from fedjax_sim.models.network import network
from fedjax_sim.models.ops.lstm import LSTM


class StackedLSTM(nn.Module):
    """Layers of LSTM that read embedded symbols and score the next symbol at every position.

    Attributes:
      symbols: number of symbols, `V`.
      embedding: size of a symbol's embedding.
      units: units of each layer.
      layers: number of layers.
      peepholes: whether there are peepholes, see `LSTM`.
      output_embedding: size to which the units are projected, without biases, before symbols are
        scored; by default the units score them directly.
    """

    symbols: int
    embedding: int
    units: int
    layers: int
    peepholes: bool = True
    output_embedding: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps integers `[B, T]` to logits `[B, T, V]`."""
        # Unit variance: with Glorot's small numbers the character model takes twice as many steps to
        # learn more about a text than the frequencies of its symbols.
        table = self.param("embedding", nn.initializers.normal(1.0), (self.symbols, self.embedding))
        # A look-up in float32 adds the gradients of a frequent symbol in float32; on GPUs, XLA adds
        # bfloat16 rows in bfloat16 (its GpuFloatSupport).
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


def language_model(model: Any, length: int, padding: int, unknown: int | None = None) -> Task:
    """Makes the task of predicting `batch["y"]` `[B, T]` from `batch["x"]` `[B, T]`.

    Each example starts from a state of zeros. The loss is a mean over real positions.

    Args:
      model: model that maps integers `[B, T]` to logits `[B, T, V]`, of a kind that `classifier` takes.
      length: length of an example, `T`.
      padding: symbol that marks padding; positions where y has it do not count.
      unknown: symbol that stands for many words; no prediction of it is right. A position where y has it
        counts as a miss in the accuracy, and as any other in the loss.

    Returns:
      A task with the metrics "accuracy" and "loss". Predictions are the most probable symbols `[B, T]`.

    Raises:
      ValueError: see `classifier`.
    """
    net = network(
        model,
        (length,),
        integer_inputs=True,
        decode=None,
        wanted=f"logits [B, {length}, symbols]",
        fits=lambda shape: len(shape) == 2 and shape[0] == length,
    )

    def targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
        y = batch["y"].astype(jnp.int32)
        return y, (y != padding).astype(jnp.float32)

    def loss(logits: jax.Array, batch: Batch) -> Ratio:
        y, real = targets(batch)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.where(real > 0, each, 0).sum(axis=1), real.sum(axis=1)

    def metrics(logits: jax.Array, batch: Batch) -> dict[str, Ratio]:
        y, real = targets(batch)
        hits = jnp.argmax(logits, axis=-1) == y
        if unknown is not None:
            hits = hits & (y != unknown)
        return {"accuracy": (jnp.where(hits, real, 0).sum(axis=1), real.sum(axis=1))}

    return net.task(loss, metrics, lambda logits: jnp.argmax(logits, axis=-1))


def char_lstm(
    symbols: int = 258, length: int = 80, *, padding: int = 257, peepholes: bool = True
) -> Task:
    """Makes the paper's model of Shakespeare: 866,578 parameters.

    Args:
      symbols: number of symbols, `V`.
      length: characters of an example.
      padding: symbol that marks padding, see `language_model`.
      peepholes: whether there are peepholes; without them there are 1,536 fewer parameters.
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
    """Makes the paper's model of next words: 4,950,544 parameters.

    The text also names an output embedding of 192. That gives 4,359,696 parameters, not the printed
    count, so by default there is none. The paper does not say whether a model may predict the unknown
    word; here that is never right, see `language_model`. The defaults fit `data.messages`.

    Args:
      symbols: number of symbols, `V`.
      length: words of an example.
      padding: symbol that marks padding, see `language_model`.
      unknown: symbol of unknown words, see `language_model`.
      output_embedding: size of the output embedding, see `StackedLSTM`; 192 for the paper's text.
      peepholes: whether there are peepholes; without them there are 768 fewer parameters.
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
