"""No synchronisation: every learner alone."""

import jax.numpy as jnp

from fedjax_sim.algorithms.protocols.common import Meeting, Protocol
from fedjax_sim.core.checks import check_count


def none(*, period: int = 1) -> Protocol:
    """Nothing is ever sent.

    Args:
      period: `b`, the steps that count as a round.

    Raises:
      ValueError: it is not a whole number of at least 1.
    """

    def meet(key, view, hparams):
        nobody = jnp.zeros(view.distances.shape, bool)
        return Meeting(nobody, view.reference, view.reference, view.violations, {})

    return Protocol(meet, check_count("period", period), (), {}, "none")
