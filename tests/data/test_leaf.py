"""LEAF's folders of JSON files: what they hold, and what is refused by name."""

import gzip
import json

import numpy as np
import pytest

from fedjax_sim.data import from_leaf

USERS = {
    "f1_07": {"x": [[0.0, 0.5], [1.0, 0.25]], "y": [3, 0]},
    "empty": {"x": [], "y": []},
    "f0_11": {"x": [[1, 1]], "y": [2]},
}


def whole(users):
    counts = [len(own["y"]) for own in users.values()]
    return {"users": list(users), "num_samples": counts, "user_data": users, "hierarchies": []}


def leaf(users=USERS):
    return json.dumps(whole(users)).encode()


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path):
    (tmp_path / "b.json").write_bytes(leaf())
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(leaf({"first": {"x": [[9, 9]], "y": [1]}})))
    (tmp_path / "notes.txt").write_text("not read")
    data = from_leaf(tmp_path, num_classes=62)
    assert data.client_ids.tolist() == ["first", "f1_07", "empty", "f0_11"]
    assert data.sizes.tolist() == [1, 2, 0, 1]
    # Numbers that JSON writes as integers are floats beside floats.
    assert data.examples["x"].dtype == np.float32
    assert data.examples["x"].tolist() == [[9, 9], [0, 0.5], [1, 0.25], [1, 1]]
    assert data.examples["y"].tolist() == [1, 3, 0, 2]
    assert (data.num_classes, data.name) == (62, "leaf")


def test_a_file_alone_integers_and_labels_that_are_strings(tmp_path):
    path = tmp_path / "one.json"
    path.write_bytes(leaf({"a": {"x": [[1, 2]], "y": ["cat"]}, "b": {"x": [[3, 4]], "y": ["ant"]}}))
    data = from_leaf(path, name="pets")
    assert data.examples["x"].dtype == np.int32
    assert (data.label_names, data.examples["y"].tolist(), data.name) == (("ant", "cat"), [1, 0], "pets")


def changed(**changes):
    return json.dumps(whole(USERS) | changes).encode()


def with_user(**changes):
    return changed(user_data=USERS | {"f1_07": USERS["f1_07"] | changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", r"f\.json is not JSON in UTF-8 \(.*\)\."),
        (
            b"[1]",
            r"f\.json has no list 'users'; wanted an object with users, num_samples, user_data, as LE",
        ),
        (
            changed(users=["f1_07", "f0_11"], num_samples=[2, 1]),
            "has user_data of 'empty', who is not among its users",
        ),
        (changed(users=["f1_07"]), "has 1 users and 3 num_samples"),
        (
            changed(num_samples=[2, 0, 2]),
            "user 'f0_11' has 2 in num_samples, 1 examples in x and 1 in y",
        ),
        (changed(num_samples=[2, False, 1]), "user 'empty' has False in num_samples"),
        (with_user(y=[3]), "user 'f1_07' has 2 in num_samples, 2 examples in x and 1 in y"),
        (with_user(y=None), "has no lists 'x' and 'y' in user_data of user 'f1_07'"),
        (with_user(x=[[1.0], [1.0, 2.0]]), "x or y of user 'f1_07' holds lists of different lengths"),
        (
            with_user(x=["how", "now"]),
            "x of user 'f1_07' does not hold numbers alone; for messages .* read",
        ),
        (with_user(x=[None, None]), "x of user 'f1_07' does not hold numbers alone"),
        (with_user(x=[[1.0], [2.0]]), "examples of client 'f0_11' are .* those of client 'f1_07'"),
        (with_user(y=[0, -1]), "'y' holds -1 at row 1, row 1 of client 'f1_07'"),
        (with_user(x=[[0.0, float("nan")]] * 2), r"f\.json is not JSON in UTF-8 \(NaN is not JSON\)"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        from_leaf(path)
    assert str(path) in str(refused.value)


def test_a_user_in_two_files_is_refused(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_bytes(leaf())
    with pytest.raises(ValueError, match=r"b\.json has user 'f1_07', whom .*a\.json has as well"):
        from_leaf(tmp_path)


def test_folders_without_files_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"is neither a file nor a folder with one ending in .json, "
    ):
        from_leaf(tmp_path / "absent")
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "all_data_0.json").write_bytes(leaf())
    with pytest.raises(
        FileNotFoundError, match="its subfolders test, train have some: give one of them"
    ):
        from_leaf(tmp_path)
    with pytest.raises(ValueError, match="wanted at most max_unpacked_bytes, 10"):
        from_leaf(tmp_path / "train", max_unpacked_bytes=10)
