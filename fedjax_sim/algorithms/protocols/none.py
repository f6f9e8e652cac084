"""No synchronisation: every learner trains alone."""

import jax.numpy as jnp

from fedjax_sim.algorithms.protocols.common import Meeting, Protocol
from fedjax_sim.core.checks import check_count


def none(*, period: int = 1) -> Protocol:
    """Returns the protocol that never sends anything.

    Args:
      period: `b`, the number of steps that count as a round.

    Raises:
      ValueError: `period` is not a whole number of at least 1.
    """

    def meet(key, view, hparams):
        nobody = jnp.zeros(view.distances.shape, bool)
        return Meeting(nobody, view.reference, view.reference, view.violations, {})

    return Protocol(meet, check_count("period", period), (), {}, "none")
