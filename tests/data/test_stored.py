"""Federations in folders: what comes back is what was saved, and damage is named before it is used."""

import json
import mmap

import numpy as np
import pytest

from fedjax_sim.data import Assignment, federate, from_arrays, mapped, open_federated, save_federated

LABELS = np.array([0, 2, 2, 1, 0, 2])
DATASET = from_arrays(np.arange(12, dtype=np.uint8).reshape(6, 2), LABELS, name="six")
ASSIGNMENT = Assignment.from_lists([[4, 1], [], [0, 2, 3]], ["ann", "bob", "zoë"])
CURE = "restore the file, or write the data anew"


@pytest.fixture
def data():
    return federate(DATASET, ASSIGNMENT)


@pytest.fixture
def folder(data, tmp_path):
    save_federated(data, tmp_path / "data")
    return tmp_path / "data"


def test_what_comes_back_is_what_was_saved(data, folder):
    stored = open_federated(folder)
    for name, column in data.examples.items():
        assert isinstance(stored.examples[name], np.memmap)
        assert stored.examples[name].dtype == column.dtype
        np.testing.assert_array_equal(stored.examples[name], column)
    np.testing.assert_array_equal(stored.offsets, data.offsets)
    assert not isinstance(stored.offsets, np.memmap)
    assert stored.offsets.dtype == np.int32
    assert stored.client_ids.tolist() == ["ann", "bob", "zoë"]
    assert (stored.num_classes, stored.name) == (3, "six")
    assert str(stored.describe()) == str(data.describe())
    np.testing.assert_array_equal(stored.label_histogram(), data.label_histogram())
    with pytest.raises(ValueError, match="read-only"):
        stored.examples["x"][0] = 1


def test_the_digest_is_the_same_piece_by_piece(data, folder, monkeypatch):
    expected = data.digest()
    assert open_federated(folder).digest() == expected
    for size in (1, 5, 8):
        monkeypatch.setattr(mapped, "_PIECE_BYTES", size)
        assert open_federated(folder).digest() == expected
        assert data.digest() == expected


def test_stored_data_can_be_stored_again_piece_by_piece(data, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fedjax_sim.data.stored._PIECE_ROWS", 2)
    save_federated(open_federated(folder), tmp_path / "copy")
    for file in folder.iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes()


def test_rows_that_nobody_owns_are_left_out(data, tmp_path):
    save_federated(data.select(np.array([2, 0]), 9), tmp_path)
    stored = open_federated(tmp_path)
    assert len(stored.examples["x"]) == 5
    assert stored.client_ids.tolist() == ["zoë", "ann"]


def test_what_describes_data_may_be_unknown(data, tmp_path):
    import jax

    save_federated(jax.tree.map(np.asarray, data), tmp_path)
    stored = open_federated(tmp_path)
    assert (stored.num_classes, stored.name) == (None, None)
    assert stored.client_ids.tolist() == [0, 1, 2]


def test_a_selection_of_stored_clients_is_in_memory(data, folder):
    part = open_federated(folder).select(np.array([2, 0]))
    assert type(part.examples["x"]) is np.ndarray
    expected = data.select(np.array([2, 0]))
    np.testing.assert_array_equal(part.examples["x"], expected.examples["x"])
    assert part.client_ids.tolist() == expected.client_ids.tolist()


def test_a_folder_that_holds_data_is_not_written_again(data, folder):
    with pytest.raises(ValueError, match="data holds a federation already; choose another folder"):
        save_federated(data, folder)


def test_what_a_killed_writer_left_is_written_over(data, folder):
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json is not there; give a folder that"):
        open_federated(folder)
    save_federated(data, folder)
    assert open_federated(folder).digest() == data.digest()


def test_a_writer_that_fails_leaves_no_index(data, tmp_path):
    data.examples["z"] = np.array([None] * 5)
    with pytest.raises(ValueError, match=r"column_z\.npy would hold objects; wanted booleans, num"):
        save_federated(data, tmp_path)
    assert not (tmp_path / "index.json").exists()
    data.examples["a/b"] = data.examples.pop("z")
    with pytest.raises(ValueError, match="rename it to letters and digits"):
        save_federated(data, tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("column_x.npy", lambda b: b[:-1], "column_x.npy shrank: it has 137 bytes, wanted 138; " + CURE),
        ("offsets.npy", lambda b: b"", "offsets.npy shrank: it has 0 bytes, wanted 144; " + CURE),
        ("client_ids.npy", lambda b: b + b"!", "client_ids.npy grew: it has 165 bytes, wanted 164"),
        (
            "column_y.npy",
            lambda b: b.replace(b"<i4", b"<f4"),
            "holds <f4 of shape .*wanted <i4 of shape",
        ),
        (
            "column_y.npy",
            lambda b: b.replace(b"(5,)", b"(4,)"),
            r"shape \[4\], wanted <i4 of shape \[5\]",
        ),
        ("column_y.npy", lambda b: b.replace(b"<i4", b"|O "), "column_y.npy cannot be mapped"),
        ("column_y.npy", lambda b: b"X" * len(b), "column_y.npy cannot be mapped"),
        ("index.json", lambda b: b[:40], r"index\.json is not JSON"),
        ("index.json", lambda b: b"[]", "not the index of a federation in format 1"),
        ("index.json", lambda b: b.replace(b'"format": 1', b'"format": 2'), "not the index of"),
        ("index.json", lambda b: b.replace(b"offsets.npy", b"offset.npy"), r"lists no offsets\.npy"),
        ("offsets.npy", lambda b: b[:-16] + b[-8:-4] * 4, "do not fit together"),
    ],
)
def test_damage_is_named(folder, name, damage, message):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        open_federated(folder)


def test_a_missing_file_is_named(folder):
    (folder / "column_y.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"column_y.npy is not there, but its index lists it"):
        open_federated(folder)


def test_nothing_is_unpickled(folder):
    path, index = folder / "client_ids.npy", json.loads((folder / "index.json").read_text())
    np.save(path, np.array(["ann", "bob", None]), allow_pickle=True)
    index["files"]["client_ids.npy"] |= {"dtype": "|O", "shape": [3], "bytes": path.stat().st_size}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"client_ids.npy cannot be mapped"):
        open_federated(folder)


@pytest.mark.parametrize(
    "use",
    [
        lambda data: data.select(np.array([2])),
        lambda data: data.digest(),
        lambda data: data.describe(),
        lambda data: data.check_files(),
    ],
    ids=["select", "digest", "describe", "check_files"],
)
def test_a_file_that_shrinks_later_is_an_error_and_no_signal(folder, use):
    stored = open_federated(folder)
    path = folder / "column_y.npy"
    with path.open("r+b") as file:
        file.truncate(140)
    with pytest.raises(ValueError, match=r"column_y\.npy shrank while .* it has 140 bytes, wanted 148"):
        use(stored)


def test_a_file_that_was_replaced_is_still_the_one_that_is_read(data, folder):
    stored = open_federated(folder)
    path = folder / "column_y.npy"
    path.unlink()
    path.write_bytes(b"")
    assert stored.digest() == data.digest()


def test_a_view_of_a_map_is_checked_and_a_copy_is_not(folder):
    x = open_federated(folder).examples["x"]
    with (folder / "column_x.npy").open("r+b") as file:
        file.truncate(10)
    mapped.check_length(np.memmap.__add__(x[:0], 1))
    mapped.check_length(np.asarray([1]))
    with pytest.raises(ValueError, match="it has 10 bytes, wanted 138"):
        mapped.check_length(x[1:, 0])


def test_maps_that_begin_later_in_a_file_are_measured_from_its_start(tmp_path):
    path = tmp_path / "raw"
    page = mmap.ALLOCATIONGRANULARITY
    path.write_bytes(bytes(2 * page))
    column = np.memmap(path, np.uint8, "r", offset=page + 5, shape=(7,))
    mapped.check_length(column)
    with path.open("r+b") as file:
        file.truncate(page + 11)
    with pytest.raises(ValueError, match=f"it has {page + 11} bytes, wanted {page + 12}"):
        mapped.check_length(column)


def test_pages_are_let_go_and_changes_kept(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(bytes(range(100)))
    read, private = (np.memmap(path, np.uint8, mode) for mode in ("r", "c"))
    private[0] = 77
    for column in (read, private):
        mapped.release(column)
    assert read[:3].tolist() == [0, 1, 2]
    assert private[:3].tolist() == [77, 1, 2]
