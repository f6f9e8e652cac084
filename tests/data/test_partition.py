"""The laws of partitions: who owns what, for any size, setting and seed."""

import numpy as np
import pytest
from data_files import data_root, needs
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.data import (
    Assignment,
    dirichlet,
    dirichlet_sizes,
    federate,
    from_arrays,
    iid,
    label_subsets,
    load,
    lognormal,
    natural,
    shards,
)

SEEDS = st.integers(0, 2**32)
quick = settings(max_examples=50, deadline=None)


def labelled(labels, num_classes=10, **keys):
    """A data set of one pixel to a row, with these labels `[n]`."""
    x = np.zeros((len(labels), 1), np.uint8)
    return from_arrays(x, labels, num_classes=num_classes, keys=keys)


def clients_of(assignment):
    return np.split(assignment.rows, assignment.offsets[1:-1])


def sizes_of(assignment):
    return np.diff(assignment.offsets)


def same(a, b):
    return np.array_equal(a.rows, b.rows) and np.array_equal(a.offsets, b.offsets)


def assert_every_row_once(assignment, dataset):
    np.testing.assert_array_equal(np.sort(assignment.rows), np.arange(len(dataset)))
    assert assignment.offsets[0] == 0
    assert assignment.offsets[-1] == len(dataset)
    assert (sizes_of(assignment) >= 0).all()
    assert len(assignment.client_ids) == len(assignment.offsets) - 1


LABELS = st.lists(st.integers(0, 9), min_size=1, max_size=200).map(np.array)
# Every seeded partition, as a function of a seed alone.
SEEDED = {
    "iid": lambda seed: iid(num_clients=7, seed=seed),
    "shards": lambda seed: shards(num_clients=7, shards_per_client=3, seed=seed),
    "dirichlet": lambda seed: dirichlet(num_clients=7, alpha=0.5, seed=seed),
    "lognormal": lambda seed: lognormal(num_clients=7, sigma=1.0, seed=seed),
    "label_subsets": lambda seed: label_subsets(num_clients=7, labels_per_client=3, seed=seed),
    "dirichlet_sizes": lambda seed: dirichlet_sizes(num_clients=7, alpha=0.5, seed=seed),
}

DIGESTS = {
    "iid": "408de0cc250aeb8c",
    "shards": "dedb1313b7d5f7b0",
    "dirichlet": "a80faab9bca0ce81",
    "lognormal": "ecfde2f02c052104",
    "label_subsets": "15369349e7fa6c9c",
    "dirichlet_sizes": "6d4bfc15e12c2dc2",
}


@pytest.mark.parametrize("name", SEEDED)
class TestSeeds:
    dataset = labelled(np.arange(500) % 10)

    def test_the_seed_decides(self, name):
        make = SEEDED[name]
        assert same(make(3)(self.dataset), make(3)(self.dataset))
        assert not same(make(3)(self.dataset), make(4)(self.dataset))

    def test_applying_twice_repeats(self, name):
        partition = SEEDED[name](3)
        assert same(partition(self.dataset), partition(self.dataset))

    def test_a_seed_divides_as_in_earlier_versions(self, name):
        """Workdirs recognise their runs by these digests."""
        x = np.arange(1000, dtype=np.uint8).reshape(250, 4)
        dataset = from_arrays(x, np.arange(250) * 7 % 10, num_classes=10)
        assert federate(dataset, SEEDED[name](3)).digest() == DIGESTS[name]

    @pytest.mark.parametrize("seed", [-1, 0.5, None])
    def test_refuses_seeds_that_do_not_repeat(self, name, seed):
        with pytest.raises(ValueError, match=r"seed is .*; wanted an integer of at least 0"):
            SEEDED[name](seed)


class TestIid:
    @given(LABELS, st.data(), SEEDS)
    @quick
    def test_is_even(self, labels, data, seed):
        dataset = labelled(labels)
        num_clients = data.draw(st.integers(1, len(labels)))
        assignment = iid(num_clients=num_clients, seed=seed)(dataset)
        assert_every_row_once(assignment, dataset)
        assert len(assignment.client_ids) == num_clients
        assert np.ptp(sizes_of(assignment)) <= 1

    def test_is_shuffled(self):
        dataset = labelled(np.repeat(np.arange(10), 100))
        for rows in clients_of(iid(num_clients=5)(dataset)):
            assert len(np.unique(dataset.examples["y"][rows])) == 10


class TestShards:
    @given(LABELS, st.data(), SEEDS)
    @quick
    def test_is_sorted_and_even(self, labels, data, seed):
        dataset = labelled(labels)
        per_client = data.draw(st.integers(1, min(4, len(labels))))
        num_clients = data.draw(st.integers(1, len(labels) // per_client))
        assignment = shards(num_clients=num_clients, shards_per_client=per_client, seed=seed)(dataset)
        assert_every_row_once(assignment, dataset)
        assert np.ptp(sizes_of(assignment)) <= per_client
        # The cuts of a sorted list meet each label boundary once, so few shards are mixed.
        distinct = sum(len(np.unique(labels[rows])) for rows in clients_of(assignment))
        assert distinct <= num_clients * per_client + len(np.unique(labels)) - 1

    def test_the_papers_200_shards_of_300(self):
        dataset = labelled(np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6000)))
        assignment = shards(num_clients=100, shards_per_client=2, seed=0)(dataset)
        assert_every_row_once(assignment, dataset)
        order = np.argsort(dataset.examples["y"], kind="stable").reshape(200, 300)
        hands = assignment.rows.reshape(200, 300)
        assert sorted(map(tuple, hands)) == sorted(map(tuple, order))
        counts = [len(np.unique(dataset.examples["y"][rows])) for rows in clients_of(assignment)]
        assert set(counts) == {1, 2}
        assert np.mean(np.array(counts) == 2) > 0.8

    @needs("mnist")
    def test_on_mnist_most_clients_hold_two_digits(self):
        train, _ = load("mnist", data_root())
        assignment = shards(num_clients=100)(train)
        assert (sizes_of(assignment) == 600).all()
        counts = np.array([len(np.unique(train.examples["y"][rows])) for rows in clients_of(assignment)])
        # MNIST's digits do not fill whole shards, so a shard may straddle two of them.
        assert counts.max() <= 4
        assert np.median(counts) == 2
        assert np.mean(counts == 2) > 0.6


class TestDirichlet:
    @given(LABELS, st.integers(1, 30), st.floats(-320, 15), SEEDS)
    @quick
    def test_every_row_has_one_owner_for_any_alpha(self, labels, num_clients, exponent, seed):
        dataset = labelled(labels)
        alpha = max(10.0**exponent, 5e-324)
        with np.errstate(invalid="raise", divide="raise", over="raise"):
            assignment = dirichlet(num_clients=num_clients, alpha=alpha, seed=seed)(dataset)
        assert_every_row_once(assignment, dataset)
        assert len(assignment.client_ids) == num_clients

    @pytest.mark.parametrize("alpha", [1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3])
    def test_spans_one_owner_per_label_to_even(self, alpha):
        dataset = labelled(np.repeat(np.arange(10), 1000))
        assignment = dirichlet(num_clients=100, alpha=alpha, seed=1)(dataset)
        assert_every_row_once(assignment, dataset)
        histogram = np.array(
            [np.bincount(rows // 1000, minlength=10) for rows in clients_of(assignment)]
        )
        largest = histogram.max(0).mean() / 1000
        if alpha == 1e-3:
            assert largest > 0.9
        if alpha == 1e3:
            assert largest < 0.015
            assert sizes_of(assignment).min() > 85

    @pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
    def test_proportions_have_the_dirichlets_moments(self, alpha):
        classes, rows, num_clients = 2000, 400, 4
        dataset = labelled(np.repeat(np.arange(classes), rows), num_classes=classes)
        assignment = dirichlet(num_clients=num_clients, alpha=alpha, seed=2)(dataset)
        shares = np.array(
            [np.bincount(r // rows, minlength=classes) / rows for r in clients_of(assignment)]
        )
        mean = 1 / num_clients
        variance = mean * (1 - mean) / (num_clients * alpha + 1)
        np.testing.assert_allclose(shares.mean(1), mean, atol=4 * np.sqrt(variance / classes))
        np.testing.assert_allclose(shares.var(1), variance, rtol=0.15)

    def test_survives_draws_that_all_overflow(self):
        dataset = labelled(np.arange(100) % 10)
        for seed in range(20):
            assignment = dirichlet(num_clients=1, alpha=5e-324, seed=seed)(dataset)
            assert_every_row_once(assignment, dataset)

    def test_rows_of_a_label_are_dealt_in_shuffled_order(self):
        dataset = labelled(np.zeros(1000, int))
        rows = clients_of(dirichlet(num_clients=2, alpha=100.0)(dataset))[0]
        assert 300 < rows.mean() < 700  # the first half would average 250

    @pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
    @pytest.mark.parametrize("make", [dirichlet, dirichlet_sizes])
    def test_refuses(self, make, alpha):
        with pytest.raises(ValueError, match=r"alpha is .*; wanted a finite number above 0"):
            make(num_clients=3, alpha=alpha)


class TestLognormal:
    @given(LABELS, st.data(), st.floats(0, 1e300), SEEDS)
    @quick
    def test_every_client_owns_something(self, labels, data, sigma, seed):
        dataset = labelled(labels)
        num_clients = data.draw(st.integers(1, len(labels)))
        assignment = lognormal(num_clients=num_clients, sigma=sigma, seed=seed)(dataset)
        assert_every_row_once(assignment, dataset)
        assert sizes_of(assignment).min() >= 1

    def test_survives_draws_that_overflow(self):
        dataset = labelled(np.arange(100) % 10)
        sizes = sizes_of(lognormal(num_clients=50, sigma=1e308)(dataset))
        assert sorted(sizes)[-2:] == [1, 51]

    def test_sigma_zero_is_even(self):
        sizes = sizes_of(lognormal(num_clients=7, sigma=0.0)(labelled(np.zeros(101, int))))
        assert np.ptp(sizes) <= 1

    def test_sizes_are_lognormal(self):
        dataset = labelled(np.zeros(1_000_000, int))
        logs = np.log(sizes_of(lognormal(num_clients=2000, sigma=0.7, seed=5)(dataset)))
        assert logs.std() == pytest.approx(0.7, rel=0.06)
        assert np.median(logs) == pytest.approx(logs.mean(), abs=0.06)

    @pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
    def test_refuses(self, sigma):
        with pytest.raises(ValueError, match=r"sigma is .*; wanted a finite number of at least 0"):
            lognormal(num_clients=3, sigma=sigma)


class TestNatural:
    @given(st.lists(st.integers(-50, 50), min_size=1, max_size=100).map(np.array))
    @quick
    def test_each_value_is_a_client(self, writers):
        dataset = labelled(np.zeros(len(writers), int), writer=writers)
        assignment = natural("writer")(dataset)
        assert_every_row_once(assignment, dataset)
        np.testing.assert_array_equal(assignment.client_ids, np.unique(writers))
        for client, rows in zip(assignment.client_ids, clients_of(assignment), strict=True):
            np.testing.assert_array_equal(rows, np.flatnonzero(writers == client))

    @pytest.mark.parametrize("dtype", [str, object])
    def test_accepts_names(self, dtype):
        names = np.array(["eve", "adam", "eve", "bob"], dtype)
        dataset = labelled(np.zeros(4, int), author=names)
        assignment = natural("author")(dataset)
        assert assignment.client_ids.tolist() == ["adam", "bob", "eve"]
        assert assignment.rows.tolist() == [1, 3, 0, 2]

    @needs("mnist")
    @needs("qmnist_writers")
    def test_qmnist_has_539_writers(self):
        train, _ = load("qmnist", data_root())
        assignment = natural("writer")(train)
        sizes = sizes_of(assignment)
        assert_every_row_once(assignment, train)
        assert (len(sizes), sizes.min(), sizes.max()) == (539, 19, 131)

    def test_refuses_unknown_keys(self):
        dataset = labelled(np.zeros(2, int), writer=np.arange(2), page=np.arange(2))
        wanted = r"arrays has no key 'author'; its keys are \['page', 'writer'\]"
        with pytest.raises(ValueError, match=wanted):
            natural("author")(dataset)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: iid(num_clients=n),
        lambda n: shards(num_clients=n),
        lambda n: shards(num_clients=2, shards_per_client=n),
        lambda n: dirichlet(num_clients=n, alpha=1.0),
        lambda n: lognormal(num_clients=n, sigma=1.0),
        lambda n: label_subsets(num_clients=n, labels_per_client=1),
        lambda n: label_subsets(num_clients=2, labels_per_client=n),
        lambda n: dirichlet_sizes(num_clients=n, alpha=1.0),
    ],
)
@pytest.mark.parametrize("count", [0, -3, 2.5])
def test_refuses_counts_below_one(make, count):
    with pytest.raises(ValueError, match=f"_client.* is {count}; wanted an integer of at least 1"):
        make(count)


@pytest.mark.parametrize(
    ("partition", "needs_rows"),
    [
        (iid(num_clients=11), "num_clients=11"),
        (lognormal(num_clients=11, sigma=1.0), "num_clients=11"),
        (shards(num_clients=6), "num_clients \\* shards_per_client = 12 shards"),
    ],
)
def test_refuses_more_clients_than_rows(partition, needs_rows):
    with pytest.raises(ValueError, match=f"has 10 rows and {needs_rows} need at least one row"):
        partition(labelled(np.arange(10)))


@pytest.mark.parametrize("partition", [shards(num_clients=2), dirichlet(num_clients=2, alpha=1.0)])
def test_refuses_to_sort_rows_with_several_labels(partition):
    with pytest.raises(ValueError, match=r"labels have shape \(10, 3\); .* use iid"):
        partition(labelled(np.zeros((10, 3), int)))


class TestAssignment:
    def test_from_lists(self):
        assignment = Assignment.from_lists([[3, 1], [], np.array([0], np.uint8)], ["a", "b", "c"])
        assert assignment.rows.tolist() == [3, 1, 0]
        assert assignment.rows.dtype == np.int64
        assert assignment.offsets.tolist() == [0, 2, 2, 3]
        assert assignment.client_ids.tolist() == ["a", "b", "c"]
        assert Assignment.from_lists([[1], [0]]).client_ids.tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("lists", "ids", "message"),
        [
            ([], None, "there are no clients; give at least one"),
            ([[0], [0.5]], None, r"rows of client 1 are float64 of shape \(1,\); wanted integers"),
            ([[True, False]], None, r"client 0 are bool .*np.flatnonzero"),
            ([[[0, 1]]], None, r"of shape \(1, 2\); wanted integers of shape \[n_k\]"),
            ([[0], [1]], ["a"], "there are 1 client_ids for 2 clients; give one for each"),
        ],
    )
    def test_from_lists_refuses(self, lists, ids, message):
        with pytest.raises(ValueError, match=message):
            Assignment.from_lists(lists, ids)

    @pytest.mark.parametrize(
        ("offsets", "message"),
        [
            ([0], "offsets are .*; wanted at least one client"),
            ([1, 3], "wanted at least one client, from 0 to the number of rows, 3"),
            ([0, 2], "from 0 to the number of rows, 3"),
            ([0, 2, 1, 3], "offsets fall at client 1"),
        ],
    )
    def test_refuses_offsets_that_do_not_fit(self, offsets, message):
        with pytest.raises(ValueError, match=message):
            Assignment(np.arange(3), np.array(offsets), np.arange(len(offsets) - 1))


def test_floats_to_predict_are_divided_but_not_by_label():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    whole = from_arrays(x, x @ np.float64([1, 2]))
    assert whole.num_classes is None
    assert "classes" not in repr(whole) + whole._repr_html_()
    clients = federate(whole, iid(num_clients=3, seed=0))
    assert clients.examples["y"].dtype == np.float32
    assert sorted(clients.examples["y"].tolist()) == (x @ np.float32([1, 2])).tolist()
    with pytest.raises(ValueError, match="'y' holds floats, and dividing by label needs integer labels"):
        federate(whole, dirichlet(num_clients=3, alpha=1.0))
