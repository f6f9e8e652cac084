"""Error feedback: what a codec loses is added to the client's next update.

F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-bit stochastic gradient descent and its application to
data-parallel distributed training of speech DNNs", Interspeech 2014; S. U. Stich, J.-B. Cordonnier,
M. Jaggi, "Sparsified SGD with memory", NeurIPS 2018, https://arxiv.org/abs/1809.07599;
S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error feedback fixes SignSGD and other gradient
compression schemes", ICML 2019, https://arxiv.org/abs/1901.09847
"""

from typing import Any

from fedjax_sim.aggregation.stage import Stage
from fedjax_sim.compression import Codec
from fedjax_sim.core import trees


def error_feedback(codec: Codec) -> Stage:
    """Encodes `update + e_k`, and keeps what is lost as the client's residual `e_k`, at first zero.

    The residual is client memory, one model for each client. Over all rounds, what the server has
    decoded plus the residual is the sum of the client's updates.

    Args:
      codec: such as `top_k(0.01)` or `top_k(0.01) >> quantize(8)`.

    Raises:
      ValueError: `codec` is no codec.
    """
    if not isinstance(codec, Codec):
        raise ValueError(
            f"error_feedback got {_name(codec)}, which loses nothing that could be fed back; wanted a "
            "codec, such as error_feedback(top_k(0.01))"
        )

    def encode(state, hparams, residual, update, key):
        update = trees.add(update, residual)
        sent = codec.encode(key, update)
        return sent, trees.subtract(update, codec.decode(sent)), ()

    return Stage(
        "error_feedback",
        {"codec": codec.settings},
        {},
        memory=trees.zeros_like,
        encode=encode,
        decode=codec.decode,
        is_encoder=True,
    )


def _name(value: Any) -> str:
    return value.name if isinstance(value, Stage) else repr(value)
