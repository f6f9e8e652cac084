"""Federations from clients' own arrays: what they hold, how they divide, how they print."""

import jax
import numpy as np
import pandas
import pytest

import fedjax_sim as fs


def person(n, seed=0, labels=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)), rng.integers(0, labels, n)


CLIENTS = {"ann": person(5), "bob": ([], []), "cy": person(3, 1), "di": person(1, 2), "ed": person(8, 3)}


def test_pairs_become_columns_in_the_order_of_the_clients():
    data = fs.data.from_clients(CLIENTS, num_classes=3, name="people")
    assert data.client_ids.tolist() == list(CLIENTS)
    assert data.sizes.tolist() == [5, 0, 3, 1, 8]
    assert (data.num_classes, data.name, data.label_names) == (3, "people", None)
    assert (data.examples["x"].dtype, data.examples["y"].dtype) == (np.float32, np.int32)
    for k, (x, y) in enumerate(CLIENTS.values()):
        np.testing.assert_allclose(data[k]["x"], np.reshape(x, (-1, 4)), rtol=1e-6)
        np.testing.assert_array_equal(data[k]["y"], y)


def test_a_run_takes_them():
    data = fs.data.from_clients(CLIENTS, num_classes=3)
    task = fs.models.classifier(fs.models.MLP((3,)), (4,))
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    result = fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=1, clients_per_round=5)
    assert result.rows[-1]["examples"] == 17


def test_columns_of_any_name_and_integers_as_ids():
    columns = {7: {"tokens": np.ones((2, 3), np.int64)}, 4: {"tokens": np.zeros((1, 3), np.uint8)}}
    data = fs.data.from_clients(columns)
    assert data.client_ids.tolist() == [7, 4]
    assert data.examples["tokens"].dtype == np.int32
    assert data.num_classes is None


def test_labels_that_are_strings_are_numbered_by_name():
    clients = {0: (np.zeros((2, 1)), ["dog", "cat"]), 1: (np.zeros((1, 1)), np.array(["emu"], object))}
    data = fs.data.from_clients(clients)
    assert data.label_names == ("cat", "dog", "emu")
    assert data.examples["y"].tolist() == [1, 0, 2]
    assert data.describe().label_counts.tolist() == [1, 1, 1]
    assert fs.data.split(data, test=0.5)[0].label_names == data.label_names
    later = fs.data.from_clients({5: (np.zeros((1, 1)), ["emu"])}, label_names=data.label_names)
    assert (later.examples["y"].tolist(), later.num_classes) == ([2], 3)
    with pytest.raises(ValueError, match=r"the label 'fox' is not among label_names, \('cat', 'dog'"):
        fs.data.from_clients({5: (np.zeros((1, 1)), ["fox"])}, label_names=data.label_names)


def test_labels_that_are_integers_may_have_names():
    named = fs.data.from_clients({5: ([[0.0], [1.0]], [1, 0])}, label_names=["off", "on", "broken"])
    assert (named.label_names, named.num_classes) == (("off", "on", "broken"), 3)
    assert named.examples["y"].tolist() == [1, 0]
    with pytest.raises(
        ValueError, match="'y' holds 3 at row 0, row 0 of client 5; wanted labels from 0"
    ):
        fs.data.from_clients({5: ([[0.0]], [3])}, label_names=["off", "on", "broken"])
    with pytest.raises(ValueError, match="label_names is given, but 'y' holds float64; wanted strings"):
        fs.data.from_clients({5: ([[0.0]], [0.5])}, label_names=("a", "b"))
    with pytest.raises(ValueError, match="label_names is given, but there is no column 'y'"):
        fs.data.from_clients({5: {"x": [0.0]}}, label_names=("a", "b"))


class Tensor:
    """Stands in for a torch tensor: NumPy makes an array of it, unless it has gradients."""

    def __init__(self, values, error=None):
        self.values, self.error = values, error

    def __array__(self, dtype=None, copy=None):
        if self.error is not None:
            raise self.error
        return np.asarray(self.values, dtype)


def test_columns_of_other_libraries_are_read():
    x, y = person(4)
    of_pandas = pandas.DataFrame(x), pandas.Series(["a", "b", "a", "a"])
    data = fs.data.from_clients({0: of_pandas, 1: (Tensor(x), pandas.Categorical(["b"] * 4))})
    assert (data.label_names, data.examples["y"].tolist()) == (("a", "b"), [0, 1, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(data[0]["x"], data[1]["x"])
    for error in (RuntimeError("requires grad"), TypeError("not on the CPU")):
        wanted = (
            rf"column 'x' of client 'a' is a Tensor, of which .* \({error}\).* \.detach\(\)\.cpu\(\)"
        )
        with pytest.raises(ValueError, match=wanted):
            fs.data.from_clients({"a": (Tensor(x, error), y)})
    with pytest.raises(ValueError, match="column 'y' of client 0 is object, masked or ragged"):
        fs.data.from_clients({0: (x, pandas.Series(["a", None, "b", "a"]))})


def test_a_client_alone_is_a_federation():
    data = fs.data.from_clients({"only": person(8)}, num_classes=3)
    train, held_out = fs.data.split(data, test=0.25)
    assert (train.sizes.tolist(), held_out.sizes.tolist()) == ([6], [2])
    task = fs.models.classifier(fs.models.MLP((3,)), (4,))
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    result = fs.simulate(algorithm, train, key=jax.random.key(0), num_rounds=1)
    assert result.rows[-1]["examples"] == 6


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([person(2)], r"clients is list; wanted a dict .* write dict\(enumerate\(clients\)\)"),
        ({}, "clients is an empty dict"),
        ({"a": ([], [])}, "none of the 1 clients has an example"),
        (
            {"a": person(2), 3: person(2)},
            "a client's id is 3; wanted integers of 64 bits alone, or strings alone",
        ),
        ({"a": np.ones((2, 3))}, r"client 'a' is a ndarray; wanted a pair \(x, y\)"),
        ({"a": (np.ones((2, 3)), [1])}, r"client 'a' has columns of lengths {'x': 2, 'y': 1}"),
        ({"a": (np.ones((2, 3)), 1)}, r"client 'a' has columns of lengths {'x': 2, 'y': None}"),
        ({"a": person(2), "b": (np.ones((1, 5)), [0])}, "examples of client 'b' are .* of client 'a'"),
        ({"a": person(2), "b": {"x": np.ones((1, 4))}}, "wanted the same columns, kinds and shapes"),
        ({"a": person(2), "b": (np.ones((1, 4)), [0.5])}, "examples of client 'b' are .*'floats'"),
        ({"a": (np.array([[1.0], [np.nan]]), [0, 1])}, "'x' holds nan at row 1, row 1 of client 'a'"),
        ({"a": ([[1.0]], [-1])}, "'y' holds -1 at row 0, row 0 of client 'a'"),
        ({"a": ([[2**40]], [0])}, "'x' holds 1099511627776 .* client 'a'; wanted integers that fit"),
        ({"a": ([[1.0]], [None])}, "column 'y' of client 'a' is object, masked or ragged; wanted"),
        ({"a": ([[1.0], [1.0, 2.0]], [0, 1])}, "column 'x' of client 'a' is object, masked or ragged"),
        ({"a": ([[1j]], [0])}, "column 'x' of client 'a' is complex128"),
        ({2**63: person(2)}, "a client's id is 9223372036854775808; wanted integers of 64 bits"),
        ({"a": person(2), "b": (np.ones((1, 4)), np.ones(1, np.uint64))}, "'unsigned integers of 64"),
    ],
)
def test_bad_clients_are_refused_by_name(clients, message):
    with pytest.raises(ValueError, match=message):
        fs.data.from_clients(clients)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_split_divides_each_client(share):
    data = fs.data.from_clients(CLIENTS, num_classes=3)
    train, test = fs.data.split(data, test=share, seed=1)
    assert train.client_ids.tolist() == test.client_ids.tolist() == list(CLIENTS)
    expected = [min(int(share * n + 0.5), max(n - 1, 0)) for n in data.sizes]
    assert test.sizes.tolist() == expected
    for k in range(5):
        both = np.concatenate([train[k]["x"], test[k]["x"]])
        np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(data[k]["x"], axis=0))
        rows = data[k]["x"].tolist()
        for part in (train, test):
            places = [rows.index(row) for row in part[k]["x"].tolist()]
            assert places == sorted(places)


def test_a_split_repeats_with_its_seed_alone():
    data = fs.data.from_clients({k: person(20, k) for k in range(10)})
    chosen = [fs.data.split(data, seed=seed)[1].examples["x"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert (chosen[0] != chosen[2]).any()


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    data = fs.data.from_clients(CLIENTS, num_classes=3)
    with pytest.raises(ValueError, match="wanted a share between 0 and 1"):
        fs.data.split(data, test=share)
    with pytest.raises(ValueError, match="leaves no example to test on: the largest client has 8"):
        fs.data.split(data, test=0.01)


def test_clients_are_counted_taken_and_walked_through():
    data = fs.data.from_clients(CLIENTS, num_classes=3)
    assert len(data) == 5
    assert [len(own["y"]) for own in data] == [5, 0, 3, 1, 8]
    np.testing.assert_array_equal(data[-1]["y"], data[4]["y"])
    for k in (5, -6):
        with pytest.raises(IndexError, match=f"there is no client {k}; wanted 0 to 4"):
            data[k]

    for strange in ("ann", slice(0, 2), True, 1.0):
        with pytest.raises(TypeError, match="wanted a position from 0 to 4: ids are in client_ids"):
            data[strange]


def test_labels_that_no_classifier_reads_are_refused():
    task = fs.models.classifier(fs.models.MLP((3,)), (4,))
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    halves = fs.data.from_clients({0: (np.ones((2, 4)), [0.0, 1.0])})
    with pytest.raises(ValueError, match="column 'y' holds float32; wanted integer labels"):
        fs.simulate(algorithm, halves, key=jax.random.key(0), num_rounds=1)
    with pytest.raises(ValueError, match="has no column 'y' of integers"):
        halves.describe()
    flags = fs.data.from_clients({0: (np.ones((2, 4)), [True, False])})
    assert (flags.examples["y"].dtype, flags.num_classes) == (np.int32, 2)


def test_a_federation_says_what_it_is_in_one_line():
    data = fs.data.from_clients(CLIENTS, num_classes=3, name="people")
    assert repr(data) == "<people: 5 clients, 17 examples of x float32[4], y int32[], 3 classes>"
    assert repr(jax.tree.map(lambda leaf: None, data)).startswith("<data: {'x': None")
    assert "2 clients, 5 examples" in repr(data.select(np.array([0, 1]), num_rows=9))
