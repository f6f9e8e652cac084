"""DRIVE: one bit for each entry, after a random rotation.

S. Vargaftik, R. Ben-Basat, A. Portnoy, G. Mendelson, Y. Ben-Itzhak, M. Mitzenmacher, "DRIVE: one-bit
distributed mean estimation", NeurIPS 2021, https://arxiv.org/abs/2105.08339
"""

import jax.numpy as jnp

from fedjax_sim.compression.codec import Codec, Step, check_scales
from fedjax_sim.compression.rotate import rotate


def drive(*, unbiased: bool = True) -> Codec:
    """Rotates an array and sends the signs and one scale `S`.

    Args:
      unbiased: whether `S = ||Rx||_2^2 / ||Rx||_1`, with which the mean over many clients is exact for a
        uniform rotation, and nearly so for `rotate` and long arrays; otherwise `S = ||Rx||_1 / d`, which
        makes the error of one client least. The expected errors of a long array are `pi/2 - 1 = 0.571`
        and `1 - 2/pi = 0.363` times `||x||^2`.
    """

    def split(key, x):
        del key
        total = jnp.abs(x).sum()
        scale = jnp.square(x).sum() / jnp.where(total > 0, total, 1) if unbiased else total / x.size
        # An array with a NaN has a scale of NaN, except where the comparison above hides it.
        return None, {"positive": x >= 0, "scale": jnp.where(jnp.isnan(total), total, scale)}

    def join(rest, parts, like):
        del rest
        return jnp.where(parts["positive"], parts["scale"], -parts["scale"]).astype(like.dtype)

    def check(parts, like):
        check_scales("drive", parts["scale"])

    signs = Step("signs", {"unbiased": unbiased}, split, join, False, False, check=check)
    return rotate() >> Codec((signs,))
