"""Error feedback: what a codec loses is added to the client's next update.

F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-bit stochastic gradient descent and its application to
data-parallel distributed training of speech DNNs", Interspeech 2014; S. U. Stich, J.-B. Cordonnier,
M. Jaggi, "Sparsified SGD with memory", NeurIPS 2018, https://arxiv.org/abs/1809.07599;
S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error feedback fixes SignSGD and other gradient
compression schemes", ICML 2019, https://arxiv.org/abs/1901.09847
"""

from typing import Any

from fedjax_sim.compression.codec import Codec
from fedjax_sim.core import trees
from fedjax_sim.core.stage import Stage


def error_feedback(codec: Codec) -> Stage:
    """Encodes `update + e_k`, and keeps what is lost as the client's residual `e_k`, at first zero.

    The residual is client memory, one model for each client. Over all rounds, what the server has
    decoded plus the residual is the sum of the client's updates.

    Args:
      codec: such as `top_k(0.01)` or `top_k(0.01) >> quantize(8)`. Its result must be nearer to its
        argument than zero is; with one that is unbiased because it enlarges what it keeps, such as
        `subsample` or `qsgd` with few levels, residuals grow without bound.

    Raises:
      ValueError: `codec` is no codec, or is structured.
    """
    check_codec("error_feedback", codec)

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


def check_codec(name: str, codec: Any) -> None:
    """Checks the codec of an error feedback.

    Raises:
      ValueError: it is no codec, or a structured one.
    """
    if not isinstance(codec, Codec):
        shown = codec.name if isinstance(codec, Stage) else repr(codec)
        raise ValueError(
            f"{name} got {shown}, which loses nothing that could be fed back; wanted a codec, such as "
            f"{name}(top_k(0.01))"
        )
    if codec.is_structured:
        raise ValueError(
            f"{name} got {codec.name}, whose clients train inside a subspace and lose nothing there; "
            f"wanted {codec.name} without {name}"
        )
