"""Changes to stored federations, after which their indices have the digests that they then must have."""

import hashlib
import json

import numpy as np


def change_index(folder, change):
    """Alters an index and gives it the digest that it then must have."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(signed(index)))


def signed(index):
    """An index with the digest that it must have."""
    rest = {key: value for key, value in index.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def set_entry(name, **changes):
    return lambda index: index["files"][name].update(changes)


def add_entry(name):
    return lambda index: index["files"].update({name: index["files"]["column_y.npy"]})


def drop(name, key):
    return lambda index: index["files"][name].pop(key)


def replace_file(folder, name, array):
    """Puts another array in place of a file, and into the index what it must then say."""
    np.save(folder / name, array)
    content = (folder / name).read_bytes()
    about = {"dtype": array.dtype.str, "shape": list(array.shape), "bytes": len(content)}
    change_index(folder, set_entry(name, **about, sha256=hashlib.sha256(content).hexdigest()))
