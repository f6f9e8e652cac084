"""A decoder-only transformer that reads symbols and scores the next one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Task
from fedjax_sim.models.attention import Block, check_heads
from fedjax_sim.models.language import language_model


class Transformer(nn.Module):
    """Embedded symbols through blocks of causal attention with rotary positions; scores of all symbols.

    The embedding also scores the symbols (O. Press, L. Wolf, "Using the output embedding to improve
    language models", EACL 2017, https://arxiv.org/abs/1608.05859). With V symbols and width W, it has
    `V W + layers (12 W^2 + 13 W) + 2 W` parameters, whatever the length.

    Attributes:
      symbols: number of symbols, `V`.
      layers: number of blocks.
      width: numbers per position.
      heads: number of heads; the width is an even multiple of it.
    """

    symbols: int
    layers: int = 4
    width: int = 128
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps integers `[B, T]` to logits `[B, T, V]`; those at t depend on symbols 0 to t."""
        table = self.param("embedding", nn.initializers.normal(0.02), (self.symbols, self.width))
        # As in `StackedLSTM`: a look-up in float32 adds gradients in float32.
        x = jnp.take(table.astype(jnp.float32), x.astype(jnp.int32), axis=0, mode="clip")
        x = x.astype(table.dtype)
        for _ in range(self.layers):
            x = Block(self.heads, causal=True)(x)
        return nn.LayerNorm()(x) @ table.T


def transformer(
    symbols: int = 258,
    length: int = 80,
    *,
    padding: int = 257,
    unknown: int | None = None,
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
) -> Task:
    """Makes a small decoder-only transformer: 826,368 parameters with the default sizes.

    The defaults fit `data.load("shakespeare")`. There is no dropout.

    Args:
      symbols: number of symbols, `V`.
      length: symbols of an example, `T`.
      padding: symbol that marks padding, see `language_model`.
      unknown: symbol of unknown words, see `language_model`.
      layers: number of blocks.
      width: numbers per position.
      heads: number of heads; the width is an even multiple of it.

    Returns:
      A task with the metrics "accuracy" and "loss".

    Raises:
      ValueError: a setting is out of range.
    """
    symbols, layers = check_count("symbols", symbols), check_count("layers", layers)
    check_heads(width, heads, even=True)
    module = Transformer(symbols, layers, width, heads)
    return language_model(module, length, padding, unknown)
