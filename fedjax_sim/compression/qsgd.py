"""QSGD: stochastic rounding of each entry's share of a norm.

D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, "QSGD: communication-efficient SGD via gradient
quantization and encoding", NIPS 2017, https://arxiv.org/abs/1610.02132, section 3.1 and, for buckets and
the largest magnitude as a norm, section 4
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, check_codes, check_scales
from fedjax_sim.compression.wire import Wire
from fedjax_sim.core.checks import check_choice, check_count

_MOST_LEVELS = 2**15 - 1


def qsgd(levels: int, bucket: int | None = None, *, norm: str = "l2") -> Codec:
    """Rounds `|x_i| / ||x||` at random to one of `levels + 1` multiples of `1 / levels`.

    An entry goes to the two nearest multiples with the probabilities that make its mean exact. With the
    L2 norm the error is at most `min(n / s^2, sqrt(n) / s) ||x||^2` on average, for `s` levels and
    buckets of `n`. Each entry takes `ceil(log2(2 s + 1))` bits, with its sign, and each bucket a float
    of 32 bits or more.

    Args:
      levels: `s`, from 1 to 32767.
      bucket: number of entries that share a norm; by default those of an array.
      norm: "l2", or "max" for the largest magnitude, as in the paper's experiments.

    Raises:
      ValueError: a setting is out of its range.
    """
    levels = check_count("levels", levels)
    if levels > _MOST_LEVELS:
        raise ValueError(f"qsgd's levels is {levels}; wanted a whole number from 1 to {_MOST_LEVELS}")
    bucket = None if bucket is None else check_count("bucket", bucket)
    check_choice("norm", norm, ("l2", "max"))
    bits = (2 * levels).bit_length()
    dtype = jnp.uint8 if bits <= 8 else jnp.uint16

    def in_buckets(flat):
        width = min(bucket or flat.size, flat.size)
        return jnp.pad(flat, (0, -flat.size % width)).reshape(-1, width)

    def split(key, x):
        wide = in_buckets(x.reshape(-1).astype(np.promote_types(x.dtype, np.float32)))
        norms = jnp.linalg.norm(wide, ord=np.inf if norm == "max" else 2, axis=1)
        share = jnp.abs(wide) / jnp.where(norms > 0, norms, 1)[:, None]
        level = jnp.floor(share * levels + jax.random.uniform(key, wide.shape, wide.dtype))
        signed = jnp.sign(wide) * jnp.minimum(level, levels) + levels
        return None, {"codes": Wire(signed.reshape(-1)[: x.size].astype(dtype), bits), "norms": norms}

    def join(rest, parts, like):
        del rest
        signed = in_buckets(parts["codes"].data.astype(parts["norms"].dtype) - levels)
        wide = signed * (parts["norms"] / levels)[:, None]
        return wide.reshape(-1)[: like.size].reshape(like.shape).astype(like.dtype)

    def check(parts, like):
        check_codes("qsgd", parts["codes"].data, 2 * levels)
        check_scales("qsgd", parts["norms"])

    settings = {"levels": levels, "bucket": bucket, "norm": norm}
    return Codec((Step("qsgd", settings, split, join, False, False, check=check),))
