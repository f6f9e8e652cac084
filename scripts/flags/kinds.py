"""Kinds of flag values, checked while flags are parsed, before anything else is done."""

import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from absl import flags

import fedjax_sim as fs

# Flags belong to the modules that define them, through `define`.
flags.disclaim_key_flags()

LARGEST = 2**31 - 1  # int32 counts rounds, steps and examples
SMALLEST_FLOAT32 = float(np.finfo(np.float32).tiny)
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Kind(flags.ArgumentParser):
    """A flag parser that says what was wanted.

    Args:
      read: function from a text to a value; raises ValueError if there is none.
      accepts: function that says whether a value is in range.
      wanted: the range in words.
    """

    def __init__(self, read: Callable[[str], Any], accepts: Callable[[Any], bool], wanted: str):
        self._read, self._accepts, self.syntactic_help = read, accepts, wanted

    def parse(self, argument: Any) -> Any:
        """Returns the value of a text, or of a flag's default.

        Raises:
          ValueError: the text is not such a value.
        """
        try:
            value = self._read(argument)
        except ValueError:
            raise ValueError(f"wanted {self.syntactic_help}") from None
        if not self._accepts(value):
            raise ValueError(f"wanted {self.syntactic_help}")
        return value


class Word(flags.ArgumentParser):
    """A flag parser that accepts one of a few words.

    Args:
      name: name of the flag.
      known: accepted words.
    """

    def __init__(self, name: str, known: Iterable[str]):
        self._name, self._known = name, dict.fromkeys(known)

    def parse(self, argument: str) -> str:
        """Returns the word.

        Raises:
          ValueError: the word is unknown; the message offers the nearest.
        """
        fs.checks.choose(self._name, argument, self._known)
        return argument


def define(kind: flags.ArgumentParser, name: str, default: Any, help: str) -> flags.FlagHolder:
    """Defines a flag with values of a kind."""
    return flags.DEFINE(kind, name, default, help, serializer=flags.ArgumentSerializer())


def whole(low: int, high: int) -> Kind:
    """Returns the kind of whole numbers from `low` to `high`."""
    return Kind(int, lambda value: low <= value <= high, f"a whole number from {low} to {high}")


def number(low: float, high: float) -> Kind:
    """Returns the kind of numbers from `low` to `high`."""
    return Kind(float, lambda value: low <= value <= high, f"a number from {low:.3g} to {high:.3g}")


def _batch_size(text: str) -> float:
    return math.inf if text in ("inf", "infinity") else int(text)


COUNT = whole(1, LARGEST)
SEED = whole(0, 2**32 - 1)  # jax.random.key would keep only the last 32 bits
BATCH_SIZE = Kind(
    _batch_size,
    lambda value: value == math.inf or 1 <= value <= LARGEST,
    f"a whole number from 1 to {LARGEST}, or inf",
)
SHARE = number(0, 1)
TARGET = Kind(float, lambda value: 0 < value <= 1, "a number above 0, at most 1")
LIMIT = Kind(float, lambda value: value >= 0, "a number of at least 0, or inf")
# Beyond these, float32 would silently round a rate to zero or infinity.
POSITIVE_RATE = number(SMALLEST_FLOAT32, LARGEST_FLOAT32)
RATE = Kind(
    float,
    lambda value: value == 0 or SMALLEST_FLOAT32 <= value <= LARGEST_FLOAT32,
    f"0, or {POSITIVE_RATE.syntactic_help}",
)
TEXT = Kind(str, bool, "a name, or leave the flag out")


def numbers(flag: str, entries: list[str], kind: Kind) -> list:
    """Returns the entries of a list flag as numbers.

    Raises:
      ValueError: the list is empty, or an entry is not of the kind or occurs twice.
    """
    entries = [entry.strip() for entry in entries if entry.strip()]
    if not entries:
        raise ValueError(f"--{flag} is empty; wanted numbers with commas between them")
    parsed = []
    for entry in entries:
        try:
            value = kind.parse(entry)
        except ValueError as error:
            raise ValueError(f"--{flag} holds {entry!r}; {error}") from None
        if value in parsed:
            raise ValueError(f"--{flag} holds {entry} twice; wanted each once")
        parsed.append(value)
    return parsed


def check_folder(flag: str, text: str) -> None:
    """Checks that a folder exists and can be written to, or can be created.

    Raises:
      ValueError: something else is in its place, or it cannot be written to.
    """
    folder = pathlib.Path(text).absolute()
    wrong = None
    try:
        # A dangling link does not exist, yet no folder can be created in its place.
        nearest = next(path for path in (folder, *folder.parents) if path.is_symlink() or path.exists())
        if not nearest.is_dir():
            wrong = f"{nearest} is not a folder"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            wrong = f"{nearest} cannot be written to"
    except OSError as error:  # such as a name that is too long
        wrong = str(error.strerror)
    if "\0" in text:
        wrong = "a name cannot hold a zero byte"
    if wrong:
        raise ValueError(f"--{flag}={text}: {wrong}; wanted a folder to write to")
