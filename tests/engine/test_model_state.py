"""Models that keep state: BatchNorm's statistics in training, in the average, and in evaluation."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from batch_norm import MODELS, task, trained_by_hand
from flax import nnx

import fedjax_sim as fs
from fedjax_sim.engine.optimizers import descend

TRAINING = {"local_epochs": 2, "batch_size": 4, "client_lr": 0.1}


def by_hand(w, data, ids, weights):
    models = []
    for k in ids:
        client = data[k]
        x, y = client["x"], client["y"]
        models.append(trained_by_hand(w, x, y, epochs=2, batch_size=4, rate=0.1) if len(y) else w)
    return jax.tree.map(
        lambda *leaves: sum(p * w for p, w in zip(weights, leaves, strict=True)), *models
    )


@pytest.mark.parametrize("lanes", [1, 3, 10])
def test_a_round_averages_parameters_and_statistics(lanes):
    data = toys.federation()  # an empty client, and short last batches
    algorithm = fs.fed_avg(task(), shuffle="never", **TRAINING)
    state = toys.init(algorithm)
    start = jax.tree.map(np.asarray, state.params)
    weights = np.array(toys.SIZES) / sum(toys.SIZES)
    after, _ = toys.play(algorithm, data, state=state, where=toys.layout(lanes))
    expected = by_hand(start, data, range(len(toys.SIZES)), weights)
    toys.assert_close(jax.tree.map(np.asarray, after.params), expected, rtol=1e-4, atol=1e-5)
    mean = after.params.state["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(mean).max() > 0.01


@pytest.mark.parametrize("model", MODELS)
def test_statistics_leave_padding_out(model):
    task_ = task(model)
    params = task_.init(jax.random.key(0))
    batch = dict(toys.dataset(4).examples)
    batch = {name: jnp.asarray(column) for name, column in batch.items()}
    key = jax.random.key(1)
    for size in (4, 3, 1):
        padded = {name: c[jnp.minimum(jnp.arange(4), size - 1)] for name, c in batch.items()}
        alone = {name: c[:size] for name, c in batch.items()}
        (total, _), state = task_.loss_and_state(params, padded, jnp.arange(4) < size, key)
        (expected, _), wanted = task_.loss_and_state(params, alone, jnp.ones(size, bool), key)
        np.testing.assert_allclose(total[:size], expected, rtol=1e-5)
        toys.assert_close(state, wanted, rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_uses_the_running_statistics(model):
    task_ = task(model)
    params = task_.init(jax.random.key(0))
    batch = {name: jnp.asarray(c) for name, c in toys.dataset(6).examples.items()}
    whole = task_.predict(params, batch)
    part = task_.predict(params, {name: c[:2] for name, c in batch.items()})
    np.testing.assert_allclose(whole[:2], part, rtol=1e-5)
    moved = params._replace(state=jax.tree.map(lambda leaf: leaf + 1, params.state))
    assert toys.largest_difference(task_.predict(moved, batch), whole) > 1e-3


def test_linen_and_nnx_agree():
    def loaded(params):
        named = {"first": "Dense_0", "norm": "BatchNorm_0", "last": "Dense_1"}
        linen = task("linen").init(jax.random.key(0))

        def fill(state, source):
            for path, _ in nnx.to_flat_state(state):
                layer, leaf = map(str, path)
                state[layer][leaf].set_value(source[named[layer]][leaf])
            return state

        return linen, fs.Variables(
            fill(params.params, linen.params), fill(params.state, linen.state["batch_stats"])
        )

    linen, as_nnx = loaded(task("nnx").init(jax.random.key(0)))
    data = toys.federation()
    runs = []
    for name, params in (("linen", linen), ("nnx", as_nnx)):
        algorithm = fs.fed_avg(task(name), **TRAINING)
        result = fs.simulate(
            algorithm,
            data,
            num_rounds=2,
            key=jax.random.key(0),
            clients_per_round=5,
            initial_params=params,
        )
        runs.append(sorted(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(result.params)))
    np.testing.assert_allclose(*runs, rtol=1e-4)


FIXED = TRAINING | {"client_lr": 0.0, "shuffle": "never", "weighting": "uniform"}
MOMENTUM_SGD = functools.partial(optax.sgd, momentum=0.9)


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda t: fs.fed_avg(t, server_optimizer=MOMENTUM_SGD, server_lr=0.01, **FIXED),
        lambda t: fs.fed_avg(
            t, lambda rate: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate)), **FIXED
        ),
        lambda t: fs.fed_prox(t, mu=0.1, **FIXED),
        lambda t: fs.scaffold(t, **FIXED),
    ],
    ids=["server momentum", "weight decay", "fed_prox", "scaffold"],
)
def test_statistics_are_averaged_whatever_the_optimizers_do(algorithm):
    """With a rate of zero the parameters stay, so the statistics are those of the first model."""
    data = toys.federation()
    start = toys.init(fs.fed_avg(task(), **FIXED))
    plain, _ = toys.play(fs.fed_avg(task(), **FIXED), data, rounds=2)
    other = algorithm(task())
    found, _ = toys.play(other, data, rounds=2)
    assert toys.largest_difference(plain.params.state, start.params.state) > 0.01
    toys.assert_close(found.params.state, plain.params.state, rtol=1e-4)


def test_the_clients_optimizer_does_not_see_the_state():
    """Clipping by the global norm would otherwise count it."""
    step = descend(
        optax.clip_by_global_norm(1.0),
        fs.Variables({"w": jnp.array([3.0])}, {"s": jnp.array([40.0])}),
        optax.clip_by_global_norm(1.0).init(None),
        fs.Variables({"w": jnp.array([0.0])}, {"s": jnp.array([100.0])}),
    )[0]
    np.testing.assert_allclose(step.params["w"], [1.0], rtol=1e-6)
    np.testing.assert_allclose(step.state["s"], [60.0])


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (lambda t: fs.fed_sgd(t, client_lr=0.1), "in pieces, each with statistics of its own"),
        (lambda t: fs.fed_avg(t, **TRAINING | {"batch_size": math.inf}), "finite batch_size"),
        (lambda t: fs.fed_nova(t, **TRAINING), "divided by a_k has no meaning"),
        (lambda t: fs.ifca(t, num_clusters=2, **TRAINING), "in pieces"),
        (
            lambda t: fs.dynamic_averaging(
                t, fs.protocols.periodic(period=1), num_learners=2, batch_size=2, client_lr=0.1
            ),
            "distance of two models",
        ),
    ],
)
def test_algorithms_without_a_meaning_for_state_refuse_it(algorithm, message):
    with pytest.raises(ValueError, match=f"keeps state beside its parameters.*{message}"):
        algorithm(task())


def test_bfloat16_keeps_the_statistics_wide():
    data = toys.federation()
    algorithm = fs.fed_avg(fs.models.bfloat16(task()), **TRAINING)
    with jax.numpy_dtype_promotion("standard"):  # which flax's BatchNorm needs in bfloat16
        narrow, _ = toys.play(algorithm, data)
    wide, _ = toys.play(fs.fed_avg(task(), **TRAINING), data)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(narrow.params))
    toys.assert_close(narrow.params.state, wide.params.state, rtol=0.05, atol=0.05)


def test_partial_training_also_trains_the_state():
    whole = task().init(jax.random.key(0))
    part = fs.models.trainable(task(), lambda path: path.startswith("Dense_1/"), whole)
    result = fs.simulate(
        fs.fed_avg(part.task, **TRAINING),
        toys.federation(),
        num_rounds=2,
        key=jax.random.key(0),
        clients_per_round=5,
    )
    after = part.join(result.params)
    toys.assert_same(after.params["Dense_0"], whole.params["Dense_0"])
    assert toys.largest_difference(after.params["Dense_1"], whole.params["Dense_1"]) > 1e-3
    assert toys.largest_difference(after.state, whole.state) > 1e-3


class Stubborn(nn.Module):
    average: bool

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(toys.CLASSES)(nn.BatchNorm(use_running_average=self.average)(x))


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
        return nn.Dense(toys.CLASSES)(x)


class Folding(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(-1, 2)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(toys.CLASSES)(x.reshape(-1, toys.FEATURES))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Stubborn(True), "uses its running averages in training; have the model"),
        (Stubborn(False), "uses a batch's statistics in evaluation; have the model"),
        (Counting(), "state beside its parameters, counts, that holds int32"),
        (Folding(), r"gets inputs \(3, 2\) for a batch of 1 examples; wanted an axis of examples"),
    ],
)
def test_state_that_would_go_wrong_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        fs.models.classifier(model, (toys.FEATURES,))


def test_resnet_counts_parameters_and_statistics():
    shapes = jax.eval_shape(fs.models.resnet18(norm="batch").init, jax.random.key(0))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in shapes]
    assert sizes == [11_173_962, 9_600]
    with pytest.raises(ValueError, match="norm is 'layer'; wanted 'group' or 'batch'"):
        fs.models.resnet18(norm="layer")


def test_a_task_with_state_needs_variables():
    strange = task()._replace(init=lambda key: {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"wanted fs.Variables\(params, state\)"):
        toys.play(fs.fed_avg(strange, **TRAINING), toys.federation())
