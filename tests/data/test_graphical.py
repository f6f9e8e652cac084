"""Streams of random graphical models: their laws, who shares what, and where they drift."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs

SMALL = {"num_learners": 3, "examples_per_learner": 200}


def streams(data):
    """`"x"` and `"y"` with an axis of learners, `[N, length, ...]`."""
    return (c.reshape(data.num_clients, -1, *c.shape[1:]) for c in map(data.examples.get, "xy"))


def fit(x, y):
    """Weights `[D + 1]` of logistic regression, by Newton's method."""
    x = np.column_stack([x, np.ones(len(x))])
    w = np.zeros(x.shape[1])
    for _ in range(8):
        p = 1 / (1 + np.exp(-x @ w))
        # By einsum, since BLAS wants threads, which wait for one another when tests run side by side.
        hessian = np.einsum("ni,nj->ij", x * (p * (1 - p))[:, None], x) + np.eye(len(w))
        w -= np.linalg.solve(hessian, x.T @ (p - y) + w)
    return w


def accuracy(w, x, y):
    return ((x @ w[:-1] + w[-1] > 0) == y).mean()


def test_streams_are_laid_out_learner_after_learner():
    data = fs.data.random_graphical_model(**SMALL, num_observed=7, num_hidden=3)
    x, y = data.examples["x"], data.examples["y"]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((600, 7), np.float32, (600,), np.int32)
    assert set(np.unique(x)) == {-1, 1}
    assert set(np.unique(y)) == {0, 1}
    assert data.offsets.tolist() == [0, 200, 400, 600]
    assert data.offsets.dtype == np.int32
    assert data.client_ids.tolist() == [0, 1, 2]
    assert data.num_classes == 2
    assert "600 examples of 3 clients" in str(data.describe())


def test_classes_are_balanced_for_every_learner():
    data = fs.data.random_graphical_model(num_learners=4, examples_per_learner=10_000)
    _, y = streams(data)
    np.testing.assert_allclose(y.mean(axis=1), 0.5, atol=0.02)


def test_observed_variables_show_their_hidden_ones():
    data = fs.data.random_graphical_model(num_learners=2, examples_per_learner=10_000)
    x, y = data.examples["x"], data.examples["y"]
    within = x - np.stack([x[y == label].mean(axis=0) for label in (0, 1)])[y]
    correlation = np.abs(np.corrcoef(within.T))
    parents = np.arange(50) % 10
    siblings = parents[:, None] == parents
    # Hidden variables are independent given the class, and so are observed ones of different parents.
    assert correlation[~siblings].max() < 0.06
    assert correlation[siblings].min() > 0.2
    assert np.median(correlation[siblings]) > 0.8


@pytest.mark.parametrize("interval", [(0.2, 0.5), (0.7, 0.8)])
def test_effects_lie_in_their_interval(interval):
    data = fs.data.random_graphical_model(
        num_learners=2, examples_per_learner=50_000, num_hidden=50, hidden_effects=interval
    )
    x, y = data.examples["x"], data.examples["y"]
    effects = ((x[y == 1] > 0).mean(axis=0) - (x[y == 0] > 0).mean(axis=0)).astype(np.float64)
    # Passed on through observed variables, whose effects are 0.9 to 1.
    assert np.abs(effects).min() > 0.9 * interval[0] - 0.02
    assert np.abs(effects).max() < interval[1] + 0.02
    assert 10 < (effects > 0).sum() < 40


def test_hidden_variables_may_tell_all_or_nothing():
    sizes = {"num_learners": 2, "examples_per_learner": 2_000}
    for effects, expected in (((1.0, 1.0), 1.0), ((0.0, 0.0), 0.5)):
        x, y = streams(fs.data.random_graphical_model(**sizes, hidden_effects=effects))
        assert accuracy(fit(x[0], y[0]), x[1], y[1]) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_models_are_learnable_by_a_linear_classifier_and_not_trivial(seed):
    sizes = {"num_learners": 2, "examples_per_learner": 3_000}
    x, y = streams(fs.data.random_graphical_model(**sizes, seed=seed))
    # On the other learner's examples: both share the model.
    assert 0.84 < accuracy(fit(x[0], y[0]), x[1], y[1]) < 0.95


def test_a_drift_makes_what_was_learned_worthless_until_it_is_learned_anew():
    drifts = (1_500, 3_000, 4_500, 6_000, 7_500)
    sizes = {"num_learners": 2, "examples_per_learner": 9_000, "drift_at": drifts}
    x, y = streams(fs.data.random_graphical_model(**sizes))
    concepts = [slice(first, first + 1_500) for first in (0, *drifts)]
    learned = [fit(x[0, c], y[0, c]) for c in concepts]
    own = [accuracy(w, x[1, c], y[1, c]) for w, c in zip(learned, concepts, strict=True)]
    old = [accuracy(w, x[1, c], y[1, c]) for w, c in zip(learned, concepts[1:], strict=False)]
    assert min(own) > 0.84
    assert np.mean(old) < 0.6
    assert np.max(np.array(old) - own[1:]) < -0.1


@pytest.mark.parametrize("piece", [None, 130])
def test_models_change_exactly_at_their_positions(piece, monkeypatch):
    if piece:  # drawn in pieces that end within streams
        module = importlib.import_module("fedjax_sim.data.sources.graphical")
        monkeypatch.setattr(module, "_PIECE_VALUES", piece * 50)

    def drawn(*drift_at):
        return streams(fs.data.random_graphical_model(**SMALL, drift_at=drift_at))

    # The same random numbers decide all of these.
    (steady, steady_y), (once, y_once), (twice, y_twice) = drawn(), drawn(77), drawn(77, 199)
    np.testing.assert_array_equal(steady_y, y_once)
    np.testing.assert_array_equal(steady_y, y_twice)
    same = (steady == once).all(axis=2)
    assert same[:, :77].all()
    assert not same[:, 77:].any()
    same = (once == twice).all(axis=2)
    assert same[:, :199].all()
    assert not same[:, 199:].any()


def test_learners_share_the_model_but_no_examples():
    x, _ = streams(fs.data.random_graphical_model(**SMALL))
    assert not (x[0] == x[1]).all(axis=1).any()
    sizes = {"num_learners": 4, "examples_per_learner": 5_000, "drift_at": (2_500,)}
    x, y = streams(fs.data.random_graphical_model(**sizes))
    for part in (slice(0, 2_500), slice(2_500, None)):
        means = np.stack(
            [[x[i, part][y[i, part] == label].mean(axis=0) for label in (0, 1)] for i in range(4)]
        )
        np.testing.assert_allclose(means, means[:1].repeat(4, axis=0), atol=0.18)


def test_the_seed_decides_everything():
    settings = SMALL | {"drift_at": (50,)}
    digest = fs.data.random_graphical_model(**settings).digest()
    assert digest == fs.data.random_graphical_model(**settings).digest()
    assert digest != fs.data.random_graphical_model(**settings, seed=1).digest()


def test_drifts_are_drawn_by_step_and_placed_by_example():
    batch_size, num_steps = 4, 50
    steps = fs.data.drift_steps(probability=0.1, num_steps=num_steps)
    assert steps
    sizes = {"num_learners": 2, "examples_per_learner": num_steps * batch_size}
    at = [batch_size * t for t in steps]
    before, _ = streams(fs.data.random_graphical_model(**sizes, drift_at=at))
    steady, _ = streams(fs.data.random_graphical_model(**sizes))
    same = (before == steady).all(axis=2).reshape(2, num_steps, batch_size)
    assert same[:, : steps[0]].all()
    assert not same[:, steps[0] :].any()


def test_built_in_models_learn_it():
    data = fs.data.random_graphical_model(num_learners=2, examples_per_learner=2_000)
    x, y = streams(data)
    task = fs.models.logistic_regression(2, (50,))
    train, test = ({"x": jnp.asarray(x[i]), "y": jnp.asarray(y[i])} for i in range(2))

    def loss(params):
        return task.loss(params, train, jax.random.key(0))[0].mean()

    @jax.jit
    def descend(params):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    params = task.init(jax.random.key(1))
    for _ in range(50):
        params = descend(params)
    correct, count = task.metrics(params, test)["accuracy"]
    assert correct.sum() / count.sum() > 0.84


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_learners": 1}, "num_learners is 1; wanted at least 2, to share a model"),
        ({"num_learners": 0}, "num_learners is 0; wanted a whole number"),
        ({"num_learners": 2.5}, "num_learners is 2.5"),
        ({"examples_per_learner": 0}, "examples_per_learner is 0; wanted a whole number"),
        (
            {"examples_per_learner": 2**30},
            "is 3221225472; 32-bit offsets count to 2147483647: take fewer",
        ),
        ({"num_observed": 0}, "num_observed is 0"),
        ({"num_hidden": 0}, "num_hidden is 0"),
        ({"num_hidden": 51}, "num_hidden is 51 for 50 observed variables; wanted at most as many"),
        ({"hidden_effects": (0.5, 0.2)}, r"hidden_effects is \(0.5, 0.2\); wanted an interval within"),
        ({"hidden_effects": (-0.1, 0.2)}, r"hidden_effects is \(-0.1, 0.2\)"),
        ({"hidden_effects": (0.2, 1.1)}, r"hidden_effects is \(0.2, 1.1\)"),
        ({"hidden_effects": (0.2, math.nan)}, r"hidden_effects is \(0.2, nan\)"),
        ({"drift_at": (50, 200)}, "drift_at holds 200, but a stream ends with its example 199, from 0"),
        ({"drift_at": (300,)}, "drift_at holds 300.*raise examples_per_learner"),
        ({"drift_at": (50, 50)}, r"drift_at\[1\] is 50; wanted a whole number above 50: give strictly"),
        ({"drift_at": (0,)}, r"drift_at\[0\] is 0"),
        ({"drift_at": 50}, "drift_at is 50; wanted a sequence"),
        ({"seed": -1}, "seed is -1; wanted an integer of at least 0"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fs.data.random_graphical_model(**SMALL | settings)
