"""Topologies of gossip: which learners talk to each other, and with which weights they mix."""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.checks import check_count, check_seed

__all__ = ["Topology", "complete", "expander", "exponential", "mixing", "ring", "torus"]

_TOLERANCE = 1e-6


class Topology(NamedTuple):
    """A topology of any number of learners.

    Attributes:
      name: for settings and errors.
      settings: name -> JSON value.
      make: function from the number of learners, `m`, to mixing matrices `[T, m, m]`, float64: the model
        of learner i becomes `sum over j of W_ij x_j`, and round t mixes by matrix `t % T`.
    """

    name: str
    settings: Mapping[str, Any]
    make: Callable[[int], np.ndarray]

    def matrices(self, num_learners: int) -> np.ndarray:
        """Returns the checked mixing matrices, `[T, m, m]`.

        Raises:
          ValueError: they do not exist for so many learners, are not doubly stochastic, or leave the
            learners unconnected.
        """
        matrices = np.asarray(self.make(num_learners), np.float64)
        if matrices.ndim != 3 or matrices.shape[1:] != (num_learners,) * 2 or not len(matrices):
            raise ValueError(
                f"the topology {self.name} has matrices of shape {list(matrices.shape)}; wanted "
                f"[T, {num_learners}, {num_learners}], as there are {num_learners} learners"
            )
        sums = np.stack([matrices.sum(1), matrices.sum(2)])
        if not np.isfinite(matrices).all() or matrices.min() < 0 or abs(sums - 1).max() > _TOLERANCE:
            raise ValueError(
                f"the topology {self.name} has entries from {matrices.min():.4g}, and rows and columns "
                f"that add up to {sums.min():.4g} to {sums.max():.4g}; wanted doubly stochastic "
                "matrices: no negative entry, and sums of 1, so that the mean of all models is kept"
            )
        parts = _components((matrices > 0).any(axis=0))
        if parts.max() > 0:
            alone = np.flatnonzero(parts > 0)[:5].tolist()
            raise ValueError(
                f"the topology {self.name} is not connected: learners {alone} never hear of learner 0; "
                "wanted a path between any two learners"
            )
        return matrices

    def spectral_gap(self, num_learners: int) -> float:
        """Returns 1 minus the second singular value of the product of all matrices.

        One pass over the `T` matrices multiplies the distance of all models from their mean by
        `1 - gap` at most. For a symmetric matrix, the gap is `1 - |lambda_2|`.
        """
        product = functools.reduce(lambda a, b: b @ a, self.matrices(num_learners))
        return 1 - float(np.linalg.norm(product - 1 / num_learners, 2))


def ring() -> Topology:
    """Each learner mixes with the two beside it, by equal weights."""

    def make(m):
        return _equal_weights(m, (1, -1) if m > 2 else (1,))

    return Topology("ring", {}, make)


def torus() -> Topology:
    """Each learner mixes with its four neighbours on a grid whose borders meet, by equal weights.

    The grid is as square as the number of learners allows; the number must not be prime.
    """

    def make(m):
        rows = max((d for d in range(1, math.isqrt(m) + 1) if m % d == 0), default=1)
        columns = m // rows
        if rows < 2:
            raise ValueError(
                f"torus got {m} learners, a prime number; wanted rows and columns, as for 9"
            )
        i, j = np.divmod(np.arange(m), columns)
        w = np.eye(m)
        for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            w[np.arange(m), (i + di) % rows * columns + (j + dj) % columns] += 1
        return w[None] / 5

    return Topology("torus", {}, make)


def complete() -> Topology:
    """All learners mix with all, by equal weights: exact averaging."""
    return Topology("complete", {}, lambda m: np.full((1, m, m), 1 / m))


def expander(*, degree: int = 4, seed: int = 0) -> Topology:
    """Each learner mixes with about `degree` random others, by equal weights.

    The graph is a union of `degree / 2` random cycles through all learners; an edge of two cycles counts
    twice.

    Args:
      degree: an even number of at least 2.
      seed: seed of the cycles.

    Raises:
      ValueError: the degree is odd, or the seed is no seed.
    """
    degree = check_count("degree", degree)
    check_seed(seed)
    if degree % 2:
        raise ValueError(f"expander's degree is {degree}; wanted an even number")

    def make(m):
        rng, w = np.random.default_rng(seed), np.eye(m)
        for _ in range(degree // 2):
            cycle = rng.permutation(m)
            after = np.roll(cycle, -1)
            np.add.at(w, (cycle, after), 1)
            np.add.at(w, (after, cycle), 1)
        return w[None] / (degree + 1)

    return Topology("expander", {"degree": degree, "seed": seed}, make)


def exponential() -> Topology:
    """In round t, each learner takes half of the model of the learner `2^(t mod T)` before it.

    A learner sends to one other in each round. `T` is log2(m), rounded up; if m is a power of two, `T`
    rounds average exactly. Not with a codec, as neighbours change.

    Source: M. Assran, N. Loizou, N. Ballas, M. Rabbat, "Stochastic gradient push for distributed deep
    learning", ICML 2019, https://arxiv.org/abs/1811.10792
    """

    def make(m):
        count = max(1, (m - 1).bit_length())
        return np.concatenate([_equal_weights(m, (-(2**t),)) for t in range(count)])

    return Topology("exponential", {}, make)


def mixing(matrices: Any) -> Topology:
    """Returns a topology with your own mixing matrices.

    Args:
      matrices: `[m, m]`, or `[T, m, m]` for matrices that take turns; doubly stochastic.
    """
    given = np.asarray(matrices, np.float64)
    given = given[None] if given.ndim == 2 else given
    digest = hashlib.sha256(np.ascontiguousarray(given).tobytes()).hexdigest()[:16]
    return Topology("mixing", {"matrices": digest}, lambda m: given)


def _equal_weights(m: int, shifts: tuple[int, ...]) -> np.ndarray:
    """Returns `[1, m, m]`: learner i mixes with the learners `i + shift`."""
    w, i = np.eye(m), np.arange(m)
    for shift in shifts:
        np.add.at(w, (i, (i + shift) % m), 1)
    return w[None] / (1 + len(shifts))


def _components(edges: np.ndarray) -> np.ndarray:
    """Returns for each learner, `[m]`, the number of its connected part, from 0."""
    edges = edges | edges.T | np.eye(len(edges), dtype=bool)
    parts = np.full(len(edges), -1)
    for start in range(len(edges)):
        if parts[start] >= 0:
            continue
        reached = np.zeros(len(edges), bool)
        reached[start] = True
        while (more := edges[reached].any(axis=0)).sum() > reached.sum():
            reached = more
        parts[reached] = parts.max() + 1
    return parts
