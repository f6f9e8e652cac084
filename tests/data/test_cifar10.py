"""CIFAR-10's binary version: on small files in its layout, and on the real ones."""

import hashlib

import numpy as np
import pytest
from data_files import data_root, needs

from fedjax_sim.data import load
from fedjax_sim.data.sources.cifar import TEST_FILE, TRAIN_FILES

FOLDER = "cifar-10-batches-bin"


def records(labels, seed=0):
    """uint8 `[n, 3073]`."""
    labels = np.asarray(labels, np.uint8)
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return np.concatenate([labels[:, None], pixels], axis=1)


def write(folder):
    """Two images a file, all of other labels and pixels; returns what was written."""
    folder.mkdir(exist_ok=True)
    written = {}
    for i, name in enumerate((*TRAIN_FILES, TEST_FILE)):
        written[name] = records([i, 9 - i], seed=i)
        written[name].tofile(folder / name)
    return written


def test_the_files_in_order_in_a_folder_or_in_the_one_around_it(tmp_path):
    written = write(tmp_path / FOLDER)
    for folder in (tmp_path, tmp_path / FOLDER):
        train, test = load("cifar10", data_dir=folder)
        assert (train.name, test.name) == ("cifar10/train", "cifar10/test")
        assert (train.num_classes, test.num_classes) == (10, 10)
        assert train.examples["y"].tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
        assert test.examples["y"].tolist() == [5, 4]
        for dataset, rows in ((train, 10), (test, 2)):
            assert dataset.examples["x"].shape == (rows, 32, 32, 3)
            assert dataset.examples["x"].dtype == np.uint8
            assert dataset.examples["y"].dtype == np.int32
        for i, name in enumerate(TRAIN_FILES):
            first = written[name][0, 1:]
            np.testing.assert_array_equal(train.examples["x"][2 * i, 0, :, 0], first[:32])


def test_planes_of_red_green_and_blue_each_row_by_row(tmp_path):
    written = write(tmp_path)
    record = np.zeros(3073, np.uint8)
    for place, value in ((0, 3), (1 + 5, 10), (1 + 32 * 7, 20), (1 + 1024 + 31, 30), (3072, 40)):
        record[place] = value
    np.stack([record, written[TEST_FILE][0]]).tofile(tmp_path / TEST_FILE)
    _, test = load("cifar10", tmp_path)
    image = test.examples["x"][0]
    found = {tuple(map(int, place)): int(image[tuple(place)]) for place in np.argwhere(image)}
    assert found == {(0, 5, 0): 10, (7, 0, 0): 20, (0, 31, 1): 30, (31, 31, 2): 40}
    assert test.examples["y"][0] == 3


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_file_that_is_no_whole_number_of_images_is_refused(tmp_path, length):
    write(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(length))
    wanted = rf"data_batch_3\.bin holds {length:,} bytes; wanted 30,730,000, or .* multiple of the 3073"
    with pytest.raises(ValueError, match=wanted):
        load("cifar10", tmp_path)


def test_a_label_above_9_is_refused(tmp_path):
    write(tmp_path)
    records([3, 9, 10, 255]).tofile(tmp_path / TEST_FILE)
    with pytest.raises(ValueError, match=r"test_batch\.bin has label 10 at image 2; wanted 0 to 9"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_an_absent_file_is_named(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{name} is neither in data_dir .* put it there"):
        load("cifar10", tmp_path)


def test_data_dir_is_needed():
    with pytest.raises(ValueError, match=r"data_dir is None; .* holds data_batch_1\.bin"):
        load("cifar10")


@needs(FOLDER)
def test_the_real_files():
    train, test = load("cifar10", data_root() / FOLDER)
    assert train.examples["x"].shape == (50_000, 32, 32, 3)
    assert test.examples["x"].shape == (10_000, 32, 32, 3)
    assert np.bincount(train.examples["y"]).tolist() == [5000] * 10
    assert np.bincount(test.examples["y"]).tolist() == [1000] * 10
    assert train.examples["y"][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]  # a frog, two trucks, ...
    # The means by which everyone normalises the colours.
    means = train.examples["x"].mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
    # The published sum of a whole file, put back together.
    rows = slice(40_000, 50_000)
    planes = train.examples["x"][rows].transpose(0, 3, 1, 2).reshape(10_000, -1)
    labels = train.examples["y"][rows, None].astype(np.uint8)
    content = np.concatenate([labels, planes], axis=1).tobytes()
    assert hashlib.md5(content).hexdigest() == "53f37980c15c3d472c316c40844f3f0d"
