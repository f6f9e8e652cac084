"""Choosing a thing by its name, with an error that helps when the name is wrong."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Returns `known[name]`.

    Args:
      kind: what is being chosen, for the error message, such as `"dataset"`.
      name: the name asked for.
      known: every name there is, with what it stands for.

    Raises:
      ValueError: `name` is not known; the message offers the nearest name and lists them all.
    """
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(str(name), known, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise ValueError(f"unknown {kind} {name!r}{suggestion} Known: {', '.join(sorted(known))}.")
