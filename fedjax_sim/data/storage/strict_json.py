"""Strict JSON: in UTF-8, without repeated keys in an object."""

import json
from typing import Any


def loads(content: bytes, *, allow_nan: bool = False) -> Any:
    """Reads JSON in UTF-8, with or without a byte order mark.

    Args:
      content: content of a file or a line.
      allow_nan: whether to read NaN and infinities, which are not JSON, as floats.

    Raises:
      ValueError: the content is not UTF-8 or not JSON, is nested too deeply, or repeats a key in one
        object.
    """
    constant = None if allow_nan else _refuse
    try:
        return json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.100} occurs twice in one object")
    return made


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
