"""Periodic averaging, `sigma_b`: the mean replaces all models every b steps.

M. Kamp et al., "Efficient decentralized deep learning by dynamic model averaging", ECML-PKDD 2018,
https://arxiv.org/abs/1807.03210; with b = 1, continuous averaging, `sigma_1`.
"""

import jax.numpy as jnp

from fedjax_sim.algorithms.protocols.common import Meeting, Protocol
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.messages import traffic


def periodic(*, period: int) -> Protocol:
    """Averages the models of all learners after every `period` steps.

    Args:
      period: `b`, the number of steps between two meetings.

    Raises:
      ValueError: `period` is not a whole number of at least 1.
    """

    def meet(key, view, hparams):
        (m,) = view.distances.shape
        everybody = jnp.ones((m,), bool)
        mean = view.mean(everybody)
        sent = traffic("up_model", m) | traffic("down_model", m)
        return Meeting(everybody, mean, mean, view.violations, sent)

    kinds = ("up_model", "down_model")
    return Protocol(meet, check_count("period", period), kinds, {}, "periodic")


def continuous() -> Protocol:
    """Averages the models of all learners after every step."""
    return periodic(period=1)
