"""Dynamic averaging, `sigma_{Delta,b}`: learners synchronise when their models leave the reference.

M. Kamp, L. Adilova, J. Sicking, F. Hüger, P. Schlicht, T. Wirtz, S. Wrobel, "Efficient decentralized
deep learning by dynamic model averaging", ECML-PKDD 2018, https://arxiv.org/abs/1807.03210, algorithm 1.

While `||f_i - r||^2 <= Delta` holds for every learner, the models differ from their mean by at most
Delta on average, `1/m sum ||f_i - mean||^2 <= Delta`, and nothing is sent. A learner that violates the
condition sends its model; the coordinator asks further learners for theirs until the mean of the set
meets the condition, and the set continues from that mean. If the set grows to all learners, their mean
becomes the new reference.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.algorithms.protocols.common import Meeting, Protocol, View
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_count, check_thresholds
from fedjax_sim.core.messages import traffic

_KINDS = ("up_model", "up_violation", "down_model", "down_request")


def dynamic(*, delta: float, period: int) -> Protocol:
    """Returns the paper's operator, which grows the set by one random learner at a time.

    When the violation counter `v` reaches `m`, all learners meet and the counter restarts.

    Args:
      delta: `Delta`, the threshold of squared distances to the reference: 0 averages all learners that
        have moved, infinity never sends anything. It may vary without recompiling.
      period: `b`, the number of steps between two checks.

    Raises:
      ValueError: `period` is not a whole number of at least 1, or `delta` is negative or NaN.
    """

    def force(view: View, violators: jax.Array) -> tuple[jax.Array, jax.Array]:
        violations = view.violations + jnp.sum(violators, dtype=jnp.int32)
        forced = violations >= violators.size
        return forced, jnp.where(forced, 0, violations)

    return _balancing("dynamic", delta, period, force, lambda size, m: 1)


def hedged(*, delta: float, period: int) -> Protocol:
    """Returns the variant of the authors' platform, which triples the set until it is all learners.

    A set that would reach half of all learners becomes all of them. It needs fewer requests in sequence
    and keeps no counter. https://github.com/fraunhofer-iais/dlplatform, DynamicHedgeSync.

    Args:
      delta: `Delta`; see `dynamic`.
      period: `b`; see `dynamic`.

    Raises:
      ValueError: see `dynamic`.
    """

    def force(view: View, violators: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(False), view.violations

    def more(size: jax.Array, m: int) -> jax.Array:
        return jnp.where(2 * (3 * size) >= m, m, 2 * size)

    return _balancing("hedged", delta, period, force, more)


def _balancing(name: str, delta: float, period: int, force: Callable, more: Callable) -> Protocol:
    """Returns a protocol of dynamic averaging.

    Args:
      name: name of the protocol.
      delta: `Delta`.
      period: `b`.
      force: `force(view, violators [m]) -> (whether all learners must meet, new v)`.
      more: `more(size, m)`, number of learners to add to an unbalanced set of this size.
    """
    hparams = {"delta": delta}
    check_thresholds(hparams)

    def meet(key, view, hparams):
        violators = view.distances > hparams["delta"]

        def silence():
            nobody = jnp.zeros_like(violators)
            nothing = {}
            for kind in _KINDS:
                nothing |= traffic(kind, 0, 0)
            return Meeting(nobody, view.reference, view.reference, view.violations, nothing)

        def balance():
            return _balance(key, view, hparams["delta"], violators, *force(view, violators), more)

        return jax.lax.cond(jnp.any(violators), balance, silence)

    return Protocol(meet, check_count("period", period), _KINDS, hparams, name, check_thresholds)


def _balance(key, view: View, delta, violators, forced, violations, more) -> Meeting:
    """Returns the meeting of the violators and of the learners added to balance them."""
    (m,) = violators.shape
    # The random order of requests; violators come last, as they have already sent their models.
    turn = jnp.where(violators, 2.0, jax.random.uniform(key, (m,)))
    turn = jnp.argsort(jnp.argsort(turn)).astype(jnp.int32)

    def far(state):
        members, total, _ = state
        mean = trees.scale(total, 1 / jnp.sum(jnp.where(members, view.weights, 0)))
        return ~jnp.all(members) & (trees.squared_distance(mean, view.reference) > delta)

    def augment(state):
        members, total, trips = state
        size = jnp.sum(members, dtype=jnp.int32)
        asked = size - jnp.sum(violators, dtype=jnp.int32)
        newcomers = ~members & (turn < asked + more(size, m))
        return members | newcomers, trees.add(total, view.weighted_sum(newcomers)), trips + 1

    start = violators | forced
    missing = jnp.any(start & ~violators).astype(jnp.int32)
    members, total, trips = jax.lax.while_loop(far, augment, (start, view.weighted_sum(start), missing))
    mean = trees.scale(total, 1 / jnp.sum(jnp.where(members, view.weights, 0)))
    full = jnp.all(members)
    reference = jax.tree.map(lambda new, old: jnp.where(full, new, old), mean, view.reference)
    size, spoke = jnp.sum(members), jnp.sum(violators)
    sent = (
        traffic("up_violation", spoke)
        | traffic("down_request", size - spoke, trips)
        | traffic("up_model", size - spoke, trips)
        | traffic("down_model", size)
    )
    return Meeting(members, mean, reference, violations, sent)
