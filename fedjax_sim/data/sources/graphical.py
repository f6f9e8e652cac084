"""Drifting streams from random graphical models that all learners share.

A stream is the sequence of rows that a learner, a client of a `FederatedData`, observes: at step t, from
0, its rows `t * B` to `t * B + B - 1`, with batches of B.

The source is two-tiered, as in N. H. Bshouty and P. M. Long, "Linear classifiers are nearly optimal when
hidden variables have diverse effects", Machine Learning 86, 2012,
https://doi.org/10.1007/s10994-011-5262-7: first the class, then hidden variables that are independent
given the class, then observed variables that depend on the hidden ones. M. Kamp et al.,
"Efficient decentralized deep learning by dynamic model averaging", ECML-PKDD 2018,
https://arxiv.org/abs/1807.03210, study concept drift on such a source. Neither paper fixes the
parameters: except for the effects of the class (see `random_graphical_model`), they follow M. Boley's
program, `inputs/graphical_models.py` in https://github.com/arindamrc/distributed-nn.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fedjax_sim.core.checks import check_count, check_seed
from fedjax_sim.data.drift import check_drift_times
from fedjax_sim.data.federated import FederatedData

_OBSERVED_EFFECTS = (0.9, 1.0)
_PIECE_VALUES = 2**20  # drawn at a time, so that memory beyond the result stays constant


def random_graphical_model(
    *,
    num_learners: int,
    examples_per_learner: int,
    drift_at: Sequence[int] = (),
    num_observed: int = 50,
    num_hidden: int = 10,
    hidden_effects: tuple[float, float] = (0.2, 0.5),
    seed: int = 0,
) -> FederatedData:
    """Draws a stream for each learner, all from one shared model, which each drift replaces.

    Both classes are equally likely. Hidden variables depend on the class, and observed variable j on
    hidden variable `j % num_hidden` alone. The effect of a binary variable's parent is how much it
    changes the variable's probability. It is drawn uniformly from an interval, then the smaller
    probability uniformly from those that leave room for it; either value of the parent gets the larger
    one with equal chance. The effects on observed variables are 0.9 to 1.

    The default `hidden_effects` and `num_hidden` are our choice: they make models about equally hard,
    so a drift changes the concept but little else. For seeds 0 to 99, logistic regression on 20,000
    examples classified 91 % of 10,000 others correctly on average (86 to 94 %), and 50 % after a drift
    (23 to 83 %), since a fresh model may agree with the previous one in some variables. Boley's program
    has `hidden_effects=(0.0, 1.0)` and 5 hidden for 50 observed variables, which gives 95 % (77 to
    100 %).

    To drift at each step with some probability, for batches of B, draw the steps and convert them to
    examples:

        steps = fs.data.drift_steps(probability=0.01, num_steps=500)
        data = fs.data.random_graphical_model(
            num_learners=100, examples_per_learner=500 * B, drift_at=[B * t for t in steps]
        )

    Args:
      num_learners: number of learners, `N`.
      examples_per_learner: length of each stream; `n` is N times that.
      drift_at: ascending positions in a stream, in examples of one learner, at which a new model
        begins.
      num_observed: number of observed variables, D.
      num_hidden: number of hidden variables, at most D, so that each affects an observed one.
      hidden_effects: interval of the effects of the class on hidden variables, within [0, 1].
      seed: seed of all draws. The models depend only on it, the numbers of variables and the effects,
        not on learners, examples or drifts.

    Returns:
      The federation, with rows in stream order. `examples` `"x"`, float32 `[n, D]`, -1 or 1, since
      models take floats as they are and integers as shades of 255; `"y"`, int32 `[n]`, 0 or 1.

    Raises:
      ValueError: an argument is out of range.
    """
    num_learners = check_count("num_learners", num_learners)
    if num_learners < 2:
        raise ValueError("num_learners is 1; wanted at least 2, to share a model")
    length = check_count("examples_per_learner", examples_per_learner)
    num_rows = num_learners * length
    if num_rows >= 2**31:
        raise ValueError(
            f"num_learners * examples_per_learner is {num_rows}; 32-bit offsets count to {2**31 - 1}: "
            "take fewer"
        )
    num_observed = check_count("num_observed", num_observed)
    num_hidden = check_count("num_hidden", num_hidden)
    if num_hidden > num_observed:
        raise ValueError(
            f"num_hidden is {num_hidden} for {num_observed} observed variables; wanted at most as many, "
            "since each observed one depends on a single hidden one"
        )
    drift_at = check_drift_times("drift_at", drift_at)
    if drift_at and drift_at[-1] >= length:
        raise ValueError(
            f"drift_at holds {drift_at[-1]}, but a stream ends with its example {length - 1}, from 0; "
            "wanted smaller positions: leave out the later ones, or raise examples_per_learner"
        )
    low, high = hidden_effects
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"hidden_effects is {hidden_effects}; wanted an interval within [0, 1], such as (0.2, 0.5)"
        )
    check_seed(seed)

    streams = np.random.SeedSequence(seed).spawn(2)
    # PCG64 by name: default_rng may change its algorithm between versions of NumPy.
    of_models, of_examples = (np.random.Generator(np.random.PCG64(s)) for s in streams)
    models = _Models.draw(of_models, 1 + len(drift_at), num_observed, num_hidden, hidden_effects)
    x, y = np.empty((num_rows, num_observed), np.float32), np.empty(num_rows, np.int32)
    piece = max(1, _PIECE_VALUES // num_observed)
    for first in range(0, num_rows, piece):
        rows = np.arange(first, min(first + piece, num_rows))
        model = np.searchsorted(drift_at, rows % length, side="right")
        x[rows[0] : rows[-1] + 1], y[rows[0] : rows[-1] + 1] = models.examples(of_examples, model)
    return FederatedData(
        {"x": x, "y": y},
        np.arange(0, num_rows + 1, length, dtype=np.int32),
        np.arange(num_learners),
        num_classes=2,
        name="random_graphical_model",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Models:
    """`M` models: the probability that each variable is 1, given that its parent is 0 or 1.

    Attributes:
      hidden: probabilities given the class, `[M, 2, H]` float32.
      observed: probabilities given hidden variable `j % H`, `[M, 2, D]` float32.
    """

    hidden: np.ndarray
    observed: np.ndarray

    @classmethod
    def draw(cls, generator, num: int, num_observed: int, num_hidden: int, hidden_effects) -> "_Models":
        # Draws models one by one, so that later drifts leave earlier models unchanged.
        tables = [
            (
                _conditionals(generator, num_hidden, hidden_effects),
                _conditionals(generator, num_observed, _OBSERVED_EFFECTS),
            )
            for _ in range(num)
        ]
        return cls(*(np.stack(table) for table in zip(*tables, strict=True)))

    def examples(self, generator, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draws `"x"` float32 `[m, D]` and `"y"` int32 `[m]`, each row from its `model` `[m]`."""
        num_rows, num_hidden, num_observed = len(model), self.hidden.shape[2], self.observed.shape[2]
        y = generator.integers(2, size=num_rows, dtype=np.int32)
        hidden = generator.random((num_rows, num_hidden), np.float32) < self.hidden[model, y]
        parents = hidden[:, np.arange(num_observed) % num_hidden]
        given = np.where(parents, self.observed[model, 1], self.observed[model, 0])
        observed = generator.random((num_rows, num_observed), np.float32) < given
        return np.where(observed, np.float32(1), np.float32(-1)), y


def _conditionals(generator, num: int, effects: tuple[float, float]) -> np.ndarray:
    """Draws the probability of 1 given the parent for `num` binary variables, `[2, num]` float32."""
    effect = generator.uniform(*effects, num)
    smaller = generator.uniform(0, 1 - effect)
    pair = np.stack([smaller, smaller + effect]).astype(np.float32)
    return np.where(generator.random(num) < 0.5, pair, pair[::-1])
