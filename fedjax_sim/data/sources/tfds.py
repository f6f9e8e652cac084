"""Image classification sets from TensorFlow Datasets, https://www.tensorflow.org/datasets.

Sets already prepared as array_record are read without TensorFlow; only preparing needs it.
"""

import contextlib
import os

import numpy as np

from fedjax_sim.data.dataset import Dataset

_CHUNK = 4096  # decoded examples in flight; bounds memory next to the stacked result


def load_tfds(name: str, data_dir: str | os.PathLike | None) -> tuple[Dataset, Dataset]:
    """Loads the splits `train` and `test` (or `validation`, if there is no test split).

    Args:
      name: name that `tfds.builder` takes, such as `"mnist"` or `"emnist/letters"`.
      data_dir: folder of prepared sets, by default that of TensorFlow Datasets. A missing set is
        downloaded and prepared there.

    Raises:
      ImportError: a package needed for reading, or for preparing, is missing.
      ValueError: the set is unknown, does not consist of images of one size with one label each,
        lacks a split, or was prepared in a file format other than array_record.
    """
    try:
        return _load(name, data_dir)
    except ImportError as error:
        raise ImportError(
            f"'tfds:{name}' needs a package that is not installed ({error}); "
            "run: pip install 'fedjax_sim[tfds]'"
        ) from error


def _load(name: str, data_dir: str | os.PathLike | None) -> tuple[Dataset, Dataset]:
    import tensorflow_datasets as tfds

    # The package logs errors of its own imports and goes on as an empty module.
    if not hasattr(tfds, "builder"):
        raise ImportError("tensorflow_datasets could not import one; see what it logged")
    builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    _check_features(name, builder.info.features, tfds.features)
    if not builder.is_prepared():
        _prepare(builder)
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"'tfds:{name}' is stored in {builder.data_dir} as {builder.info.file_format.value}; "
            "wanted array_record: give another data_dir, or remove that folder to prepare it again."
        )
    test = next((split for split in ("test", "validation") if split in builder.info.splits), None)
    if "train" not in builder.info.splits or test is None:
        raise ValueError(
            f"'tfds:{name}' has the splits {sorted(builder.info.splits)}; wanted 'train' and "
            "either 'test' or 'validation': read it yourself and call from_arrays."
        )
    return _read(name, builder, "train"), _read(name, builder, test)


def _check_features(name: str, features, kinds) -> None:
    """Raises unless `features` are an image of fixed size and a class label."""
    columns = dict(features) if isinstance(features, kinds.FeaturesDict) else {}
    image, label = columns.get("image"), columns.get("label")
    if (
        isinstance(image, kinds.Image)
        and isinstance(label, kinds.ClassLabel)
        and None not in image.shape
    ):
        return
    raise ValueError(
        f"'tfds:{name}' has the features {features}; wanted 'image' of one fixed size and 'label' "
        "with class names: read it yourself and call from_arrays."
    )


def _prepare(builder) -> None:
    import tensorflow as tf

    # TensorFlow would otherwise reserve the accelerator's memory before JAX. It refuses once its
    # devices are in use; the caller has then made that choice already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    builder.download_and_prepare(file_format="array_record")


def _read(name: str, builder, split: str) -> Dataset:
    source = builder.as_data_source(split)
    image = builder.info.features["image"]
    x = np.empty((len(source), *image.shape), image.np_dtype)
    y = np.empty(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        for row, example in zip(rows, source.__getitems__(rows), strict=True):
            x[row] = example["image"]
            y[row] = example["label"]
    num_classes = builder.info.features["label"].num_classes
    return Dataset({"x": x, "y": y}, num_classes=num_classes, name=f"tfds:{name}/{split}")
