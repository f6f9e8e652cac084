"""One call takes any model; what cannot be averaged over clients is refused with the cure."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx
from small_models import (
    HIDDEN,
    MODELS,
    Nnx,
    Train,
    bare_apply,
    bare_init,
    batch_of,
    nnx_dropout,
    task_of,
)

import fedjax_sim as fs
from fedjax_sim.models import classifier, scale_pixels

SLOW = ("bare", "train", "nnx dropout")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in SLOW else ())
        for n in (*MODELS, "train", "nnx dropout")
    ],
)
def test_any_model_learns_by_fed_avg(name, data):
    model = {**MODELS, "train": Train(), "nnx dropout": nnx_dropout}[name]
    algorithm = fs.fed_avg(task_of(model), client_lr=0.1, local_epochs=1, batch_size=4, shuffle="never")
    where = toys.layout(lanes=2)
    state, first = toys.play(algorithm, data, where=where)
    _, last = toys.play(algorithm, data, state=state, rounds=20, where=where)
    assert float(last["train_loss"]) < 0.9 * float(first["train_loss"])


def test_the_same_weights_give_the_same_loss_in_every_framework():
    weights = bare_init(jax.random.key(3))
    weights["hidden"]["bias"] = jnp.arange(HIDDEN, dtype=jnp.float32) / HIDDEN
    tasks = {name: task_of(model) for name, model in MODELS.items()}
    linen = {"Dense_0": weights["hidden"], "Dense_1": weights["out"]}
    state = tasks["nnx"].init(jax.random.key(0))
    nnx.replace_by_pure_dict(state, weights)
    params = {"linen": linen, "nnx": state, "bare": weights, "haiku-like": weights}

    batch, key = batch_of(), jax.random.key(0)
    outputs = {
        name: (task.loss(params[name], batch, key), task.metrics(params[name], batch))
        for name, task in tasks.items()
    }
    for name in MODELS:
        toys.assert_close(outputs[name], outputs["bare"])

    logits = np.asarray(bare_apply(weights, batch["x"]), np.float64)
    y = np.asarray(batch["y"])
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    (total, count), metrics = outputs["bare"]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_array_equal(count, np.ones(len(y)))
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"][0], logits.argmax(1) == y)
    np.testing.assert_array_equal(metrics["accuracy"][1], np.ones(len(y)))


@pytest.mark.parametrize("name", MODELS)
def test_the_key_picks_the_start(name):
    task = task_of(MODELS[name])
    first, again, other = (task.init(jax.random.key(seed)) for seed in (1, 1, 2))
    toys.assert_same(first, again)
    assert toys.largest_difference(first, other) > 0.1


def test_group_norm_takes_the_place_of_batch_norm():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            # It lines its scale up with the features by itself.
            with jax.numpy_rank_promotion("allow"):
                return nn.Dense(toys.CLASSES)(nn.GroupNorm(num_groups=2)(x))

    task = task_of(Normed())
    total, _ = task.loss(task.init(jax.random.key(0)), batch_of(), jax.random.key(1))
    assert np.isfinite(total).all()


def test_a_built_nnx_module_is_refused():
    with pytest.raises(ValueError, match="already has its parameters; pass a function"):
        task_of(Nnx(nnx.Rngs(0)))


@pytest.mark.parametrize("model", [3, "mlp", None, [bare_init, bare_apply], (bare_init, 3), (1, 2, 3)])
def test_a_thing_of_another_kind_is_refused(model):
    with pytest.raises(ValueError, match=f"model of type {type(model).__name__}; wanted"):
        task_of(model)


def test_a_function_that_returns_no_module_is_refused():
    with pytest.raises(ValueError, match="wanted an nnx module"):
        task_of(lambda rngs: 3)


@pytest.mark.parametrize(
    "apply",
    [
        lambda params, x: x.reshape(-1, 2, 3),
        lambda params, x: x.sum(axis=1),
        lambda params, x: jnp.concatenate([x, x]),
        lambda params, x: {"logits": x},
    ],
)
def test_what_is_no_vector_of_logits_for_each_example_is_refused(apply):
    with pytest.raises(ValueError, match=r"wanted logits \[B, classes\]"):
        task_of((lambda key: {}, apply))


def test_bytes_are_scaled_and_floats_are_not():
    bytes_ = jnp.array([[0, 51, 255]], jnp.uint8)
    scaled = scale_pixels(bytes_)
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, [[0, 0.2, 1]], rtol=1e-6)
    for dtype in (jnp.float32, jnp.bfloat16):
        floats = jnp.array([[-3, 0.5, 300]], dtype)
        toys.assert_same(scale_pixels(floats), floats)
        assert scale_pixels(floats).dtype == dtype


def test_inputs_are_decoded_in_training_and_evaluation():
    params = bare_init(jax.random.key(0))
    batch = batch_of()
    stored = {"x": jnp.clip(batch["x"] * 50 + 100, 0, 255).astype(jnp.uint8), "y": batch["y"]}

    def outputs(task, batch):
        return task.loss(params, batch, jax.random.key(0)), task.metrics(params, batch)

    decoded = {"x": stored["x"].astype(jnp.float32) / 255, "y": batch["y"]}
    task = task_of((bare_init, bare_apply))
    toys.assert_close(outputs(task, stored), outputs(task, decoded))

    centred = classifier(
        (bare_init, bare_apply), (toys.FEATURES,), decode=lambda x: x.astype(jnp.float32) / 128 - 1
    )
    decoded["x"] = stored["x"].astype(jnp.float32) / 128 - 1
    toys.assert_close(outputs(centred, stored), outputs(task, decoded))


def test_decoding_may_change_the_shape():
    task = fs.models.classifier(fs.models.MLP((3,)), (8, 8, 1), decode=lambda x: x[:, 2:6, 2:6] / 1.0)
    params = task.init(jax.random.key(0))
    assert params["Dense_0"]["kernel"].shape == (16, 3)
    batch = {"x": jnp.ones((5, 8, 8, 1), jnp.float32), "y": jnp.zeros(5, jnp.int32)}
    assert task.loss(params, batch, jax.random.key(0))[0].shape == (5,)


def test_a_class_in_place_of_a_module_is_refused():
    with pytest.raises(ValueError, match="got the class MLP; pass a module"):
        fs.models.classifier(fs.models.MLP, (4,))
