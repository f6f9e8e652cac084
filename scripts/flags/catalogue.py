"""Kinds of data sets, and the models and partitions that suit them, known before any data is read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import fedjax_sim as fs

# Kinds of examples.
_IMAGES, _NUMBERS, _CHARACTERS, _WORDS = "images", "numbers", "characters", "words"
_TFDS = "tfds:<name>"
_DATASETS = {
    "mnist5k": _IMAGES,
    "mnist": _IMAGES,
    "qmnist": _IMAGES,
    "fashion_mnist": _IMAGES,
    "emnist/balanced": _IMAGES,
    "emnist/byclass": _IMAGES,
    "emnist/bymerge": _IMAGES,
    "emnist/digits": _IMAGES,
    "emnist/letters": _IMAGES,
    "emnist/mnist": _IMAGES,
    "cifar10": _IMAGES,
    _TFDS: _IMAGES,
    "shakespeare": _CHARACTERS,
    "messages": _WORDS,
    "synthetic": _WORDS,
    "graphical_model": _NUMBERS,
    "stored": None,  # whatever was stored
}
WITH_CLIENTS = ("synthetic", "graphical_model", "stored")  # no partition applies to them
# The column that names whom an example belongs to.
OWNERS = {"qmnist": "writer", "shakespeare": "role", "messages": "author"}


class _Model(NamedTuple):
    """A model that --model names.

    Attributes:
      make: function from the number of classes and the shape of an example to a task.
      reads: kinds of examples it can read; models of symbols fix their padding symbol.
    """

    make: Callable[[int, tuple[int, ...]], fs.Task]
    reads: tuple[str, ...]


MODELS = {
    "2nn": _Model(fs.models.mnist_2nn, (_IMAGES, _NUMBERS)),
    "cnn": _Model(fs.models.mnist_cnn, (_IMAGES,)),
    "dropout_cnn": _Model(fs.models.dropout_cnn, (_IMAGES,)),
    "logistic": _Model(fs.models.logistic_regression, (_IMAGES, _NUMBERS)),
    "cifar": _Model(fs.models.cifar_cnn, (_IMAGES,)),
    "char_lstm": _Model(lambda symbols, shape: fs.models.char_lstm(symbols, shape[0]), (_CHARACTERS,)),
    "word_lstm": _Model(lambda symbols, shape: fs.models.word_lstm(symbols, shape[0]), (_WORDS,)),
    "small_word_lstm": _Model(
        lambda symbols, shape: fs.models.language_model(
            fs.models.StackedLSTM(symbols, embedding=16, units=32, layers=1),
            shape[0],
            padding=0,
            unknown=1,
        ),
        (_WORDS,),
    ),
}


def check_dataset(dataset: str) -> None:
    """Checks the name of a data set.

    Raises:
      ValueError: the data set is unknown.
    """
    is_tfds = dataset.startswith("tfds:") and dataset != "tfds:"
    fs.checks.choose("dataset", _TFDS if is_tfds else dataset, _DATASETS)


def check_model(model: str, dataset: str) -> None:
    """Checks that a model can read the examples of a data set.

    Raises:
      ValueError: the model cannot.
    """
    examples, reads = _DATASETS.get(dataset, _IMAGES), MODELS[model].reads
    if examples is None or examples in reads:
        return
    models = [name for name, other in MODELS.items() if examples in other.reads]
    datasets = [name for name, kind in _DATASETS.items() if kind in reads]
    raise ValueError(
        f"--model={model} reads {' or '.join(reads)}, not the {examples} of --dataset={dataset}; wanted "
        f"--model={' or '.join(models)}, or --dataset={' or '.join(datasets)}"
    )


def check_drift(drift: str, dataset: str) -> None:
    """Checks that a data set has what a drift changes.

    Raises:
      ValueError: the data set lacks it.
    """
    examples = _DATASETS.get(dataset, _IMAGES)
    suits = {"labels": (_IMAGES, None), "rotation": (_IMAGES, None)}
    if drift in suits and examples not in suits[drift]:
        raise ValueError(
            f"--drift={drift} suits images, not the {examples} of --dataset={dataset}; leave it out"
        )


def check_stored(model: str, examples: Mapping[str, Any]) -> None:
    """Checks that a model can read columns of these shapes.

    Args:
      model: name of the model.
      examples: column name -> `[n, ...]`.

    Raises:
      ValueError: the model cannot.
    """
    x, y, reads = examples["x"], examples["y"], MODELS[model].reads
    found = (_CHARACTERS, _WORDS) if y.ndim == 2 else (_IMAGES if x.ndim == 4 else _NUMBERS,)
    if not {*found} & {*reads}:
        raise ValueError(
            f"--model={model} reads {' or '.join(reads)}; what is stored in --data_dir has 'x' "
            f"{list(x.shape)} and 'y' {list(y.shape)}"
        )


def check_partition(partition: str, dataset: str) -> None:
    """Checks that a data set has the labels or owners that a partition divides it by.

    Args:
      partition: name of the partition.
      dataset: name of the data set.

    Raises:
      ValueError: the data set lacks them.
    """
    examples = _DATASETS.get(dataset, _IMAGES)
    if partition in ("shards", "dirichlet", "label_subsets") and examples != _IMAGES:
        raise ValueError(
            f"--partition={partition} divides by label, but the {examples} of --dataset={dataset} have "
            "none; wanted --partition=iid, lognormal:1.0 or natural"
        )
    if partition == "natural" and dataset not in OWNERS:
        raise ValueError(
            f"--partition=natural divides by owner, but --dataset={dataset} names none; wanted "
            f"--dataset={' or '.join(OWNERS)}, or another --partition"
        )
