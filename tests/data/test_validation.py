"""A federation that cannot be trained on is refused: when it is built, or before a run looks at it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.data import FederatedData, federate, from_arrays, open_federated, save_federated
from fedjax_sim.data.storage import mapped

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2], np.int32)
OFFSETS = np.array([0, 2, 2, 6], np.int32)


def build(**changes):
    settings = {"examples": {"x": X.copy(), "y": Y.copy()}, "offsets": OFFSETS}
    settings |= {"client_ids": np.array(["ann", "bob", "zoe"]), "num_classes": 3, "name": "six"}
    return FederatedData(**settings | changes)


def with_value(column, place, value):
    data = build()
    values = data.examples[column]
    if not np.can_cast(np.min_scalar_type(value), values.dtype):
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    values[place] = value
    return build(examples=data.examples | {column: values})


class TestStructure:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"offsets": np.array([0, 4, 3, 6])}, "offsets fall from 4 to 3 at client 'bob'; wanted"),
            ({"offsets": np.array([0, 4, 3, 6], np.uint8)}, "offsets fall from 4 to 3 at client 'bob'"),
            ({"offsets": np.array([0, 3, -1, 6])}, "offsets fall from 3 to -1"),
            ({"offsets": np.array([1, 2, 2, 6])}, "offsets begin with 1; wanted 0, where the first"),
            ({"offsets": np.array([-1, 2, 2, 6])}, "offsets begin with -1; wanted 0"),
            (
                {"offsets": np.array([0, 2, 2, 9])},
                "offsets end with 9 and column 'x' has 6 rows",
            ),
            (
                {"offsets": np.array([0, 2, 2, 2**33])},
                "offsets end with 8589934592 .* at most 6",
            ),
            ({"offsets": OFFSETS[None]}, r"offsets are int32 of shape \[1, 4\]; wanted NumPy int32 \[N"),
            ({"offsets": OFFSETS * 1.0}, r"offsets are float64 of shape \[4\]"),
            ({"offsets": OFFSETS > 0}, r"offsets are bool of shape \[4\]"),
            ({"offsets": OFFSETS.astype(str)}, r"offsets are <U11 of shape \[4\]"),
            ({"offsets": [0, 2, 2, 6]}, "offsets are a list; wanted NumPy int32"),
            ({"offsets": OFFSETS[:0], "client_ids": None}, "offsets are empty; wanted 0"),
            ({"examples": {"x": X, "y": Y[:4]}}, "column 'y' has 4 rows and column 'x' has 6"),
            ({"examples": {"x": X.tolist(), "y": Y}}, "column 'x' is a list; wanted an array"),
            ({"examples": {"x": X[0, 0], "y": Y}}, "column 'x' is a float32; wanted an array"),
            ({"examples": {"x": X, "y": Y.astype(str)}}, "column 'y' holds <U11; wanted booleans, int"),
            ({"examples": {"x": X.astype(object)}}, "column 'x' holds object; wanted booleans"),
            ({"examples": {"x": X.astype(">f4")}}, "column 'x' holds >f4; wanted this machine"),
            ({"examples": {"x": X.astype(np.longdouble)}}, "column 'x' holds float128"),
            ({"examples": {}}, "examples are a dict; wanted a dict of one"),
            ({"examples": [X, Y]}, "examples are a list; wanted a dict of one"),
            ({"client_ids": np.array(["ann"])}, r"client_ids are <U3 of shape \[1\] for 3 clients"),
            (
                {"client_ids": np.zeros((3, 1))},
                r"client_ids are float64 of shape \[3, 1\] for 3 clients",
            ),
            ({"num_classes": 0}, "num_classes is 0; wanted an integer of at least 1"),
            ({"num_classes": True}, "num_classes is True"),
            ({"num_classes": 3.0}, r"num_classes is 3\.0"),
            ({"num_classes": "3"}, "num_classes is '3'"),
            ({"num_classes": 10**400}, "num_classes is 10000"),
        ],
    )
    def test_is_checked_by_the_constructor(self, changes, message):
        with pytest.raises(ValueError, match=f"^six: {message}"):
            build(**changes)

    def test_offsets_beyond_int32_are_refused_however_many_rows_there_are(self):
        many = np.broadcast_to(np.uint8(0), 2**31 + 1)  # takes no memory
        with pytest.raises(ValueError, match=r"offsets end with 2147483648 .* at most 2147483647"):
            FederatedData({"x": many}, np.array([0, 2**31]))

    @pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", ">i8", "uint64"])
    def test_integers_of_other_widths_become_int32(self, dtype):
        data = build(offsets=OFFSETS.astype(dtype))
        assert data.offsets.dtype == np.int32
        assert data.offsets.dtype.isnative
        assert data.sizes.tolist() == [2, 0, 4]

    def test_rows_of_nobody_columns_of_any_name_and_no_clients_are_fine(self):
        build(offsets=np.array([0, 2, 2, 4])).check()
        FederatedData({"z": X.astype(jnp.bfloat16), "b": X > 1}, OFFSETS).check()
        build().select(np.array([], int)).check()

    def test_what_jax_puts_in_place_of_arrays_passes(self):
        data = build()
        shapes = jax.eval_shape(lambda d: d, data)
        assert shapes.examples["y"].shape == (6,)
        axes = jax.tree.map(lambda _: 0, data)
        assert axes.offsets == 0
        stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), data)
        sums = jax.vmap(lambda d: d.examples["y"].sum() + d.offsets[-1], in_axes=(axes,))(stacked)
        assert sums.tolist() == [12, 12]
        rebuilt = jax.jit(lambda d: FederatedData(d.examples, d.offsets + 1))(data)
        assert rebuilt.offsets.tolist() == [1, 3, 3, 7]


class TestExamples:
    @pytest.mark.parametrize(
        ("column", "place", "value", "message"),
        [
            ("y", 4, -1, "'y' holds -1 at row 4, row 2 of client 'zoe'; wanted labels from 0 to 2: ren"),
            ("y", 0, 3, "'y' holds 3 at row 0, row 0 of client 'ann'; wanted labels from 0 to 2"),
            ("y", 5, 2**32, "'y' holds 4294967296 at row 5, row 3 of client 'zoe'"),
            (
                "x",
                (1, 1),
                np.nan,
                "'x' holds nan at row 1, row 1 of client 'ann'; wanted finite",
            ),
            ("x", (2, 0), np.inf, "'x' holds inf at row 2, row 0 of client 'zoe'; wanted finite"),
            ("x", (5, 1), -np.inf, "'x' holds -inf at row 5, row 3 of client 'zoe'; wanted finite"),
            ("x", (5, 1), 1e39, r"'x' holds 1e\+39 at row 5, .* wanted finite numbers that fit float32"),
        ],
    )
    def test_the_value_is_named(self, task, column, place, value, message, monkeypatch):
        data = with_value(column, place, value)
        for piece_bytes in (2**24, 1, 9):
            monkeypatch.setattr(mapped, "_PIECE_BYTES", piece_bytes)
            with pytest.raises(ValueError, match=rf"^six: column {message}"):
                data.check()

    def test_an_integer_that_devices_do_not_hold_is_named(self):
        wide = np.array([[0], [2**31], [2], [3], [4], [5]])
        with pytest.raises(ValueError, match=r"'w' holds 2147483648 at row 1, .* integers that fit"):
            build(examples={"x": X, "w": wide}).check()
        build(examples={"x": X, "w": wide.astype(np.uint32)}).check()

    def test_of_bfloat16_as_well(self):
        x = X.astype(jnp.bfloat16)
        x[3, 1] = np.nan
        with pytest.raises(ValueError, match="'x' holds nan at row 3, row 1 of client 2; wanted"):
            FederatedData({"x": x}, OFFSETS).check()

    def test_what_is_no_label_is_not_checked_as_one(self):
        build(examples={"x": X}).check()
        build(examples={"x": X, "y": Y * -1.5}).check()
        build(examples={"x": X, "y": Y - 9}, num_classes=None).check()
        with pytest.raises(ValueError, match="'y' holds nan at row 0"):
            build(examples={"x": X, "y": Y * np.nan}).check()

    def test_several_labels_to_a_row(self):
        y = np.stack([Y, Y], axis=1)
        y[3, 1] = 7
        with pytest.raises(ValueError, match="'y' holds 7 at row 3, row 1 of client 'zoe'"):
            build(examples={"x": X, "y": y}).check()

    def test_rows_that_nobody_owns_may_hold_anything(self):
        data = with_value("x", (5, 0), np.nan)
        build(examples=data.examples, offsets=np.array([0, 2, 2, 5])).check()

    def test_on_devices(self):
        placed = with_value("y", 4, 250).place(jax.devices()[0])
        with pytest.raises(ValueError, match="'y' holds 250 at row 4, row 2 of client 'zoe'"):
            placed.check()
        built = FederatedData(jax.device_put({"y": Y}), jax.device_put(OFFSETS[::-1].copy()))
        with pytest.raises(ValueError, match="offsets begin with 6"):
            built.check()

    @pytest.mark.parametrize("ask", [FederatedData.describe, FederatedData.label_histogram])
    def test_descriptions_name_a_label_out_of_range_or_say_that_there_are_none(self, ask, monkeypatch):
        monkeypatch.setattr("fedjax_sim.data.federated._PIECE_ROWS", 2)
        with pytest.raises(ValueError, match="'y' holds 3 at row 4, row 2 of client 'zoe'"):
            ask(with_value("y", 4, 3))
        for examples in ({"x": X}, {"x": X, "y": X[:, 0]}):
            with pytest.raises(ValueError, match="six has no column 'y' of integers"):
                ask(build(examples=examples))


class TestRuns:
    @pytest.fixture
    def bad(self, data):
        """The toys' federation, with one label out of range."""
        examples = {name: column.copy() for name, column in data.examples.items()}
        examples["y"][data.offsets[3]] = 250
        return FederatedData(examples, data.offsets, data.client_ids, data.num_classes, "toys")

    MESSAGE = r"^toys: column 'y' holds 250 at row \d+, row 0 of client 3; wanted labels from 0 to"

    @staticmethod
    def algorithm(task):
        return fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)

    def test_simulate_and_sweep_name_the_row_and_do_not_blame_the_rate(self, task, bad):
        with pytest.raises(ValueError, match=self.MESSAGE):
            fs.simulate(self.algorithm(task), bad, key=jax.random.key(0), num_rounds=1)
        with pytest.raises(ValueError, match=self.MESSAGE):
            fs.sweep(self.algorithm(task), bad, hparams={"client_lr": [0.1]}, seeds=[0], num_rounds=1)

    def test_stored_data_is_refused_when_it_is_opened_for_a_run(self, task, data, bad, tmp_path):
        save_federated(data, tmp_path)
        path = tmp_path / "column_y.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        stored = open_federated(tmp_path, verify=False)
        for placement in ("host", "device"):
            with pytest.raises(ValueError, match=r"column_y\.npy is not what was written"):
                fs.simulate(
                    self.algorithm(task),
                    stored,
                    key=jax.random.key(0),
                    num_rounds=1,
                    data_placement=placement,
                )


def test_datasets_give_columns_in_this_machines_byte_order():
    dataset = from_arrays(X.astype(">f4"), Y.astype(">i4"))
    data = federate(dataset, [[0, 1], [2]])
    assert data.examples["x"].dtype.isnative
    assert data.examples["x"].tolist() == X[:3].tolist()
    assert data.examples["y"].dtype.isnative


@pytest.mark.parametrize("num_classes", [2.5, True, "3", None])
def test_datasets_need_a_whole_number_of_classes(num_classes):
    with pytest.raises(ValueError, match=r"num_classes is .*; wanted an integer of at least 1"):
        fs.data.Dataset({"x": X, "y": Y}, num_classes=num_classes)


def test_toys_pass():
    toys.federation().check()
