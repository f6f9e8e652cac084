"""Regression, several labels, an own loss, and what a wrong task is told before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs

FEATURES = 4
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def linear(*outputs):
    """A linear model with outputs of this shape for each example, as a pair."""

    def init(key):
        return 0.3 * jax.random.normal(key, (FEATURES, *outputs))

    return init, lambda w, x: jnp.tensordot(x, w, 1)


def clients(x, y):
    half = len(x) // 2
    return fs.data.from_clients({"ann": (x[:half], y[:half]), "bob": (x[half:], y[half:])})


def train(task, data, rounds=1):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=5)
    settings = {"key": KEY, "num_rounds": rounds, "client_fraction": 1.0, "layout": toys.layout()}
    evaluate = fs.evaluator(task, data, layout=toys.layout())
    return fs.simulate(algorithm, data, evaluate=evaluate, eval_every=rounds, **settings)


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_a_regressors_loss_and_metrics(outputs):
    task = fs.models.regressor(linear(*outputs), (FEATURES,))
    x, y = RNG.normal(size=(7, FEATURES)).astype(np.float32), RNG.normal(size=(7, *outputs))
    w, batch = task.init(KEY), {"x": x, "y": y.astype(np.float32)}
    apart = (x @ np.asarray(w, np.float64) - y).reshape(7, -1)
    total, count = task.loss(w, batch, KEY)
    np.testing.assert_allclose(total, (apart**2).mean(1), rtol=1e-4)
    np.testing.assert_array_equal(count, np.ones(7))
    metrics = task.metrics(w, batch)
    np.testing.assert_allclose(metrics["loss"][0], total, rtol=1e-6)
    np.testing.assert_allclose(metrics["mae"][0], np.abs(apart).mean(1), rtol=1e-4)
    np.testing.assert_allclose(task.predict(w, batch), x @ np.asarray(w), rtol=1e-4, atol=1e-5)
    whole = batch | {"y": np.ones((7, *outputs), np.int32)}
    expected = np.square(x @ np.asarray(w, np.float64) - 1).reshape(7, -1).mean(1)
    np.testing.assert_allclose(task.loss(w, whole, KEY)[0], expected, rtol=1e-4)


def test_a_regressor_finds_the_line():
    x = RNG.normal(size=(40, FEATURES))
    y = x @ np.array([1.0, -2.0, 0.5, 0.0])
    result = train(fs.models.regressor(linear(), (FEATURES,)), clients(x, y), rounds=40)
    np.testing.assert_allclose(result.params, [1.0, -2.0, 0.5, 0.0], atol=0.02)
    assert result.rows[-1]["test_mae"] < 0.05


@pytest.mark.parametrize(("outputs", "shape"), [((1,), ()), ((), (1,)), ((2,), (3,))])
def test_targets_of_another_shape_are_not_broadcast(outputs, shape):
    task = fs.models.regressor(linear(*outputs), (FEATURES,))
    x, y = RNG.normal(size=(6, FEATURES)), RNG.normal(size=(6, *shape))
    message = r"'y' has the shape \[.*\] and the model's predictions \[.*\]; wanted the same"
    with pytest.raises(ValueError, match=message):
        train(task, clients(x, y))
    with pytest.raises(ValueError, match=message):
        fs.simulate(
            fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=5),
            clients(x, y),
            key=KEY,
            num_rounds=1,
            client_fraction=1.0,
        )


def test_metrics_of_several_labels():
    task = fs.models.multilabel(linear(3), (FEATURES,))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, FEATURES)).astype(np.float32)
    w, y = task.init(KEY), rng.integers(0, 2, (40, 3))
    logits = x @ np.asarray(w, np.float64)
    p, predicted = 1 / (1 + np.exp(-logits)), (logits > 0).astype(int)
    entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1)
    true_positives, wrong = (predicted * y).sum(), (predicted != y).sum()
    expected = {
        "loss": entropy.mean(),
        "accuracy": (predicted == y).mean(),
        "exact_match": (predicted == y).all(1).mean(),
        "micro_f1": 2 * true_positives / (2 * true_positives + wrong),
    }
    found = task.metrics(w, {"x": x, "y": y.astype(np.int32)})
    ratios = {name: total.sum() / count.sum() for name, (total, count) in found.items()}
    assert ratios == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for value in expected.values()}) == 4
    np.testing.assert_allclose(task.loss(w, {"x": x, "y": y}, KEY)[0], entropy, rtol=1e-4)
    np.testing.assert_allclose(task.predict(w, {"x": x}), p, rtol=1e-4)


def test_labels_that_are_not_zeros_and_ones_are_refused():
    task = fs.models.multilabel(linear(3), (FEATURES,))
    x, y = RNG.normal(size=(6, FEATURES)), RNG.integers(0, 2, (6, 3))
    with pytest.raises(ValueError, match=r"holds 2 at row 0.*wanted labels from 0 to 1"):
        train(task, clients(x, np.where(np.arange(18).reshape(6, 3) == 1, 2, y)))
    with pytest.raises(ValueError, match=r"'y' holds float32; wanted integer labels"):
        train(task, clients(x, y.astype(np.float32)))
    with pytest.raises(ValueError, match=r"'y' has the shape \[6, 2\] and the model's logits \[6, 3\]"):
        train(task, clients(x, y[:, :2]))


def squares(w, batch):
    return jnp.square(batch["x"] @ w - batch["y"])


def zeros(key):
    return jnp.zeros(FEATURES)


def batch_of(n=5):
    return {"x": RNG.normal(size=(n, FEATURES)).astype(np.float32), "y": np.ones(n, np.float32)}


def test_an_own_loss_is_a_task():
    def metrics(w, batch):
        return {
            "far": squares(w, batch) > 0.5,
            "ratio": (batch["y"], 4 * batch["y"]),
            "errors": batch["x"],
        }

    def predict(w, batch):
        return batch["x"] @ w

    task = fs.models.from_loss(zeros, squares, metrics, predict)
    batch, w = batch_of(), jnp.ones(FEATURES)
    expected = np.square(batch["x"].sum(axis=1) - 1)
    total, count = task.loss(w, batch, KEY)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_array_equal(count, np.ones(5))
    assert task.predict is predict
    evaluate = fs.evaluator(task, fs.data.FederatedData(batch, np.array([0, 5])), layout=toys.layout())
    found = evaluate(w)
    assert found["test_loss"] == pytest.approx(expected.mean(), rel=1e-5)
    assert found["test_far"] == (expected > 0.5).mean()
    assert found["test_ratio"] == 0.25
    np.testing.assert_allclose(found["test_errors"], batch["x"].mean(axis=0), rtol=1e-5)


def test_an_own_loss_may_take_a_key_in_training():
    def loss(w, batch, key=None):
        noise = 0 if key is None else jax.random.normal(key)
        return squares(w, batch) + noise, 2 * jnp.ones(len(batch["y"]))

    task = fs.models.from_loss(zeros, loss)
    w, batch = zeros(KEY), batch_of()
    first, other = (task.loss(w, batch, jax.random.key(k)) for k in (1, 2))
    assert np.abs(first[0] - other[0]).min() > 0.01
    np.testing.assert_array_equal(first[1], 2 * np.ones(5))
    np.testing.assert_array_equal(task.metrics(w, batch)["loss"][0], np.ones(5))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w, batch: squares(w, batch).mean(), r"loss returned float32\[\] .*leave out the mean"),
        (lambda w, batch: squares(w, batch)[:1], r"loss returned float32\[1\] .*leave out the mean"),
        (lambda w, batch: (squares(w, batch), 1.0), r"\(float32\[2\], float32\[\]\) .*wanted a pair"),
        (lambda w, batch: squares(w, batch)[:, None], r"\(float32\[2, 1\], float32\[2\]\)"),
    ],
)
def test_an_own_loss_of_other_shapes_is_refused_before_training(loss, message):
    task = fs.models.from_loss(zeros, loss)
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=5)
    data = clients(**batch_of())
    with pytest.raises(ValueError, match=message):
        fs.simulate(algorithm, data, key=KEY, num_rounds=1, client_fraction=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((zeros(KEY), squares), r"init is float32\[4\]; wanted a function"),
        ((zeros, None), "loss is a value of type NoneType; wanted a function"),
        ((zeros, squares, {"mae": squares}), "metrics is .*function}; wanted a function"),
        ((zeros, squares, None, 3), "predict is a value of type int; wanted a function"),
        ((zeros, lambda w, batch, rng: 0), r"takes \(w, batch, rng\); wanted loss\(params, batch\)"),
        ((zeros, lambda w: 0), r"takes \(w\); wanted loss\(params, batch\)"),
    ],
)
def test_what_is_no_function_of_a_batch_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.models.from_loss(*arguments)


def test_a_model_in_place_of_a_task_is_refused():
    model, data = fs.models.MLP((3,)), clients(**batch_of())
    rates = {"client_lr": 0.1, "batch_size": 5}
    for refused in (
        lambda: fs.fed_avg(model, local_epochs=1, **rates),
        lambda: fs.fed_sgd(model, client_lr=0.1),
        lambda: fs.sgd(model, steps_per_round=1, **rates),
        lambda: fs.dynamic_averaging(model, fs.protocols.none(), num_learners=2, **rates),
        lambda: fs.evaluator(model, data),
        lambda: fs.predict(model, {}, data),
    ):
        with pytest.raises(
            ValueError, match=r"type MLP; wanted an fs.Task: fs.models.classifier\(model"
        ):
            refused()


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, batch, key: squares(w, batch),
        lambda w, batch, key: squares(w, batch).mean(),
        lambda w, batch, key: (squares(w, batch).sum(), jnp.float32(2)),
        lambda w, batch, key: (squares(w, batch)[:, None], jnp.ones((len(batch["y"]), 1))),
        lambda w, batch, key: (jnp.ones(len(batch["y"]), int), jnp.ones(len(batch["y"]))),
        lambda w, batch, key: {"loss": squares(w, batch)},
    ],
)
def test_a_wrong_loss_is_told_what_the_pair_means(loss):
    task = fs.Task(zeros, loss, lambda w, batch: {})
    message = r"loss returned .*wanted a pair \(total float32\[2\], count \[2\]\).*number of terms"
    for make in (fs.fed_avg, fs.scaffold):
        algorithm = make(task, client_lr=0.1, local_epochs=1, batch_size=5)
        with pytest.raises(ValueError, match=message):
            fs.simulate(algorithm, clients(**batch_of()), key=KEY, num_rounds=1, client_fraction=1.0)


def test_a_loss_of_a_fixed_length_is_refused_where_it_is_traced():
    """Two losses whatever the batch would pass a check on two rows alone."""
    task = fs.Task(zeros, lambda w, batch, key: (w[:2], jnp.ones(2)), lambda w, batch: {})
    data = clients(**batch_of())
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=5)
    with pytest.raises(ValueError, match=r"\(float32\[2\], float32\[2\]\) for a batch of 5 examples"):
        fs.simulate(algorithm, data, key=KEY, num_rounds=1, client_fraction=1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda n: jnp.ones(n), r"metric 'm' is float32\[5\] for a batch of 5 examples; wanted a pair"),
        (lambda n: (jnp.ones(()), jnp.ones(())), r"metric 'm' is \(float32\[\], float32\[\]\)"),
        (lambda n: (jnp.ones((n, 1)), jnp.ones(n)), r"write total\[:, 0\]"),
        (lambda n: (jnp.ones((n, 3)), jnp.ones((n, 2))), "broadcasts to the total's"),
        (lambda n: (jnp.ones(n), jnp.ones((n, 2))), "broadcasts to the total's"),
    ],
)
def test_wrong_metrics_are_told_when_the_evaluation_is_made(value, message):
    task = fs.Task(zeros, None, lambda w, batch: {"m": value(len(batch["y"]))})
    with pytest.raises(ValueError, match=message):
        fs.evaluator(task, clients(**batch_of()), layout=toys.layout())


def test_metrics_that_are_no_dict_are_refused():
    data, message = clients(**batch_of()), r"metrics returned .*wanted a dict of pairs"
    for task in (fs.Task(zeros, None, squares), fs.models.from_loss(zeros, squares, squares)):
        with pytest.raises(ValueError, match=message):
            fs.evaluator(task, data, layout=toys.layout())
    with pytest.raises(ValueError, match="metrics is a value of type NoneType; wanted a function"):
        fs.evaluator(fs.Task(zeros, None, None), data, layout=toys.layout())
