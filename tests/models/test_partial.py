"""Partial training: frozen leaves stay as they are and are never sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SETTINGS = {"client_lr": 0.2, "local_epochs": 1, "batch_size": 4}


def run(task, data, **settings):
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
    defaults = {"key": jax.random.key(3), "num_rounds": 3, "client_fraction": 0.4}
    defaults |= {"evaluate": evaluate, "layout": toys.layout()}
    return fs.simulate(fs.fed_avg(task, **SETTINGS), data, **(defaults | settings))


@pytest.fixture(scope="module")
def params(task):
    return task.init(jax.random.key(7))


def test_frozen_leaves_stay_and_cost_no_bytes(task, data, params):
    part = fs.models.trainable(task, lambda path: path.startswith("Dense_1/"), params)
    result = run(part.task, data)
    assert {k: v.shape for k, v in result.params.items()} == {
        "Dense_1/bias": (3,),
        "Dense_1/kernel": (8, 3),
    }
    whole = part.join(result.params)
    toys.assert_same(whole["Dense_0"], params["Dense_0"])
    assert toys.largest_difference(whole["Dense_1"], params["Dense_1"]) > 0.01
    assert result.rows[-1]["bytes_up"] == result.rows[-1]["messages_up"] * 4 * (3 + 8 * 3)
    assert result.rows[-1]["test_loss"] < result.rows[0]["test_loss"]
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
    for name, value in evaluate(whole).items():
        assert result.rows[-1][name] == pytest.approx(value, rel=1e-5)


def test_the_gradient_is_that_of_the_whole_model(task, params):
    part = fs.models.trainable(task, lambda path: "kernel" in path, params)
    batch = toys.dataset(5).examples
    key = jax.random.key(0)
    start = part.task.init(key)
    own = jax.grad(lambda p: part.task.loss(p, batch, key)[0].sum())(start)
    whole = jax.grad(lambda p: task.loss(p, batch, key)[0].sum())(params)
    toys.assert_close(own, {f"{name}/kernel": whole[name]["kernel"] for name in ("Dense_0", "Dense_1")})


def test_all_leaves_make_the_ordinary_run(task, data, params):
    part = fs.models.trainable(task, lambda path: True, params)
    result, ordinary = run(part.task, data), run(task, data, initial_params=params)
    toys.assert_close(part.join(result.params), jax.device_get(ordinary.params))
    assert result.rows[-1]["bytes_up"] == ordinary.rows[-1]["bytes_up"]
    start = part.task.init(jax.random.key(0))
    toys.assert_same(part.join(start), jax.device_get(params))


def test_models_of_one_array_have_an_empty_path():
    task = fs.Task(lambda key: jnp.zeros(2), lambda w, batch, key: (w, w), lambda w, batch: {})
    part = fs.models.trainable(task, lambda path: path == "", np.ones(2, np.float32))
    toys.assert_same(part.join(part.task.init(jax.random.key(0))), np.ones(2, np.float32))


def test_what_does_not_fit_is_refused(task, params):
    with pytest.raises(ValueError, match="chooses no leaf to train; there are Dense_0/bias, "):
        fs.models.trainable(task, lambda path: path == "Dense_9", params)
    with pytest.raises(ValueError, match="wanted those of the task's model"):
        fs.models.trainable(task, lambda path: True, params["Dense_0"])
