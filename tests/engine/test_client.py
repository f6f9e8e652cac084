"""One client by itself: what it refuses, what it costs, and what it computes, against plain NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.engine.client import SHUFFLES
from fedjax_sim.engine.gradients import PIECES, batch_slots

SIZES = [0, 1, 49, 50, 51, 123, 200, 430]
ROWS = {
    "x": np.random.default_rng(0).normal(size=450).astype(np.float32),
    "terms": np.random.default_rng(1).integers(1, 9, size=450).astype(np.float32),
}


def weighing(params, batch):
    """`w * x` over a number of terms that differs from example to example, as of a text."""
    return params["w"].reshape(1) * batch["x"], batch["terms"]


# Its batch gradient is sum(x) / sum(terms), whatever the parameters are.
LINEAR = fs.Task(
    init=lambda key: {"w": jnp.ones(())},
    loss=lambda params, batch, key: weighing(params, batch),
    metrics=lambda params, batch: {"loss": weighing(params, batch)},
)


def client(size, start=3, rows=ROWS):
    return fs.Client(
        jax.tree.map(jnp.asarray, rows), *(jnp.asarray(i, jnp.int32) for i in (start, size, 0))
    )


def train(size, rate=0.5, optimizer=optax.sgd, seed=0, **settings):
    """`(w, LossSums)` of local training on `LINEAR`, in NumPy."""
    settings = {"local_epochs": 1, "batch_size": 4, "shuffle": "never"} | settings
    work = fs.local_training(LINEAR, optimizer, **settings)
    params = LINEAR.init(jax.random.key(0))
    params, losses = jax.jit(work.run)(params, client(size), jax.random.key(seed), jnp.float32(rate))
    return jax.tree.map(np.asarray, (params["w"], losses))


def batches(size, width, start=3):
    """The rows of `LINEAR` in batches: `(x, terms)` of each."""
    for i in range(start, start + size, width):
        rows = slice(i, min(i + width, start + size))
        yield ROWS["x"][rows], ROWS["terms"][rows]


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True, math.inf, math.nan])
def test_epochs_must_be_a_whole_number(epochs):
    with pytest.raises(ValueError, match=r"local_epochs is .*; wanted a whole number"):
        fs.local_training(LINEAR, optax.sgd, local_epochs=epochs, batch_size=4)


@pytest.mark.parametrize("batch_size", [0, -4, 2.5, -math.inf, math.nan])
def test_a_batch_must_be_a_whole_number_or_everything(batch_size):
    with pytest.raises(ValueError, match=r"batch_size is .*; wanted a whole number"):
        fs.local_training(LINEAR, optax.sgd, local_epochs=1, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [4, math.inf])
def test_a_whole_number_may_be_written_as_a_float(batch_size):
    toys.assert_same(
        train(6, local_epochs=2.0, batch_size=float(batch_size)),
        train(6, local_epochs=2, batch_size=batch_size),
    )


@pytest.mark.parametrize("shuffle", ["always", "", None, True])
def test_an_unknown_shuffle_is_refused(shuffle):
    with pytest.raises(ValueError, match="wanted one of each_epoch, once, never"):
        fs.local_training(LINEAR, optax.sgd, local_epochs=1, batch_size=4, shuffle=shuffle)


@pytest.mark.parametrize("optimizer", [0.1, "sgd", None, (1, 2)])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(ValueError, match=f"optimizer of type {type(optimizer).__name__}; wanted"):
        fs.local_training(LINEAR, optimizer, local_epochs=1, batch_size=4)


@pytest.mark.parametrize("batch_size", [1, 4, 10.0, 50, 600, math.inf])
@pytest.mark.parametrize("epochs", [1, 5])
def test_slots_count_whole_batches(batch_size, epochs):
    work = fs.local_training(LINEAR, optax.sgd, local_epochs=epochs, batch_size=batch_size)
    width = PIECES[-1] if batch_size == math.inf else int(batch_size)
    sizes = range(0, 650, 7)
    slots = work.slots(jnp.array(sizes, jnp.int32), None)
    assert slots.dtype == jnp.int32
    expected = [epochs * width * math.ceil(size / width) for size in sizes]
    np.testing.assert_array_equal(slots.sum(axis=1), expected)
    assert expected[0] == 0


def test_slots_of_a_full_gradient_are_pieces_the_largest_first():
    assert PIECES == (200, 50, 10)
    slots = fs.engine.full_gradient(LINEAR).slots(
        jnp.array([0, 1, 50, 51, 199, 200, 430, 600], jnp.int32), None
    )
    expected = [
        [0, 0, 0],
        [0, 0, 10],
        [0, 50, 0],
        [0, 50, 10],
        [0, 150, 50],
        [200, 0, 0],
        [400, 0, 30],
        [600, 0, 0],
    ]
    np.testing.assert_array_equal(slots, expected)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8, 13])
def test_slots_cover_every_position_once_and_pad_with_the_last(size):
    chosen, real = zip(*(batch_slots(jnp.int32(i), 4, jnp.int32(size)) for i in range(5)), strict=True)
    chosen, real = np.concatenate(chosen), np.concatenate(real)
    np.testing.assert_array_equal(chosen[real], np.arange(size))
    assert (chosen[~real] == max(size - 1, 0)).all()


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 6, 13])
def test_a_short_last_batch_is_a_mean_over_what_it_holds(size):
    w, losses = train(size, local_epochs=2)
    expected, total = 1.0, 0.0
    for x, terms in [*batches(size, 4)] * 2:
        total += expected * x.sum()
        expected -= 0.5 * x.sum() / terms.sum()
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    # Each example's loss counts at the parameters that its step found.
    np.testing.assert_allclose(losses.total, total, rtol=1e-4, atol=1e-5)
    assert losses.count == 2 * ROWS["terms"][3 : 3 + size].sum()
    assert losses.examples == 2 * size


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_an_epoch_visits_every_example_once(shuffle):
    x, terms = next(batches(13, 13))
    for size_of_batch in (5, 64):
        _, losses = train(13, rate=0.0, shuffle=shuffle, local_epochs=3, batch_size=size_of_batch)
        np.testing.assert_allclose(losses.total, 3 * x.sum(), rtol=1e-5)
        assert losses.count == 3 * terms.sum()
        assert losses.examples == 3 * 13


def test_the_optimizer_lasts_for_all_epochs_and_starts_afresh():
    momentum = functools.partial(optax.sgd, momentum=0.9)
    first, second = (train(6, optimizer=momentum, local_epochs=2)[0] for _ in range(2))
    expected, trace = 1.0, 0.0
    for x, terms in [*batches(6, 4)] * 2:
        trace = 0.9 * trace + x.sum() / terms.sum()
        expected -= 0.5 * trace
    np.testing.assert_allclose(first, expected, rtol=1e-5)
    assert first == second


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_key_picks_the_order_only_where_one_is_drawn(shuffle):
    first, again, other = (train(13, seed=seed, shuffle=shuffle)[0] for seed in (0, 0, 1))
    assert first == again
    assert (first == other) == (shuffle == "never")


@pytest.mark.parametrize("size", SIZES)
def test_micro_batches_add_up_to_the_gradient_of_all_examples(size):
    x, terms = ROWS["x"][3 : 3 + size], ROWS["terms"][3 : 3 + size]
    params = LINEAR.init(jax.random.key(0))
    gradient, losses = jax.jit(fs.engine.full_gradient(LINEAR).run)(
        params, client(size), jax.random.key(0)
    )
    np.testing.assert_allclose(gradient["w"], x.sum() / max(terms.sum(), 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses.total, x.sum(), rtol=1e-4, atol=1e-5)
    assert losses.count == terms.sum()
    assert losses.examples == size


@pytest.mark.parametrize("size", SIZES)
def test_an_infinite_batch_is_one_step_an_epoch(size):
    w, losses = train(size, local_epochs=3, batch_size=math.inf)
    x, terms = ROWS["x"][3 : 3 + size], ROWS["terms"][3 : 3 + size]
    step = 0.5 * x.sum() / max(terms.sum(), 1)
    np.testing.assert_allclose(w, 1 - 3 * step, rtol=1e-4)
    np.testing.assert_allclose(losses.total, (3 - 3 * step) * x.sum(), rtol=1e-4, atol=1e-5)
    assert losses.count == 3 * terms.sum()
    assert losses.examples == 3 * size


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 4), (math.inf, 5)])
def test_every_step_of_every_epoch_has_a_key_of_its_own(batch_size, steps):
    seen = []

    def loss(params, batch, key):
        seen.append(tuple(jax.random.key_data(key).tolist()))
        return weighing(params, batch)

    size = 13 if batch_size == 4 else 123
    work = fs.local_training(
        LINEAR._replace(loss=loss), optax.sgd, local_epochs=2, batch_size=batch_size, shuffle="never"
    )
    with jax.disable_jit():
        work.run(LINEAR.init(jax.random.key(0)), client(size), jax.random.key(0), jnp.float32(0.1))
    assert len(seen) == len(set(seen)) == 2 * steps


def test_an_example_that_breaks_a_neighbour_breaks_nobody_else():
    poisoned = {name: column.copy() for name, column in ROWS.items()}
    poisoned["x"][:3] = np.nan
    poisoned["x"][16:] = np.inf
    work = fs.local_training(LINEAR, optax.sgd, local_epochs=2, batch_size=4)
    run = jax.jit(work.run)
    start, key, rate = LINEAR.init(jax.random.key(0)), jax.random.key(1), jnp.float32(0.1)
    clean = run(start, client(13), key, rate)
    toys.assert_same(run(start, client(13, rows=poisoned), key, rate), clean)
