"""Signs of entries: one bit each.

J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for
non-convex problems", ICML 2018, https://arxiv.org/abs/1802.04434; with a scale, S. P. Karimireddy,
Q. Rebjock, S. U. Stich, M. Jaggi, "Error feedback fixes SignSGD and other gradient compression schemes",
ICML 2019, https://arxiv.org/abs/1901.09847
"""

import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, check_scales


def sign(*, majority: bool = False) -> Codec:
    """Sends the sign of each entry; zeros count as positive.

    Args:
      majority: False sends `||x||_1 / d` as well, the magnitude that the server gives all entries; for
        `error_feedback`. True decodes to 1 and -1, a client's vote on each entry, for
        `fs.aggregation.majority_vote()`. An entry that is always zero then always votes for 1, and a
        byte says whether all entries were finite, because a NaN would pass for a vote.
    """

    def split(key, x):
        del key
        if majority:
            return None, {"positive": x >= 0, "is_finite": jnp.isfinite(x).all()}
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        return None, {"positive": x >= 0, "scale": jnp.abs(wide).mean()}

    def join(rest, parts, like):
        del rest
        scale = jnp.where(parts["is_finite"], 1.0, jnp.nan) if majority else parts["scale"]
        return jnp.where(parts["positive"], scale, -scale).astype(like.dtype)

    def check(parts, like):
        if not majority:
            check_scales("sign", parts["scale"])

    return Codec((Step("sign", {"majority": majority}, split, join, False, False, check=check),))
