"""The federation: gathering, the pytree it is, and what it says of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import data_root, needs

from fedjax_sim.data import (
    Assignment,
    FederatedData,
    dirichlet,
    federate,
    from_arrays,
    iid,
    load,
    natural,
)

LABELS = np.array([0, 2, 2, 1, 0, 2])
DATASET = from_arrays(np.arange(6, dtype=np.uint8)[:, None], LABELS, name="six")
LISTS = [[4, 1], [], [0, 2, 3]]


class TestFederate:
    def test_gathers_client_by_client(self):
        data = federate(DATASET, LISTS)
        assert isinstance(data, FederatedData)
        assert data.examples["x"][:, 0].tolist() == [4, 1, 0, 2, 3]
        assert data.examples["y"].tolist() == [0, 2, 0, 2, 1]
        assert data.examples["x"].dtype == np.uint8
        assert data.offsets.tolist() == [0, 2, 2, 5]
        assert data.offsets.dtype == np.int32
        assert data.sizes.tolist() == [2, 0, 3]
        assert data.num_clients == 3
        assert (data.num_classes, data.name) == (3, "six")
        assert data.client_ids.tolist() == [0, 1, 2]

    def test_takes_assignments_and_functions_to_either(self):
        assignment = Assignment.from_lists(LISTS, ["a", "b", "c"])
        for partition in (assignment, lambda _: assignment):
            assert federate(DATASET, partition).client_ids.tolist() == ["a", "b", "c"]
        assert federate(DATASET, lambda _: LISTS).offsets.tolist() == [0, 2, 2, 5]

    def test_leaves_keys_behind(self):
        dataset = from_arrays(DATASET.examples["x"], LABELS, keys={"writer": LABELS})
        data = federate(dataset, natural("writer"))
        assert set(data.examples) == {"x", "y"}
        assert data.client_ids.tolist() == [0, 1, 2]
        assert data.sizes.tolist() == [2, 1, 3]

    @pytest.mark.parametrize(
        ("lists", "message"),
        [
            ([], "there are no clients"),
            ([[], []], "none of the 2 clients owns a row; at least one must"),
            ([[0], [1, 6]], "client 1 owns row 6; six has rows 0 to 5"),
            ([[0, -1], [1]], "client 0 owns row -1; six has rows 0 to 5"),
            ([[0], [], [1, 0]], "row 0 is owned 2 times, first by client 0; .*list it once"),
            ([[0], [], [1, 1]], "row 1 is owned 2 times, first by client 2"),
        ],
    )
    def test_refuses(self, lists, message):
        with pytest.raises(ValueError, match=message):
            federate(DATASET, lists)

    def test_refuses_more_rows_than_int32_counts(self):
        rows = np.broadcast_to(np.int64(0), 2**31)  # takes no memory
        assignment = Assignment(rows, np.array([0, 2**31]), np.arange(1))
        with pytest.raises(ValueError, match="own 2147483648 rows; 32-bit offsets count to"):
            federate(DATASET, assignment)

    @needs("mnist")
    @needs("qmnist_writers")
    def test_writers_of_qmnist(self):
        train, _ = load("qmnist", data_root())
        data = federate(train, natural("writer"))
        assert (data.num_clients, data.sizes.min(), data.sizes.max()) == (539, 19, 131)
        k = 100
        mine = train.keys["writer"] == data.client_ids[k]
        np.testing.assert_array_equal(
            data.examples["x"][data.offsets[k] : data.offsets[k + 1]], train.examples["x"][mine]
        )


class TestPytree:
    def test_leaves_are_examples_and_offsets(self):
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(self.data())]
        assert paths == [".examples['x']", ".examples['y']", ".offsets"]

    def test_what_describes_it_stays_on_the_host(self):
        data = jax.tree.map(lambda leaf: leaf, self.data())
        assert isinstance(data, FederatedData)
        assert data.num_clients == 3
        assert (data.client_ids, data.num_classes, data.name) == (None, None, None)

    def test_is_used_inside_jit(self):
        @jax.jit
        def first_rows(data):
            return data.examples["x"][data.offsets[:-1], 0], data.sizes

        rows, sizes = first_rows(self.data())
        assert rows.tolist() == [4, 0, 0]
        assert sizes.tolist() == [2, 0, 3]

    def test_equal_shapes_share_one_program(self):
        traces = []

        @jax.jit
        def total(data):
            traces.append(data)
            return jnp.sum(data.examples["y"])

        total(self.data())
        named = federate(
            from_arrays(DATASET.examples["x"], LABELS, num_classes=7, name="another"),
            Assignment.from_lists([[0], [1, 2, 3], [4]], ["a", "b", "c"]),
        )
        assert total(named) == LABELS[:5].sum()
        assert len(traces) == 1

    def test_place_keeps_what_describes_it(self):
        device = jax.devices()[0]
        data = self.data()
        for where in (device, jax.sharding.SingleDeviceSharding(device)):
            placed = data.place(where)
            assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(placed))
            assert placed.examples["x"].dtype == jnp.uint8
            assert placed.num_clients == 3
            assert (placed.name, placed.num_classes) == ("six", 3)
            assert placed.client_ids is data.client_ids
            assert str(placed.describe()) == str(data.describe())
            assert placed.pooled().offsets.tolist() == [0, 5]
        assert isinstance(data.offsets, np.ndarray)

    @staticmethod
    def data():
        return federate(DATASET, LISTS)


class TestSelect:
    def test_gathers_clients_in_the_order_given(self):
        data = federate(DATASET, Assignment.from_lists(LISTS, ["a", "b", "c"]))
        part = data.select(np.array([2, 1, 0]))
        assert part.examples["x"][:, 0].tolist() == [0, 2, 3, 4, 1]
        assert part.examples["y"].tolist() == [0, 2, 1, 0, 2]
        assert part.offsets.tolist() == [0, 3, 3, 5]
        assert part.offsets.dtype == np.int32
        assert part.client_ids.tolist() == ["c", "b", "a"]
        assert (part.num_classes, part.name) == (3, "six")

    def test_pads_with_zeros(self):
        part = federate(DATASET, LISTS).select(np.array([2]), 5)
        assert part.examples["x"][:, 0].tolist() == [0, 2, 3, 0, 0]
        assert part.examples["x"].dtype == np.uint8
        assert part.offsets.tolist() == [0, 3]
        assert part.describe().num_examples == 3

    def test_clients_may_be_empty(self):
        part = federate(DATASET, LISTS).select(np.array([1]))
        assert part.examples["x"].shape == (0, 1)
        assert part.offsets.tolist() == [0, 0]


class TestDescriptions:
    def test_label_histogram(self):
        histogram = federate(DATASET, LISTS).label_histogram()
        assert histogram.tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]

    def test_label_histogram_of_rows_with_several_labels(self):
        dataset = from_arrays(DATASET.examples["x"], np.stack([LABELS, LABELS * 0], axis=1))
        histogram = federate(dataset, LISTS).label_histogram()
        assert histogram.tolist() == [[3, 0, 1], [0, 0, 0], [4, 1, 1]]

    def test_describe(self):
        description = federate(DATASET, LISTS).describe()
        assert (description.num_clients, description.num_examples) == (3, 5)
        assert description.empty_clients == 1
        sizes = description.sizes
        assert (sizes.min, sizes.median, sizes.max) == (0, 2, 3)
        assert sizes.mean == pytest.approx(5 / 3)
        labels = description.labels_per_client
        assert (labels.min, labels.median, labels.max) == (2, 2.5, 3)
        assert description.label_counts.tolist() == [2, 1, 2]
        assert str(description) == (
            "six: 5 examples of 3 clients, 1 of them empty\n"
            "examples per client: min 0, median 2, mean 1.7, max 3\n"
            "labels per client: min 2, median 2.5, mean 2.5, max 3\n"
            "examples per label: 0: 2, 1: 1, 2: 2"
        )

    def test_many_labels_are_summarised(self):
        dataset = from_arrays(np.zeros((30, 1)), np.arange(30))
        text = str(federate(dataset, iid(num_clients=3)).describe())
        assert text.endswith("examples per label: 30 labels, min 1, median 1, mean 1.0, max 1")

    def test_agrees_with_the_histogram(self):
        labels = np.random.default_rng(0).integers(0, 10, 1000)
        data = federate(from_arrays(np.zeros((1000, 1)), labels), dirichlet(num_clients=50, alpha=0.1))
        histogram, description = data.label_histogram(), data.describe()
        np.testing.assert_array_equal(histogram.sum(1), data.sizes)
        np.testing.assert_array_equal(histogram.sum(0), description.label_counts)
        assert description.empty_clients == (histogram.sum(1) == 0).sum()
        assert description.labels_per_client.max == (histogram > 0).sum(1).max()

    def test_are_counted_piece_by_piece(self, monkeypatch):
        labels = np.random.default_rng(0).integers(0, 10, 1000)
        data = federate(from_arrays(np.zeros((1000, 1)), labels), dirichlet(num_clients=50, alpha=0.1))
        histogram, description = data.label_histogram(), str(data.describe())
        for rows in (1, 7, 400):
            monkeypatch.setattr("fedjax_sim.data.federated._PIECE_ROWS", rows)
            np.testing.assert_array_equal(data.label_histogram(), histogram)
            assert str(data.describe()) == description

    def test_pooled_has_one_client_with_all_rows(self):
        data = federate(DATASET, LISTS)
        pooled = data.pooled()
        assert pooled.num_clients == 1
        assert pooled.sizes.tolist() == [5]
        assert pooled.offsets.dtype == np.int32
        assert pooled.client_ids.tolist() == [0]
        np.testing.assert_array_equal(pooled.examples["x"], data.examples["x"])
        np.testing.assert_array_equal(pooled.label_histogram()[0], data.label_histogram().sum(0))

    @pytest.mark.parametrize("ask", [FederatedData.describe, FederatedData.label_histogram])
    def test_a_copy_that_lost_num_classes_says_so(self, ask):
        copy = jax.tree.map(np.asarray, federate(DATASET, LISTS))
        with pytest.raises(ValueError, match=r"num_classes is None, .*what federate returned"):
            ask(copy)
