"""Stored federations that were damaged anywhere: they are refused, or come back as something valid."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from damage import altered, bounded, damaged, json_values, result_of
from hypothesis import given
from hypothesis import strategies as st
from stored_files import set_entry, signed

from fedjax_sim.data import Assignment, federate, from_arrays, open_federated, save_federated

pytestmark = pytest.mark.slow

HEADER = 128  # bytes of each file before its numbers
NAMES = ("offsets.npy", "client_ids.npy", "column_x.npy", "column_y.npy")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a stored federation: name -> content."""
    folder = tmp_path_factory.mktemp("stored")
    dataset = from_arrays(np.arange(12, dtype=np.float32).reshape(6, 2), [0, 2, 2, 1, 0, 2], name="six")
    ids = ["ann", "bob", "zoë"]
    data = federate(dataset, Assignment.from_lists([[4, 1], [], [0, 2, 3]], ids))
    save_federated(dataclasses.replace(data, label_names=("ant", "bee", "cat")), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def assert_opens_or_is_refused(folder):
    """What opens is a federation whose values can be looked at; `check` may still refuse them."""
    data = result_of(lambda: open_federated(folder), folder)
    lazy = result_of(lambda: open_federated(folder, verify=False), folder)
    if data is None:
        return None
    assert data.digest() == lazy.digest()
    assert data.sizes.sum() == len(data.examples[next(iter(data.examples))])
    assert len(data.client_ids) == data.num_clients
    data.client_ids.tolist()
    result_of(data.check, f"{data.name or 'data'}: column '")
    return data


def test_undamaged(tmp_path, files):
    write(tmp_path, files)
    assert open_federated(tmp_path).client_ids.tolist() == ["ann", "bob", "zoë"]


@given(data=st.data())
@bounded
def test_an_index_with_other_values_and_the_right_digest(tmp_path, files, data):
    write(tmp_path, files)
    index = data.draw(altered(json.loads(files["index.json"])) | json_values)
    content = signed(index) if isinstance(index, dict) else index
    (tmp_path / "index.json").write_text(json.dumps(content))
    assert_opens_or_is_refused(tmp_path)


@given(data=st.data())
@bounded
def test_damage_to_any_file_is_found(tmp_path, files, data):
    write(tmp_path, files)
    name = data.draw(st.sampled_from([*NAMES, "index.json"]))
    content = data.draw(damaged(files[name]))
    (tmp_path / name).write_bytes(content)
    opened = assert_opens_or_is_refused(tmp_path)
    if opened is not None:
        same = json.loads(content) == json.loads(files[name]) if name == "index.json" else None
        assert same or content == files[name]


@given(data=st.data())
@bounded
def test_damage_to_the_numbers_of_a_file_with_the_right_digest(tmp_path, files, data):
    name = data.draw(st.sampled_from(NAMES))
    header, numbers = files[name][:HEADER], files[name][HEADER:]
    content = header + data.draw(damaged(numbers))[: len(numbers)].ljust(len(numbers), b"\1")
    index = json.loads(files["index.json"])
    set_entry(name, sha256=hashlib.sha256(content).hexdigest())(index)
    write(tmp_path, files | {name: content, "index.json": json.dumps(signed(index)).encode()})
    assert_opens_or_is_refused(tmp_path)


@given(content=st.binary(max_size=100))
@bounded
def test_any_index(tmp_path, files, content):
    write(tmp_path, files | {"index.json": content})
    assert assert_opens_or_is_refused(tmp_path) is None
