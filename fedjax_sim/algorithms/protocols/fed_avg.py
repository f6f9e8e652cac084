"""Averaging of a random subset of learners, `sigma_FedAvg`: Federated Averaging as an operator.

M. Kamp et al., "Efficient decentralized deep learning by dynamic model averaging", ECML-PKDD 2018,
https://arxiv.org/abs/1807.03210, after H. B. McMahan et al., "Communication-efficient learning of deep
networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629.
"""

import jax
import jax.numpy as jnp

from fedjax_sim.algorithms.protocols.common import Meeting, Protocol
from fedjax_sim.core.checks import check_count, check_shares
from fedjax_sim.core.messages import traffic


def fed_avg(*, period: int, fraction: float) -> Protocol:
    """Averages the models of `max(C m, 1)` random learners after every `period` steps.

    Those learners receive the mean; the others neither send nor receive anything.

    Args:
      period: `b`, the number of steps between two meetings.
      fraction: `C`, the share of learners that meet; it may vary without recompiling.

    Raises:
      ValueError: `period` is not a whole number of at least 1, or `fraction` is not in [0, 1].
    """
    hparams = {"fraction": fraction}
    check_shares(hparams)

    def meet(key, view, hparams):
        (m,) = view.distances.shape
        # The margin keeps 0.29 of 100 learners at 29 despite binary rounding.
        count = jnp.maximum(jnp.floor(hparams["fraction"] * m + 1e-4).astype(jnp.int32), 1)
        members = jax.random.permutation(key, jnp.arange(m, dtype=jnp.int32)) < count
        sent = traffic("down_request", count) | traffic("up_model", count) | traffic("down_model", count)
        return Meeting(members, view.mean(members), view.reference, view.violations, sent)

    kinds = ("up_model", "down_model", "down_request")
    return Protocol(meet, check_count("period", period), kinds, hparams, "fed_avg", check_shares)
