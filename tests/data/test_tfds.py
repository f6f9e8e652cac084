"""TensorFlow Datasets, for real: MNIST is prepared from its own files, without a network."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from data_files import data_root, needs

from fedjax_sim.data import load

_PACKAGES = ("tensorflow_datasets", "array_record", "PIL", "tensorflow", "importlib_resources")
_MISSING = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
needs_tfds = pytest.mark.skipif(
    bool(_MISSING), reason=f"needs {', '.join(_MISSING)}: pip install 'fedjax_sim[tfds]'"
)

# Run in a process of its own, so that what is imported shows and a package can be hidden.
_PROGRAM = """
import sys
from importlib.machinery import PathFinder
import numpy as np
hidden, data_dir, out = sys.argv[1:]
class Finder:
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Finder() if finder is PathFinder else finder for finder in sys.meta_path]
from fedjax_sim.data import load
train, test = load("tfds:mnist", data_dir)
print(train.name, test.name, train.num_classes)
print("tensorflow" in sys.modules)
if out:
    np.savez(out, train_x=train.examples["x"], train_y=train.examples["y"],
             test_x=test.examples["x"], test_y=test.examples["y"])
"""


def load_elsewhere(data_dir, hidden="", out=""):
    command = [sys.executable, "-c", _PROGRAM, hidden, str(data_dir), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder in which the first `load("tfds:mnist")` has prepared the set."""
    data_dir = tmp_path_factory.mktemp("tfds")
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)
    for file in (data_root() / "mnist").glob("*.gz"):
        (manual / file.name).symlink_to(file)
    done = load_elsewhere(data_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-4:] == ["tfds:mnist/train", "tfds:mnist/test", "10", "True"]
    return data_dir


def sorted_rows(x, y):
    """Rows of images and labels in an order of their own, since tfds shuffles."""
    rows = np.concatenate([x.reshape(len(x), -1), y[:, None].astype(np.uint8)], axis=1)
    return np.sort(rows.view(f"S{rows.shape[1]}").ravel())


@needs_tfds
@needs("mnist")
@pytest.mark.slow
class TestPrepared:
    def test_is_mnist_and_is_read_without_tensorflow(self, prepared, tmp_path):
        done = load_elsewhere(prepared, out=tmp_path / "read.npz")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == "False"
        with np.load(tmp_path / "read.npz") as read:
            for split, ours in zip(("train", "test"), load("mnist", data_root()), strict=True):
                x, y = read[f"{split}_x"], read[f"{split}_y"]
                assert (x.dtype, x.shape) == (np.uint8, ours.examples["x"].shape)
                assert y.dtype == np.int32
                np.testing.assert_array_equal(
                    sorted_rows(x, y), sorted_rows(ours.examples["x"], ours.examples["y"])
                )

    def test_is_read_where_tensorflow_is_not_installed(self, prepared):
        done = load_elsewhere(prepared, hidden="tensorflow")
        assert done.returncode == 0, done.stderr

    def test_names_the_extra_where_array_record_is_not_installed(self, prepared):
        done = load_elsewhere(prepared, hidden="array_record")
        assert "'tfds:mnist' needs a package that is not installed" in done.stderr
        assert "array_record" in done.stderr
        assert "pip install 'fedjax_sim[tfds]'" in done.stderr

    def test_validation_stands_in_for_an_absent_test_split(self, prepared, tmp_path):
        self.copy_with_splits(prepared, tmp_path, "train", "validation")
        train, validation = load("tfds:mnist", tmp_path)
        assert validation.name == "tfds:mnist/validation"
        assert len(train) == len(validation) == 10_000

    def test_refuses_a_set_without_test_and_validation(self, prepared, tmp_path):
        self.copy_with_splits(prepared, tmp_path, "train", "extra")
        wanted = r"has the splits \['extra', 'train'\]; wanted 'train' and either 'test' or"
        with pytest.raises(ValueError, match=wanted):
            load("tfds:mnist", tmp_path)

    def test_refuses_another_file_format(self, prepared, tmp_path):
        info = self.copy_with_splits(prepared, tmp_path, "train", "test")
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(ValueError, match="as tfrecord; wanted array_record: give another"):
            load("tfds:mnist", tmp_path)

    @staticmethod
    def copy_with_splits(prepared, data_dir, *splits):
        """Copies the prepared set with other splits, each of them MNIST's test digits."""
        folder = data_dir / "mnist" / "3.0.1"
        shutil.copytree(prepared / "mnist" / "3.0.1", folder)
        (records,) = folder.glob("mnist-test.array_record*")
        info = json.loads((folder / "dataset_info.json").read_text())
        (entry,) = [split for split in info["splits"] if split["name"] == "test"]
        for split in splits:
            if split != "test":
                shutil.copy(records, folder / records.name.replace("-test", f"-{split}"))
        info["splits"] = [entry | {"name": split} for split in splits]
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return folder / "dataset_info.json"


@needs_tfds
class TestUnprepared:
    def test_refuses_what_is_not_images_with_labels(self, tmp_path):
        wanted = r"'tfds:imdb_reviews' has the features .*'text'"
        with pytest.raises(ValueError, match=f"(?s){wanted}.*wanted 'image' of one fixed size"):
            load("tfds:imdb_reviews", tmp_path)

    def test_refuses_images_of_many_sizes(self, tmp_path):
        with pytest.raises(ValueError, match=r"(?s)None, None, 3.*wanted 'image' of one fixed"):
            load("tfds:cats_vs_dogs", tmp_path)

    def test_unknown_name(self, tmp_path):
        with pytest.raises(ValueError, match="mnits"):
            load("tfds:mnits", tmp_path)

    def test_names_the_extra_where_tfds_is_broken(self, tmp_path):
        done = load_elsewhere(tmp_path, hidden="promise")
        assert "No module named 'promise'" in done.stderr
        assert "tensorflow_datasets could not import one; see what it logged" in done.stderr

    def test_names_the_extra_where_tensorflow_is_needed_and_absent(self, tmp_path):
        done = load_elsewhere(tmp_path, hidden="tensorflow")
        assert "ImportError: 'tfds:mnist' needs a package that is not installed" in done.stderr
        assert "pip install 'fedjax_sim[tfds]'" in done.stderr


def test_names_the_extra_where_tfds_is_not_installed(tmp_path):
    done = load_elsewhere(tmp_path, hidden="tensorflow_datasets")
    assert done.returncode != 0
    assert "ImportError: 'tfds:mnist' needs a package that is not installed" in done.stderr
    assert "pip install 'fedjax_sim[tfds]'" in done.stderr
