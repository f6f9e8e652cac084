"""The synthetic population: its laws, its layout, and the same draws in memory and in files."""

import importlib
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.data.sources.messages import BEGIN, SPECIAL

SMALL = {"num_clients": 300, "vocabulary_size": 50, "num_topics": 3, "num_test_clients": 20}


@pytest.fixture(scope="module")
def population():
    return fs.data.synthetic(**SMALL)


def distribution(data, client):
    labels = data.examples["y"][data.offsets[client] : data.offsets[client + 1]].ravel()
    return np.bincount(labels, minlength=data.num_classes) / len(labels)


def test_rows_are_laid_out_as_messages(population):
    for data in population:
        x, y = data.examples["x"], data.examples["y"]
        assert x.shape == y.shape == (data.offsets[-1], 10)
        assert x.dtype == y.dtype == np.uint16
        assert (x[:, 0] == BEGIN).all()
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        assert y.min() == len(SPECIAL)
        assert y.max() == 49
        assert data.offsets.dtype == np.int32
        assert data.num_classes == 50


def test_every_client_has_an_example_and_all_have_the_number_asked_for(population):
    train, test = population
    assert (train.num_clients, test.num_clients) == (300, 20)
    assert train.offsets[-1] == 20 * 300
    assert test.offsets[-1] == 20 * 20
    assert train.sizes.min() >= 1
    smallest, _ = fs.data.synthetic(**SMALL, num_examples=300)
    assert (smallest.sizes == 1).all()
    more, _ = fs.data.synthetic(**SMALL, num_examples=1_234)
    assert more.offsets[-1] == 1_234


@pytest.mark.parametrize("exponent", [1.5, 3.0])
def test_sizes_follow_their_power_law(exponent):
    data, _ = fs.data.synthetic(**SMALL | {"num_clients": 20_000, "length": 1}, size_exponent=exponent)
    sizes = data.sizes - 1
    # With a mean share of 1 / (exponent - 1) units, that is the unit; P(s > c) = (1 + c) ** -exponent.
    unit = 19 * (exponent - 1)
    for c in (0.5, 2, 8):
        expected = (1 + c) ** -exponent
        assert (sizes > c * unit).mean() == pytest.approx(expected, rel=0.25)
    assert sizes.max() > 10 * sizes.mean()


def test_topics_are_zipf_and_clients_differ():
    settings = {"num_clients": 4, "num_examples": 8_000, "vocabulary_size": 44, "size_exponent": 50.0}
    alone, _ = fs.data.synthetic(**settings, num_topics=1, num_test_clients=1)
    weights = 1 / np.arange(1, 41)
    for client in range(4):
        ranked = np.sort(distribution(alone, client))[::-1][:40]
        np.testing.assert_allclose(ranked, weights / weights.sum(), atol=0.01)

    def distance(concentration):
        mixed, _ = fs.data.synthetic(**settings, num_test_clients=1, concentration=concentration)
        return np.abs(distribution(mixed, 0) - distribution(mixed, 1)).sum() / 2

    assert distance(0.01) > 0.3
    assert distance(1e4) < 0.1
    assert math.isfinite(distance(1e-300))


def test_words_are_drawn_evenly_where_zipfs_exponent_is_zero():
    settings = {"num_clients": 1, "num_examples": 4_000, "vocabulary_size": 14, "num_test_clients": 1}
    data, _ = fs.data.synthetic(**settings, word_exponent=0.0)
    np.testing.assert_allclose(distribution(data, 0)[4:], 0.1, atol=0.01)


def test_the_seed_decides_everything(population):
    train, test = population
    again, test_again = fs.data.synthetic(**SMALL)
    assert (train.digest(), test.digest()) == (again.digest(), test_again.digest())
    other, test_other = fs.data.synthetic(**SMALL, seed=1)
    assert len({data.digest() for data in (train, test, other, test_other)}) == 4


def test_pieces_are_drawn_alike_in_memory_and_into_files(tmp_path, monkeypatch):
    module = importlib.import_module(
        "fedjax_sim.data.sources.synthetic"
    )  # not the function of this name
    monkeypatch.setattr(module, "_PIECE_CLIENTS", 70)
    monkeypatch.setattr(module, "_PIECE_ROWS", 100)
    in_memory = fs.data.synthetic(**SMALL)
    in_files = fs.data.synthetic(**SMALL, folder=tmp_path)
    for data, stored, part in zip(in_memory, in_files, ("train", "test"), strict=True):
        assert isinstance(stored.examples["x"], np.memmap)
        assert stored.digest() == data.digest() == fs.data.open_federated(tmp_path / part).digest()
        assert (stored.num_classes, stored.name) == (data.num_classes, f"synthetic/{part}")
        np.testing.assert_array_equal(stored.client_ids, data.client_ids)
    with pytest.raises(ValueError, match="already holds a federation"):
        fs.data.synthetic(**SMALL, folder=tmp_path)


def test_every_position_counts_in_a_language_model(population):
    train, _ = population
    task = fs.models.language_model(nn.Embed(50, 50), 10, padding=0, unknown=1)  # the last word alone
    batch = {name: column[:7] for name, column in train.examples.items()}
    total, count = task.loss(task.init(jax.random.key(0)), batch, jax.random.key(1))
    assert count.tolist() == [10] * 7
    np.testing.assert_allclose(total / count, math.log(50), rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clients": 0}, "num_clients is 0; wanted a whole number"),
        ({"num_clients": 2.5}, "num_clients is 2.5"),
        ({"num_clients": 2**31}, "num_clients is 2147483648"),
        ({"num_clients": 2**30}, "num_examples is 21474836480"),
        ({"num_examples": 299}, "num_examples is 299 for 300 clients; wanted at least one for each"),
        ({"num_examples": -1}, "num_examples is -1"),
        ({"num_test_clients": 0}, "num_test_clients is 0"),
        ({"length": 0}, "length is 0"),
        ({"num_topics": 0}, "num_topics is 0"),
        ({"vocabulary_size": 4}, "vocabulary_size is 4; wanted 5 to 65536: 4 symbols are special"),
        ({"vocabulary_size": 70_000}, "vocabulary_size is 70000"),
        ({"size_exponent": 0}, "size_exponent is 0; wanted a finite number above 0"),
        ({"size_exponent": math.inf}, "size_exponent is inf"),
        ({"concentration": -1}, "concentration is -1"),
        ({"concentration": math.nan}, "concentration is nan"),
        ({"word_exponent": -0.5}, "word_exponent is -0.5; wanted a finite number of at least 0"),
        ({"seed": -1}, "seed is -1; wanted an integer of at least 0"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fs.data.synthetic(**SMALL | settings, folder=tmp_path / "data")
    assert not (tmp_path / "data").exists()
