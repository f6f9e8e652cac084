"""The contract of a protocol: what its coordinator sees and what it decides.

M. Kamp, L. Adilova, J. Sicking, F. Hüger, P. Schlicht, T. Wirtz, S. Wrobel, "Efficient decentralized
deep learning by dynamic model averaging", ECML-PKDD 2018, https://arxiv.org/abs/1807.03210: a protocol
applies an operator to the configuration `(f_1, ..., f_m)` of all learners' models. Every operator here
chooses a set of learners and replaces their models with the set's weighted mean.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_rates
from fedjax_sim.core.types import Params


class View(NamedTuple):
    """The coordinator's view; learners keep their models until it asks for them.

    Attributes:
      distances: `[m]` float32, `||f_i - r||^2`, which each learner computes locally.
      weights: `[m]` float32, positive.
      reference: `r`, the reference model.
      violations: `[]` int32, `v`, counted by some protocols.
      weighted_sum: function from members `[m]` bool to the sum of `w_i f_i` over them.
    """

    distances: jax.Array
    weights: jax.Array
    reference: Params
    violations: jax.Array
    weighted_sum: Callable[[jax.Array], Params]

    def mean(self, members: jax.Array) -> Params:
        """Returns the weighted mean model of `members` `[m]` bool, at least one."""
        total = jnp.sum(jnp.where(members, self.weights, 0))
        return trees.scale(self.weighted_sum(members), 1 / total)


class Meeting(NamedTuple):
    """A coordinator's decision.

    Attributes:
      members: `[m]` bool, `B`, the learners that replace their models with the mean.
      mean: the weighted mean of the members' models.
      reference: the new `r`.
      violations: the new `v`.
      traffic: entries of a round's `info`; see `fedjax_sim.messages.traffic`.
    """

    members: jax.Array
    mean: Params
    reference: Params
    violations: jax.Array
    traffic: dict[str, jax.Array]


class Protocol(NamedTuple):
    """An operator on the models of all learners.

    Attributes:
      meet: `meet(key, view, hparams) -> Meeting`, called after every `period` steps; may use `key`.
      period: `b`, the steps between two meetings, which make up a round.
      kinds: kinds of messages that meetings count, such as "up_model".
      hparams: name -> default value of what a sweep may vary.
      name: the name by which a workdir recognises the protocol.
      check: raises ValueError if a hyper-parameter is out of its range.
    """

    meet: Callable[[jax.Array, View, Mapping[str, jax.Array]], Meeting]
    period: int
    kinds: tuple[str, ...]
    hparams: Mapping[str, float]
    name: str
    check: Callable[[Mapping[str, float]], None] = check_rates
