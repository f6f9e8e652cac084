"""EF21: clients send what changed in their update, and the server remembers the rest.

P. Richtárik, I. Sokolov, I. Fatkhullin, "EF21: a new, simpler, theoretically better, and practically
faster error feedback", NeurIPS 2021, https://arxiv.org/abs/2106.05203
"""

import jax

from fedjax_sim.compression.codec import Codec
from fedjax_sim.compression.error_feedback import check_codec
from fedjax_sim.compression.wire import Wire
from fedjax_sim.core import trees
from fedjax_sim.core.stage import Stage


def ef21(codec: Codec) -> Stage:
    """Sends `c_k = C(u_k - g_k)`; the server takes `g_k <- g_k + c_k` for the update `u_k`.

    `g_k`, at first zero, is client memory, one model for each client. The server has a copy of it, so it
    is not sent. In a round it averages the `g_k` of the round's clients. If all take part in each round,
    with equal weights, and their updates are full gradients times a constant rate, this is the paper's
    algorithm.

    Args:
      codec: such as `top_k(0.01)`; see `error_feedback` for those that do not serve.

    Raises:
      ValueError: `codec` is no codec, or is structured.
    """
    check_codec("ef21", codec)

    def encode(state, hparams, estimate, update, key):
        sent = codec.encode(key, trees.subtract(update, estimate))
        known = jax.tree.map(lambda leaf: Wire(leaf, 0), estimate)
        return (sent, known), trees.add(estimate, codec.decode(sent)), ()

    def decode(message):
        sent, known = message
        estimate = jax.tree.map(lambda wire: wire.data, known, is_leaf=lambda n: isinstance(n, Wire))
        return trees.add(estimate, codec.decode(sent))

    return Stage(
        "ef21",
        {"codec": codec.settings},
        {},
        memory=trees.zeros_like,
        encode=encode,
        decode=decode,
        is_encoder=True,
    )
