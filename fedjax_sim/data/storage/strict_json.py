"""JSON that says one thing: in UTF-8, and no key twice in an object."""

import json
from typing import Any


def loads(content: bytes, *, allow_nan: bool = False) -> Any:
    """Reads JSON in UTF-8, with or without a byte order mark.

    Args:
      content: of a file or a line.
      allow_nan: whether NaN and infinities, which are no JSON, are read as floats.

    Raises:
      ValueError: the content is not UTF-8 or not JSON, is nested too deeply, or has a key twice in one
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
        raise ValueError(f"the key {twice!r:.100} stands twice in one object")
    return made


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
