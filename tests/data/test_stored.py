"""Federations in folders: what comes back is what was saved, and damage is named before it is used."""

import dataclasses
import hashlib
import json
import mmap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.data import (
    Assignment,
    FederatedData,
    federate,
    from_arrays,
    open_federated,
    save_federated,
)
from fedjax_sim.data.storage import mapped
from fedjax_sim.data.storage.stored import write_federated

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
    monkeypatch.setattr("fedjax_sim.data.storage.stored._PIECE_ROWS", 2)
    save_federated(open_federated(folder), tmp_path / "copy")
    for file in folder.iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes()


def test_names_of_labels_come_back(data, folder, tmp_path):
    names = ("ant", "bee", "\ud800 zoë")
    save_federated(dataclasses.replace(data, label_names=names), tmp_path / "named")
    stored = open_federated(tmp_path / "named")
    assert stored.label_names == names
    assert "ant: 2, bee: 1" in str(stored.describe())
    assert stored.digest() == data.digest()
    without = json.loads((folder / "index.json").read_text())
    assert "label_names" not in without  # the file is what earlier versions wrote
    save_federated(stored, tmp_path / "again")
    assert open_federated(tmp_path / "again").label_names == names


def test_an_index_too_long_to_read_is_not_written(data, tmp_path):
    names = tuple(f"{k:0>400000}" for k in range(3))
    with pytest.raises(ValueError, match=r"index\.json would have 1,20\d,\d+ bytes; .* labels"):
        save_federated(dataclasses.replace(data, label_names=names), tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abc", "label_names are 'abc'; wanted a sequence of strings"),
        (("a", "b", 3), r"label_names are \('a', 'b', 3\); wanted a sequence of strings"),
        (("a", "b", "a"), "the name 'a' stands 2 times in label_names"),
        (("a", "b"), "there are 2 label_names for 3 classes; wanted one for each"),
    ],
)
def test_names_that_do_not_tell_labels_apart_are_refused(data, names, message):
    with pytest.raises(ValueError, match=f"six: {message}"):
        dataclasses.replace(data, label_names=names)


def test_rows_that_nobody_owns_are_left_out(data, tmp_path):
    save_federated(data.select(np.array([2, 0]), 9), tmp_path)
    stored = open_federated(tmp_path)
    assert len(stored.examples["x"]) == 5
    assert stored.client_ids.tolist() == ["zoë", "ann"]


def test_what_describes_data_may_be_unknown(data, tmp_path):
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
    with pytest.raises(ValueError, match="data already holds a federation; choose another folder"):
        save_federated(data, folder)


def test_what_a_killed_writer_left_is_written_over(data, folder):
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json is not there; give a folder that"):
        open_federated(folder)
    save_federated(data, folder)
    assert open_federated(folder).digest() == data.digest()


def test_a_writer_that_fails_leaves_no_index(data, tmp_path):
    data.examples["z"] = np.array([None] * 5)
    with pytest.raises(ValueError, match="column 'z' holds object; wanted booleans, integers or floats"):
        save_federated(data, tmp_path)
    data.examples["z"] = np.ones(5, jnp.bfloat16)
    with pytest.raises(
        ValueError, match=r"column_z\.npy would hold bfloat16 \(\); wanted booleans or num"
    ):
        save_federated(data, tmp_path)
    data.examples["z"] = np.ones((5, 0))
    with pytest.raises(ValueError, match=r"column_z\.npy would hold float64 \(0,\); wanted .* each row"):
        save_federated(data, tmp_path)
    data.examples["a/b"] = data.examples.pop("z")
    with pytest.raises(ValueError, match="rename it to letters and digits"):
        save_federated(data, tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_pieces_that_are_not_as_many_rows_as_announced_leave_no_index(tmp_path):
    pieces = [{"y": np.zeros(2, np.int32)}]
    with pytest.raises(ValueError, match=r"column_y\.npy got 2 rows; wanted 3"):
        write_federated(
            tmp_path, pieces, np.array([0, 3], np.int32), np.arange(1), num_classes=1, name=None
        )
    assert not (tmp_path / "index.json").exists()


def test_bad_data_is_not_stored(data, tmp_path):
    data.examples["y"][3] = -1
    with pytest.raises(ValueError, match="six: column 'y' holds -1 at row 3, row 1 of client 'zoë'"):
        save_federated(data, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "c\0"], r"client id 'c\\x00' has 2 characters; .* the last not a NUL"),
        (["a", "b" * 257, "c"], "client id 'bbb.* has 257 characters; wanted at most 256"),
        (["a", None, "c"], r"client_ids\.npy would hold object \(\); wanted integers or strings"),
        ([1.5, 2.0, 3.0], r"client_ids\.npy would hold float64 \(\); wanted integers or strings"),
    ],
)
def test_ids_that_would_come_back_different_are_not_stored(data, tmp_path, ids, message):
    ids = np.array(ids, object if isinstance(ids[0], str) else None)
    with pytest.raises(ValueError, match=message):
        save_federated(dataclasses.replace(data, client_ids=ids), tmp_path)


def test_ids_that_are_objects_are_stored_as_strings(data, tmp_path):
    ids = np.array(["é", "", "b" * 256], object)
    save_federated(dataclasses.replace(data, client_ids=ids), tmp_path)
    assert open_federated(tmp_path).client_ids.tolist() == ids.tolist()


def test_files_are_numpys_and_their_digests_those_of_other_tools(data, folder):
    np.testing.assert_array_equal(np.load(folder / "column_x.npy"), data.examples["x"])
    assert np.load(folder / "client_ids.npy").tolist() == data.client_ids.tolist()
    for name, entry in json.loads((folder / "index.json").read_text())["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]


def test_an_empty_federation_comes_back(tmp_path):
    save_federated(FederatedData({"x": np.zeros((0, 2), np.float32)}, np.zeros(3, np.int32)), tmp_path)
    stored = open_federated(tmp_path)
    assert stored.examples["x"].shape == (0, 2)
    assert stored.sizes.tolist() == [0, 0]
    assert stored.digest() == stored.in_memory().digest()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("column_x.npy", lambda b: b[:-1], "column_x.npy shrank: it has 137 bytes, wanted 138; " + CURE),
        ("offsets.npy", lambda b: b"", "offsets.npy shrank: it has 0 bytes, wanted 144; " + CURE),
        ("client_ids.npy", lambda b: b + b"!", "client_ids.npy grew: it has 165 bytes, wanted 164"),
        ("column_y.npy", lambda b: b.replace(b"<i4", b"<f4"), "column_y.npy does not begin as a .*<i4"),
        ("column_y.npy", lambda b: b.replace(b"(5,)", b"(4,)"), r"does not begin .*of shape \[5\]; "),
        ("column_y.npy", lambda b: b.replace(b"<i4", b"|O "), "does not begin as a"),
        ("column_y.npy", lambda b: b"X" * len(b), "does not begin as a"),
        ("index.json", lambda b: b[:40], r"index\.json is not JSON"),
        ("index.json", lambda b: b"[]", r"index\.json is damaged: it holds \[\], wanted an object"),
        ("index.json", lambda b: b.replace(b'"format": 2', b'"format": 1'), "'format' is 1, wanted 2"),
        (
            "index.json",
            lambda b: b.replace(b"offsets.npy", b"offset.npy"),
            "'sha256' is .* its content's",
        ),
        (
            "index.json",
            lambda b: b.replace(b'"num_classes": 3', b'"num_classes": 7'),
            "'sha256' is .* t",
        ),
        ("index.json", lambda b: b.replace(b"six", b"s\xffx"), r"not JSON \('utf-8' codec can't decode"),
        ("index.json", lambda b: b.replace(b": 3", b": NaN"), r"not JSON \(NaN is not JSON"),
        ("index.json", lambda b: b"[" * 10**5, "not JSON .it is nested too deeply"),
        ("index.json", lambda b: b'{"a":' * 10**5, "not JSON .it is nested too deeply"),
        ("index.json", lambda b: b.replace(b'"name"', b'"format"'), "the key 'format' occurs twice"),
        ("index.json", lambda b: b + b" " * 2**20, "more than 1048576 bytes, too many for an"),
    ],
)
def test_damage_is_named(folder, name, damage, message):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    for verify in (True, False):
        with pytest.raises(ValueError, match=message):
            open_federated(folder, verify=verify)


@pytest.mark.parametrize("name", ["offsets.npy", "client_ids.npy", "column_x.npy", "column_y.npy"])
@pytest.mark.parametrize("place", [0, 60, 128, -1])
def test_one_flipped_bit_is_found_and_its_file_named(folder, name, place):
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (is not what was written|does not begin)"):
        open_federated(folder)


@pytest.mark.parametrize(
    "use",
    [
        lambda data, _: data.check(),
        lambda data, _: data.digest(),
        lambda data, _: data.in_memory(),
        lambda data, _: data.place(jax.devices()[0]),
        lambda data, folder: save_federated(data, folder / "copy"),
    ],
    ids=["check", "digest", "in_memory", "place", "save_federated"],
)
def test_a_column_that_was_not_verified_is_before_it_is_used(folder, use):
    content = bytearray((folder / "column_x.npy").read_bytes())
    content[-1] ^= 1
    (folder / "column_x.npy").write_bytes(content)
    stored = open_federated(folder, verify=False)
    assert len(stored.select(np.array([0])).examples["x"]) == 2
    with pytest.raises(
        ValueError, match=r"column_x\.npy is not what was written: its SHA-256 is .*; res"
    ):
        use(stored, folder)
    assert not (folder / "copy").exists()


def test_a_column_is_read_for_its_digest_once(folder, monkeypatch):
    digested = []
    monkeypatch.setattr(mapped, "pieces", spy(mapped.pieces, digested))
    for opened in (open_federated(folder), open_federated(folder, verify=False)):
        opened.check()
        digested.clear()
        opened.check()
        opened.digest()
        opened.place(jax.devices()[0])
        # Labels are looked at in each check; that reads no other column of whole numbers.
        assert digested == [np.dtype(np.int32)]


def spy(pieces, seen):
    def watched(column):
        seen.extend([column.dtype] * (column.dtype.itemsize > 1))
        return pieces(column)

    return watched


def test_links_may_not_lead_outside(folder, tmp_path):
    path = folder / "column_y.npy"
    path.rename(tmp_path / "secret.npy")
    path.symlink_to("../secret.npy")
    with pytest.raises(
        ValueError, match=r"column_y\.npy is a link to .*secret\.npy, outside of its folder"
    ):
        open_federated(folder)
    (tmp_path / "alias").symlink_to(folder)
    path.unlink()
    (tmp_path / "secret.npy").rename(folder / "y.npy")
    path.symlink_to("y.npy")
    assert open_federated(tmp_path / "alias").examples["y"].shape == (5,)


def test_a_missing_file_is_named(folder):
    (folder / "column_y.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"column_y.npy is not there, but its index lists it"):
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
