"""Indices that no writer makes: whatever they say, they are refused, and the entry is named."""

import hashlib

import numpy as np
import pytest
from stored_files import add_entry, change_index, drop, replace_file, set_entry

from fedjax_sim.data import Assignment, federate, from_arrays, open_federated, save_federated

CURE = "restore the file, or write the data anew"


@pytest.fixture
def folder(tmp_path):
    dataset = from_arrays(np.arange(12, dtype=np.uint8).reshape(6, 2), np.array([0, 2, 2, 1, 0, 2]))
    ids = ["ann", "bob", "zoë"]
    data = federate(dataset, Assignment.from_lists([[4, 1], [], [0, 2, 3]], ids))
    save_federated(data, tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_entry("../../secret.npy"), r"files\['../../secret\.npy'\] is not a file of a federation"),
        (add_entry("/etc/passwd"), r"files\['/etc/passwd'\] is not a file"),
        (add_entry("column_../x.npy"), "is not a file of a federation"),
        (add_entry("column_x.npy/../y.npy"), "is not a file of a federation"),
        (add_entry("column_x\0.npy"), "is not a file of a federation"),
        (add_entry(""), "is not a file of a federation"),
        (add_entry("column_" + "z" * 300 + ".npy"), "is not a file of a federation"),
        (lambda i: i.update(files=[]), r"'files' is \[\], wanted an object"),
        (lambda i: i.update(files={}), "'files' has no 'offsets.npy'"),
        (lambda i: [i["files"].pop(f"column_{c}.npy") for c in "xy"], "'files' has no column"),
        (lambda i: i.pop("files"), "it has no 'files'"),
        (lambda i: i.pop("name"), "it has no 'name'"),
        (lambda i: i.update(more=1), "it has 'more', which is unknown"),
        (lambda i: i.update(name=3), "'name' is 3, wanted a string or null"),
        (lambda i: i.update(format=True), "'format' is True, wanted 2"),
        (lambda i: i.update(format=2.0), r"'format' is 2\.0, wanted 2"),
        (lambda i: i.update(label_names=None), "'label_names' is None, wanted as many strings as clas"),
        (lambda i: i.update(label_names=["a", "b"]), r"'label_names' is \['a', 'b'\]"),
        (lambda i: i.update(label_names=["a", "b", 3]), r"'label_names' is \['a', 'b', 3\]"),
        (lambda i: i.update(label_names=["a", "b", "a"]), r"'label_names' is \['a', 'b', 'a'\]"),
        (lambda i: i.update(label_names="abc"), "'label_names' is 'abc'"),
        (lambda i: i.update(num_classes=0), "'num_classes' is 0, wanted a positive integer or null"),
        (lambda i: i.update(num_classes=True), "'num_classes' is True"),
        (lambda i: i.update(num_classes=3.0), r"'num_classes' is 3\.0"),
        (lambda i: i.update(num_classes="3"), "'num_classes' is '3'"),
        (lambda i: i.update(num_classes=2**31), "'num_classes' is 2147483648"),
        (
            lambda i: i["files"].update({"column_y.npy": 5}),
            r"files\['column_y.npy'\] is 5, wanted an ob",
        ),
        (drop("column_y.npy", "bytes"), r"files\['column_y.npy'\] has no 'bytes'"),
        (drop("column_y.npy", "dtype"), "has no 'dtype'"),
        (drop("column_y.npy", "shape"), "has no 'shape'"),
        (drop("column_y.npy", "sha256"), "has no 'sha256'"),
        (set_entry("column_y.npy", more=1), "has 'more', which is unknown"),
        (set_entry("column_y.npy", bytes="148"), "has bytes '148', but <i4 of "),
        (set_entry("column_y.npy", bytes=148.0), r"has bytes 148\.0, but"),
        (set_entry("column_y.npy", bytes=0), r"has bytes 0, but <i4 of \[5\] takes 148"),
        (set_entry("column_y.npy", sha256="0"), "has sha256 '0', wanted 64 hexadecimal digits"),
        (set_entry("column_y.npy", sha256=None), "has sha256 None"),
        (set_entry("column_y.npy", dtype=4), "has dtype 4, wanted a full match"),
        (set_entry("column_y.npy", dtype="<U4"), "has dtype '<U4', wanted a full match"),
        (set_entry("column_y.npy", dtype="|O"), r"has dtype '\|O'"),
        (set_entry("column_y.npy", dtype=">i4"), "has dtype '>i4'"),
        (set_entry("column_y.npy", dtype="<i4,<i4"), "has dtype '<i4,<i4'"),
        (set_entry("column_y.npy", dtype="<c8"), "has dtype '<c8'"),
        (set_entry("column_y.npy", shape=5), "has shape 5, wanted a list of whole numbers"),
        (set_entry("column_y.npy", shape=[]), r"has shape \[\], wanted \[rows, \.\.\.\]"),
        (set_entry("column_y.npy", shape=[5.0]), r"has shape \[5\.0\]"),
        (set_entry("column_y.npy", shape=[True]), r"has shape \[True\]"),
        (set_entry("column_y.npy", shape=[-5]), r"has shape \[-5\]"),
        (set_entry("column_y.npy", shape=[5, 0]), r"has shape \[5, 0\], wanted .* a value in each row"),
        (set_entry("column_y.npy", shape=[1] * 100), r"has shape \[1, 1"),
        (set_entry("column_y.npy", shape=[2**62, 2**62]), "has bytes 148, but"),
        (set_entry("offsets.npy", dtype="<f4"), r"files\['offsets.npy'\] has dtype '<f4', wanted"),
        (set_entry("offsets.npy", dtype="<i8", shape=[2]), r"files\['offsets.npy'\] has dtype '<i8'"),
        (set_entry("offsets.npy", shape=[2, 2]), r"has shape \[2, 2\], wanted \[length\]"),
        (set_entry("client_ids.npy", dtype="<f4"), r"files\['client_ids.npy'\] has dtype '<f4'"),
        (set_entry("client_ids.npy", dtype="<U999999999"), "has dtype '<U999999999'"),
        (set_entry("client_ids.npy", shape=[3, 1]), r"has shape \[3, 1\], wanted \[length\]"),
    ],
)
def test_an_index_that_no_writer_makes_is_refused(folder, change, message):
    np.save(folder.parent / "secret.npy", np.arange(5, dtype=np.int32))
    change_index(folder, change)
    with pytest.raises(ValueError, match=rf"index\.json is damaged: .*{message}.*; {CURE}"):
        open_federated(folder)


NO_TEXT = np.array([[2**31, 65, 65]] * 3, np.uint32).view("<U3")[:, 0]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "offsets.npy",
            np.int32([0, 3, 2, 5]),
            r"offsets\.npy.* offsets fall from 3 to 2 at client 'bob'",
        ),
        ("offsets.npy", np.int32([0, -1, 2, 5]), r"offsets\.npy.* offsets fall from 0 to -1"),
        ("offsets.npy", np.int32([1, 2, 2, 5]), r"offsets\.npy.* offsets begin with 1; wanted 0"),
        (
            "offsets.npy",
            np.int32([0, 2, 2, 4]),
            r"column_x\.npy has 5 rows, but offsets\.npy ends with 4",
        ),
        (
            "offsets.npy",
            np.int32([0, 2, 2, 9]),
            r"column_x\.npy has 5 rows, but offsets\.npy ends with 9",
        ),
        ("offsets.npy", np.int32([0, 5]), r"client_ids\.npy: .*client_ids are <U3 .* for 1 clients"),
        ("offsets.npy", np.int32([]), r"offsets\.npy.* offsets are empty"),
        (
            "column_y.npy",
            np.zeros(4, np.int32),
            r"column_y\.npy has 4 rows, but offsets\.npy ends with 5",
        ),
        ("client_ids.npy", np.array(["ann"]), r"client_ids\.npy: .* for 3 clients; wanted one"),
        ("client_ids.npy", NO_TEXT, r"client_ids\.npy holds ids that are not text"),
        ("column_y.npy", np.array(["a"] * 5), r"index\.json .*column_y.* has dtype '<U1'"),
        ("column_y.npy", np.zeros(5, ">i4"), r"index\.json .*column_y.* has dtype '>i4'"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(folder, name, array, message):
    replace_file(folder, name, array)
    with pytest.raises(ValueError, match=rf"{message}.*{CURE}"):
        open_federated(folder)


def test_labels_out_of_range_are_refused_by_check(folder):
    replace_file(folder, "column_y.npy", np.int32([0, 2, 250, 1, 0]))
    with pytest.raises(ValueError, match="'y' holds 250 at row 2, row 0 of client 'zoë'; wanted labels"):
        open_federated(folder).check()


def test_nothing_is_unpickled(folder):
    array = np.array(["ann", "bob", None])
    np.save(folder / "client_ids.npy", array, allow_pickle=True)
    content = (folder / "client_ids.npy").read_bytes()
    about = {"dtype": "|O", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_index(folder, set_entry("client_ids.npy", **about))
    with pytest.raises(ValueError, match=r"has dtype '\|O'"):
        open_federated(folder)
