"""Training inside a subspace: the same numbers as training its coordinates by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.algorithms.common import _PATTERN
from fedjax_sim.compression import low_rank, quantize, random_mask
from fedjax_sim.compression.codec import draw_seed, key_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

MOMENTUM = functools.partial(optax.sgd, momentum=0.9)


def decayed_adagrad(rate):
    return optax.chain(optax.add_decayed_weights(0.1), optax.adagrad(rate))


CODECS = {"random_mask": random_mask(0.3), "low_rank": low_rank(2), "low_rank share": low_rank(0.4)}
ROUND = jax.random.key(5)


@pytest.fixture(scope="module")
def linear():
    """Logistic regression, which compiles quickly."""
    return fs.models.classifier(fs.models.MLP((toys.CLASSES,)), (toys.FEATURES,))


def one_round(task, codec, optimizer=optax.sgd, make=fs.fed_avg, ids=(3,), where=None, **settings):
    """Returns the model before and after a round of full-batch steps, with as many as epochs."""
    aggregator = fs.aggregate(codec)
    settings = {"local_epochs": 4, "batch_size": 32, "client_lr": 0.3, "shuffle": "never"} | settings
    algorithm = make(task, optimizer, aggregator=aggregator, **settings)
    data, where = toys.federation(), where or toys.layout()
    state = toys.init(algorithm)
    where_and_data = fs.engine.place((state, data, toys.cohort(algorithm, ids, where)), where)
    after, *_ = jax.jit(algorithm.round)(ROUND, where_and_data[0], (), *where_and_data[1:])
    return state.params, after.params


def by_hand(task, codec, params, client, optimizer, steps=4, rate=0.3, mu=0.0):
    """Trains the coordinates of `w + expand(c)` by autodiff of the loss as a function of `c`."""
    pattern = jax.random.fold_in(key_of(draw_seed(jax.random.fold_in(ROUND, _PATTERN))), client)
    data = toys.federation()
    start, end = np.asarray(data.offsets)[client : client + 2]
    batch = {name: jnp.asarray(column)[start:end] for name, column in data.examples.items()}
    bases, leaves = codec.bases(pattern, params), jax.tree.leaves(params)
    subspace = codec.steps[0].subspace
    structure = jax.tree.structure(params)

    def moved(coordinates):
        steps = map(subspace.expand, bases, coordinates, leaves)
        return jax.tree.unflatten(structure, [w + h for w, h in zip(leaves, steps, strict=True)])

    def loss(coordinates):
        total, count = task.loss(moved(coordinates), batch, jax.random.key(0))
        far = sum(jnp.square(h).sum() for h in map(subspace.expand, bases, coordinates, leaves))
        return total.sum() / count.sum() + mu / 2 * far

    descent = optimizer(rate)
    coordinates = [jnp.zeros_like(subspace.restrict(*pair)) for pair in zip(bases, leaves, strict=True)]
    state = descent.init(coordinates)
    for _ in range(steps):
        update, state = descent.update(jax.grad(loss)(coordinates), state, coordinates)
        coordinates = optax.apply_updates(coordinates, update)
    return moved(coordinates)


@pytest.mark.parametrize(
    "optimizer",
    [MOMENTUM, *(pytest.param(o, marks=pytest.mark.slow) for o in (optax.sgd, decayed_adagrad))],
)
@pytest.mark.parametrize("name", CODECS)
def test_a_client_trains_the_coordinates_alone(name, optimizer):
    task = toys.task()
    before, after = one_round(task, CODECS[name], optimizer)
    wanted = by_hand(task, CODECS[name], before, 3, optimizer)
    toys.assert_close(after, wanted, rtol=1e-4, atol=2e-6)
    assert toys.largest_difference(before, after) > 0.01


def test_fed_prox_pulls_inside_the_subspace():
    task = toys.task()
    before, after = one_round(task, low_rank(2), make=functools.partial(fs.fed_prox, mu=0.7))
    toys.assert_close(after, by_hand(task, low_rank(2), before, 3, optax.sgd, mu=0.7), 1e-4, 2e-6)


def test_each_client_has_a_subspace_of_its_own_and_the_mean_is_over_them():
    task = toys.task()
    before, after = one_round(task, random_mask(0.3), ids=(3, 5), weighting="uniform")
    alone = [by_hand(task, random_mask(0.3), before, k, optax.sgd) for k in (3, 5)]
    toys.assert_close(after, jax.tree.map(lambda a, b: (a + b) / 2, *alone), 1e-4, 2e-6)
    changed = [np.asarray(a["Dense_0"]["kernel"] != before["Dense_0"]["kernel"]) for a in alone]
    assert changed[0].sum() == changed[1].sum() == int(np.ceil(0.3 * changed[0].size))
    assert (changed[0] != changed[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "lanes"),
    [
        (random_mask(0.3) >> quantize(8), 3),
        (random_mask(0.3) >> quantize(8), 16),
        (low_rank(2), 3),
    ],
)
def test_lanes_train_inside_the_same_subspaces(linear, codec, lanes):
    settings = {"ids": (9, 3, 0, 2, 5, 4, 8), "batch_size": 4, "shuffle": "each_epoch"}
    _, one = one_round(linear, codec, MOMENTUM, **settings)
    _, many = one_round(linear, codec, MOMENTUM, where=toys.layout(lanes), **settings)
    toys.assert_close(one, many, 1e-4, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_any_kind_draw_the_same_subspace_twice(linear, impl):
    """Keys of some kinds draw other numbers under vmap; seeds must not."""
    algorithm = fs.fed_avg(
        linear,
        client_lr=0.3,
        local_epochs=1,
        batch_size=4,
        shuffle="never",
        aggregator=fs.aggregate(random_mask(0.3)),
    )
    data, found = toys.federation(), []
    for lanes in (1, 4):
        where = toys.layout(lanes)
        cohort = toys.cohort(algorithm, (9, 3, 0, 2, 5, 4, 8), where)
        state, *placed = fs.engine.place((toys.init(algorithm), data, cohort), where)
        after, *_ = jax.jit(algorithm.round)(jax.random.key(5, impl=impl), state, (), *placed)
        found.append(after.params)
    toys.assert_close(*found, 1e-4, 1e-5)


def test_a_mask_of_everything_is_plain_training():
    task = toys.task()
    _, after = one_round(task, random_mask(1.0), MOMENTUM, ids=(9, 3, 5))
    plain = fs.fed_avg(task, MOMENTUM, local_epochs=4, batch_size=32, client_lr=0.3, shuffle="never")
    state, _ = toys.play(plain, toys.federation(), (9, 3, 5))
    toys.assert_close(after, state.params, 1e-4, 2e-6)


def test_no_seed_is_sent():
    algorithm = fs.fed_avg(
        toys.task(), client_lr=0.1, local_epochs=1, batch_size=4, aggregator=fs.aggregate(low_rank(2))
    )
    state = toys.init(algorithm)
    columns = 8 + toys.CLASSES  # of two kernels, each as two rows; biases are sent whole
    assert algorithm.message_bytes(state)["up_update"] == 4 * (2 * columns + columns)


@pytest.mark.parametrize(
    "make",
    [
        lambda task, aggregator: fs.fed_sgd(task, client_lr=0.1, aggregator=aggregator),
        lambda task, aggregator: fs.fed_nova(
            task, client_lr=0.1, local_epochs=1, batch_size=4, aggregator=aggregator
        ),
    ],
)
def test_algorithms_that_cannot_train_inside_a_subspace_say_so(make):
    algorithm = make(toys.task(), fs.aggregate(random_mask(0.5)))
    with pytest.raises(ValueError, match="random_mask: this algorithm's clients do not train inside"):
        toys.play(algorithm, toys.federation(), (3, 5))


def test_a_model_with_a_state_of_its_own_is_refused():
    import batch_norm

    algorithm = fs.fed_avg(
        batch_norm.task(),
        client_lr=0.1,
        local_epochs=1,
        batch_size=4,
        aggregator=fs.aggregate(random_mask(0.5)),
    )
    with pytest.raises(ValueError, match="random_mask got a model with a state of its own"):
        toys.play(algorithm, toys.federation(), (3, 5))
