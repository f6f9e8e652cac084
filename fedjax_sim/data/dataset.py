"""`Dataset`: labelled examples in host memory, not yet divided among clients."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fedjax_sim.core import html

_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples as NumPy arrays of `n` rows.

    64-bit columns are stored in 32 bits, JAX's default.

    Attributes:
      examples: the columns that a model reads. `"x"`: features `[n, ...]`; images are uint8 `[n,
        height, width, channels]`. `"y"`: int32 labels in `[0, num_classes)`, `[n]`, or `[n, ...]` for
        several per row, or floats for a regression. More columns are allowed.
      num_classes: number of labels; None if `"y"` holds floats.
      name: name shown in descriptions and errors.
      keys: facts about rows that no model reads, such as the `"writer"` of a digit: integers or
        strings `[n]`, as NumPy or object arrays. They decide which client owns a row (see `natural`)
        and never reach the device.

    Raises:
      ValueError: a column is missing, has the wrong length, or holds an unusable value: a label out
        of range, NaN, infinity, or an integer beyond 32 bits. The error names the first bad row.
    """

    examples: dict[str, np.ndarray]
    num_classes: int | None
    name: str = "arrays"
    keys: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        missing = sorted({"x", "y"} - set(self.examples))
        if missing:
            raise ValueError(
                f"{self.name}: examples have columns {sorted(self.examples)}, without {missing}; "
                "give the features as 'x', and the integer labels, or floats to predict, as 'y'."
            )
        count, is_integer = self.num_classes, isinstance(self.num_classes, int | np.integer)
        has_classes = count is not None or np.asarray(self.examples["y"]).dtype.kind != "f"
        if has_classes and (not is_integer or isinstance(count, bool) or count < 1):
            raise ValueError(f"{self.name}: num_classes is {count!r}; wanted an integer of at least 1.")
        examples = {k: _stored(self.name, k, np.asarray(v)) for k, v in self.examples.items()}
        keys = {k: _stored_key(self.name, k, np.asarray(v)) for k, v in self.keys.items()}
        rows = len(examples["x"])
        if rows == 0:
            raise ValueError(f"{self.name}: there are no rows; at least one is needed.")
        for column, array in (examples | keys).items():
            if len(array) != rows:
                raise ValueError(
                    f"{self.name}: column {column!r} has {len(array)} rows and column 'x' has "
                    f"{rows}; every column needs one entry per example."
                )
        if has_classes:
            _check_labels(self.name, examples["y"], self.num_classes)
            examples["y"] = examples["y"].astype(np.int32, copy=False)
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "keys", keys)

    def __len__(self) -> int:
        return len(self.examples["x"])

    def __repr__(self) -> str:
        kinds = [f"{name} {c.dtype}{list(c.shape[1:])}" for name, c in self.examples.items()]
        columns, keys = ", ".join(kinds), "".join(f", by {key}" for key in self.keys)
        classes = "" if self.num_classes is None else f", {self.num_classes} classes"
        return f"<{self.name}: {len(self):,} examples of {columns}{classes}{keys}>"

    def _repr_html_(self) -> str:
        columns = [
            (f"column {name}", f"{c.dtype}{list(c.shape[1:])}") for name, c in self.examples.items()
        ]
        classes = [] if self.num_classes is None else [("classes", self.num_classes)]
        lines = [("examples", f"{len(self):,}"), *classes, *columns]
        return html.table(self.name, lines + [("key", key) for key in self.keys])


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    num_classes: int | None = None,
    keys: Mapping[str, np.ndarray] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a `Dataset` from arrays in memory.

    Args:
      x: features `[n, ...]`; uint8 images stay uint8, since a task decodes them on the device.
      y: integer labels `[n]`, or floats `[n]` or `[n, m]` for a regression.
      num_classes: number of labels, by default the largest label plus one; give it if the rows may
        lack the last class, as a small test set can. Floats have none.
      keys: columns `[n]` that decide ownership, such as `{"writer": writers}`.
      name: name shown in descriptions and errors.

    Raises:
      ValueError: a column is unusable, see `Dataset`.
    """
    y = np.asarray(y)
    if num_classes is None and (y.dtype.kind != "f" or _is_one_hot(y)):
        _check_integers(name, y)
        num_classes = int(y.max(initial=0)) + 1
    return Dataset({"x": x, "y": y}, num_classes=num_classes, name=name, keys=dict(keys or {}))


def _stored(name: str, column: str, array: np.ndarray) -> np.ndarray:
    """Returns `array` `[n, ...]` in its storage dtype, once its values are known to survive that."""
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: column {column!r} is {array.dtype} of shape {array.shape}; wanted booleans, "
            "integers or floats with one leading row per example (ragged rows must be padded)."
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32) if array.dtype.itemsize > 4 else array
        _check_rows(name, column, array, np.isfinite(array), "finite 32-bit numbers")
    elif array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        fits = (array >= _INT32.min) & (array <= _INT32.max)
        _check_rows(name, column, array, fits, "integers that fit 32 bits")
        array = array.astype(np.int32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _stored_key(name: str, column: str, array: np.ndarray) -> np.ndarray:
    strings = array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat)
    if array.ndim != 1 or not (array.dtype.kind in "iuU" or strings):
        raise ValueError(
            f"{name}: key {column!r} is {array.dtype} of shape {array.shape}; wanted integers or "
            "strings of shape [n] (other objects: call .astype(str))."
        )
    return array


def _check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    _check_integers(name, labels)
    in_range = (labels >= 0) & (labels < num_classes)
    wanted = f"labels from 0 to {num_classes - 1}; check num_classes, or renumber the labels"
    _check_rows(name, "y", labels, in_range, wanted)


def _is_one_hot(labels: np.ndarray) -> bool:
    wide = labels.ndim == 2 and labels.shape[1] > 1
    return wide and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _check_integers(name: str, labels: np.ndarray) -> None:
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: labels are {labels.dtype}; wanted integers: call .astype('int32'), or "
            ".argmax(-1) on one-hot rows."
        )


def _check_rows(name: str, column: str, array: np.ndarray, good: np.ndarray, wanted: str) -> None:
    """Raises for the first entry of `array` that `good`, of the same shape, marks False."""
    if good.all():
        return
    place = np.unravel_index(np.argmin(good), good.shape)
    raise ValueError(
        f"{name}: column {column!r} holds {array[place]} at row {place[0]}; wanted {wanted}."
    )
