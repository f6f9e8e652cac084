"""The contract of a protocol: what its coordinator sees, and what it decides.

M. Kamp, L. Adilova, J. Sicking, F. Hüger, P. Schlicht, T. Wirtz, S. Wrobel, "Efficient decentralized
deep learning by dynamic model averaging", ECML-PKDD 2018, https://arxiv.org/abs/1807.03210: a protocol
applies an operator to the configuration `(f_1, ..., f_m)` of all learners' models. Every operator here
chooses a set of learners and replaces their models by the set's weighted mean.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_rates
from fedjax_sim.core.types import Params


class View(NamedTuple):
    """What a coordinator may find out; learners keep their models until it asks for them.

    Attributes:
      distances: `[m]` float32, `||f_i - r||^2`, which each learner knows of itself.
      weights: `[m]` float32, above zero.
      reference: `r`.
      violations: `[]` int32, `v`, counted by some protocols.
      weighted_sum: from members `[m]` bool to the sum of `w_i f_i` over them.
    """

    distances: jax.Array
    weights: jax.Array
    reference: Params
    violations: jax.Array
    weighted_sum: Callable[[jax.Array], Params]

    def mean(self, members: jax.Array) -> Params:
        """The members' weighted mean, `[m]` bool, of at least one."""
        total = jnp.sum(jnp.where(members, self.weights, 0))
        return trees.scale(self.weighted_sum(members), 1 / total)


class Meeting(NamedTuple):
    """What a coordinator decides.

    Attributes:
      members: `[m]` bool, `B`, who receives the mean in place of the own model.
      mean: of the members' models.
      reference: `r` from now on.
      violations: `v` from now on.
      traffic: entries of a round's `info`, see `fedjax_sim.messages.traffic`.
    """

    members: jax.Array
    mean: Params
    reference: Params
    violations: jax.Array
    traffic: dict[str, jax.Array]


class Protocol(NamedTuple):
    """An operator on the models of all learners.

    Attributes:
      meet: `meet(key, view, hparams) -> Meeting`, after every `period` steps; it may draw from `key`.
      period: `b`, steps between two meetings, which make up a round.
      kinds: the kinds of messages that meetings count, such as "up_model".
      hparams: name -> default value of what a sweep may vary.
      name: by which a workdir recognises it.
      check: raises ValueError where one of the hyper-parameters is out of its range.
    """

    meet: Callable[[jax.Array, View, Mapping[str, jax.Array]], Meeting]
    period: int
    kinds: tuple[str, ...]
    hparams: Mapping[str, float]
    name: str
    check: Callable[[Mapping[str, float]], None] = check_rates
