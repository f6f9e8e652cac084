"""Partitions with a fixed number of labels or with skewed sizes, and the least size of a client."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.data import dirichlet, dirichlet_sizes, from_arrays, label_subsets

SEEDS = st.integers(0, 2**32)
quick = settings(max_examples=50, deadline=None)


def labelled(labels, num_classes=10):
    return from_arrays(np.zeros((len(labels), 1), np.uint8), labels, num_classes=num_classes)


def clients_of(assignment):
    return np.split(assignment.rows, assignment.offsets[1:-1])


def sizes_of(assignment):
    return np.diff(assignment.offsets)


def assert_every_row_once(assignment, dataset):
    np.testing.assert_array_equal(np.sort(assignment.rows), np.arange(len(dataset)))


class TestLabelSubsets:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))

    @given(st.integers(1, 40), st.integers(1, 10), SEEDS)
    @quick
    def test_each_client_has_as_many_labels_as_asked(self, num_clients, k, seed):
        dataset = labelled(self.labels)
        partition = label_subsets(num_clients=num_clients, labels_per_client=k, seed=seed)
        if num_clients * k < 10:
            with pytest.raises(ValueError, match=r"has 10 labels, so wanted \d+ to 10"):
                partition(dataset)
            return
        assignment = partition(dataset)
        assert_every_row_once(assignment, dataset)
        held = [np.unique(self.labels[rows]) for rows in clients_of(assignment)]
        assert [len(own) for own in held] == [k] * num_clients
        for i, own in enumerate(held):
            assert i % 10 in own
        # The holders of a label share it evenly.
        for label in range(10):
            shares = [(self.labels[rows] == label).sum() for rows in clients_of(assignment)]
            assert np.ptp([share for share in shares if share]) <= 1

    def test_further_labels_are_uniform(self):
        assignment = label_subsets(num_clients=900, labels_per_client=2)(
            labelled(np.tile(np.arange(3), 3000), 3)
        )
        held = [np.unique(rows % 3) for rows in clients_of(assignment)]
        partners = np.array([own.sum() - i % 3 for i, own in enumerate(held)])
        counts = [np.bincount(partners[i::3], minlength=3) for i in range(3)]
        for i, count in enumerate(counts):
            assert count[i] == 0
            assert min(np.delete(count, i)) > 110  # of 300, each with probability 1/2: 4.6 deviations

    def test_rows_are_shuffled_by_the_seed(self):
        dataset = labelled(self.labels)
        first, same, other = (
            label_subsets(num_clients=20, labels_per_client=2, seed=seed)(dataset) for seed in (0, 0, 1)
        )
        assert first.rows.tolist() == same.rows.tolist() != other.rows.tolist()
        two = clients_of(label_subsets(num_clients=2, labels_per_client=1)(labelled([0, 1] * 50, 2)))
        assert [np.unique(rows % 2).tolist() for rows in two] == [[0], [1]]

    def test_labels_that_do_not_occur_are_not_held(self):
        dataset = labelled([2, 7, 7, 2])
        clients = clients_of(label_subsets(num_clients=2, labels_per_client=1)(dataset))
        assert [rows.tolist() for rows in clients] == [[0, 3], [1, 2]]

    @pytest.mark.parametrize(
        ("num_clients", "k", "message"),
        [
            (2, 3, r"labels_per_client is 3 for 2 clients; arrays has 2 labels, so wanted 1 to 2"),
            (1, 1, r"labels_per_client is 1 for 1 clients; arrays has 2 labels, so wanted 2 to 2"),
            (6, 1, r"has 2 rows of label 7, too few for the 3 clients that are to hold it"),
        ],
    )
    def test_what_cannot_be_had_is_refused(self, num_clients, k, message):
        dataset = labelled([2, 7, 7, 2, 2])
        with pytest.raises(ValueError, match=message):
            label_subsets(num_clients=num_clients, labels_per_client=k)(dataset)
        with pytest.raises(ValueError, match=r"labels have shape \(10, 3\)"):
            label_subsets(num_clients=2, labels_per_client=1)(labelled(np.zeros((10, 3), int)))


class TestDirichletSizes:
    @given(st.integers(1, 30), st.floats(-320, 15), SEEDS)
    @quick
    def test_every_row_has_one_owner_for_any_alpha(self, num_clients, exponent, seed):
        dataset = labelled(np.arange(100) % 10)
        alpha = max(10.0**exponent, 5e-324)
        assignment = dirichlet_sizes(num_clients=num_clients, alpha=alpha, seed=seed)(dataset)
        assert_every_row_once(assignment, dataset)
        assert len(assignment.client_ids) == num_clients

    @pytest.mark.parametrize("alpha", [0.5, 5.0])
    def test_sizes_have_the_dirichlets_moments(self, alpha):
        dataset = labelled(np.zeros(1000, int))
        shares = np.array(
            [
                sizes_of(dirichlet_sizes(num_clients=4, alpha=alpha, seed=seed)(dataset)) / 1000
                for seed in range(1000)
            ]
        )
        variance = 0.25 * 0.75 / (4 * alpha + 1)
        np.testing.assert_allclose(shares.mean(0), 0.25, atol=4 * np.sqrt(variance / 1000))
        np.testing.assert_allclose(shares.var(0), variance, rtol=0.2)

    def test_labels_are_iid(self):
        dataset = labelled(np.repeat(np.arange(10), 1000))
        for rows in clients_of(dirichlet_sizes(num_clients=5, alpha=5.0)(dataset)):
            counts = np.bincount(rows // 1000, minlength=10)
            assert np.abs(counts / len(rows) - 0.1).max() < 4 * np.sqrt(0.09 / len(rows))


MADE = [
    lambda **settings: dirichlet(num_clients=8, alpha=0.5, **settings),
    lambda **settings: dirichlet_sizes(num_clients=8, alpha=0.5, **settings),
]


@pytest.mark.parametrize("make", MADE, ids=["dirichlet", "dirichlet_sizes"])
class TestMinSize:
    dataset = labelled(np.repeat(np.arange(10), 40))

    def test_no_client_has_fewer(self, make):
        smallest = [sizes_of(make(seed=seed)(self.dataset)).min() for seed in range(20)]
        assert min(smallest) < 10
        for seed, before in enumerate(smallest):
            assignment = make(min_size=10, seed=seed)(self.dataset)
            assert_every_row_once(assignment, self.dataset)
            assert sizes_of(assignment).min() >= 10
            if before >= 10:  # the first draw was good already
                assert assignment.rows.tolist() == make(seed=seed)(self.dataset).rows.tolist()

    def test_what_cannot_be_had_is_refused(self, make):
        with pytest.raises(ValueError, match="400 rows, too few to give each of 8 clients min_size=51"):
            make(min_size=51)(self.dataset)
        with pytest.raises(
            ValueError,
            match=r"in 1000 draws, the smallest client had \d+ rows at best; wanted min_size=50",
        ):
            make(min_size=50)(self.dataset)

    @pytest.mark.parametrize("value", [-1, 2.5, None])
    def test_a_size_that_is_none_is_refused(self, make, value):
        with pytest.raises(ValueError, match=rf"min_size is {value}; wanted an integer of at least 0"):
            make(min_size=value)
