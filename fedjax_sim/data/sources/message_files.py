"""Files of messages by author: JSON lines, and LEAF's JSON.

LEAF's files are named `.json`, JSON lines `.jsonl`; both may be packed as `.gz` or `.xz`.
"""

import os
import pathlib
from typing import Any, BinaryIO

from fedjax_sim.data.sources.leaf import ENDINGS, read_users
from fedjax_sim.data.storage import strict_json
from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES, unpacked

_LINES = (".jsonl", ".jsonl.gz", ".jsonl.xz")
_WANTED = '{"author": "ada", "messages": ["hello", "bye"]}'


def find_messages(path: str | os.PathLike) -> pathlib.Path:
    """Returns `path` if it is a file, or the one file of messages in a folder.

    Immediate subfolders are searched if the folder itself has none.

    Raises:
      ValueError: there are several such files.
      FileNotFoundError: there is no such file.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        return path
    for pattern in ("*", "*/*"):
        found = sorted(
            p for p in path.glob(pattern) if p.name.endswith(_LINES + ENDINGS) and p.is_file()
        )
        if len(found) > 1:
            raise ValueError(
                f"{path} holds several files of messages: {', '.join(map(str, found))}; give the path "
                "of the one you mean."
            )
        if found:
            return found[0]
    raise FileNotFoundError(
        f"{str(path)!r} is neither a file nor a folder with one ending in "
        f"{', '.join(_LINES + ENDINGS)}, directly or in an immediate subfolder; give the path of a file."
    )


def read_messages(
    path: str | os.PathLike, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES
) -> dict[str, list[str]]:
    """Reads the messages of each author.

    * JSON lines: each line is `{"author": "ada", "messages": ["hello", "bye"]}`; other keys are
      ignored. The messages of an author on several lines are joined in order.
    * LEAF's JSON, S. Caldas et al., "LEAF: A benchmark for federated settings",
      https://arxiv.org/abs/1812.01097: `{"users": ["ada"], "num_samples": [2], "user_data": {"ada":
      {"x": ["hello", "bye"], "y": [...]}}}`, where x holds the messages: texts, or lists of words,
      which are joined by spaces; y is ignored. For LEAF's Reddit, its `get_json.py` writes this format;
      the output of its `preprocess.py`, lists of padded lists with the counts from before its split, is
      refused. LEAF's Sentiment140 puts a tweet's id, date, query, user and text into each x, all of
      which would be taken for words: keep only the text.

    Args:
      path: file in LEAF's format if its name ends in `.json`, `.json.gz` or `.json.xz`; otherwise of
        JSON lines, unpacked if its name ends in `.gz` or `.xz`.
      max_unpacked_bytes: limit on the size of the file, once unpacked. Memory of several times the
        unpacked size is needed.

    Returns:
      The messages of each author, in the order of the file.

    Raises:
      ValueError: the file is damaged or too large, repeats a key in one object, or departs from the
        formats above; the error names the line or the user.
      FileNotFoundError: the file does not exist.
    """
    path = pathlib.Path(path)
    with unpacked(path, max_unpacked_bytes) as stream:
        return _leaf(path, stream) if path.name.endswith(ENDINGS) else _lines(path, stream)


def _lines(path, stream: BinaryIO) -> dict[str, list[str]]:
    said = {}
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            raise ValueError(f"{path}, line {number} is empty; wanted {_WANTED}: remove it.")
        try:
            entry = strict_json.loads(line, allow_nan=True)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON in UTF-8 ({error}); wanted {_WANTED}."
            ) from error
        if fault := _fault(entry):
            raise ValueError(f"{path}, line {number} {fault}; wanted {_WANTED}.")
        said.setdefault(entry["author"], []).extend(entry["messages"])
    return said


def _fault(entry: Any) -> str | None:
    """Returns what is wrong with the object of a line, or None."""
    if not isinstance(entry, dict):
        return f"holds a {type(entry).__name__}"
    for key in ("author", "messages"):
        if key not in entry:
            leaf = ", as in LEAF's format; its name must end in .json" if "user_data" in entry else ""
            return f"has keys {sorted(entry)}, without {key!r}{leaf}"
    if not isinstance(entry["author"], str):
        return f"has an author that is a {type(entry['author']).__name__}"
    if not isinstance(entry["messages"], list):
        return f"has messages that are a {type(entry['messages']).__name__}"
    if wrong := _not_text(entry["messages"]):
        return f"has a message that is a {wrong}"
    return None


def _not_text(items: list) -> str | None:
    """Returns the type of the first item that is not a string, or None."""
    return next((type(item).__name__ for item in items if not isinstance(item, str)), None)


def _leaf(path: pathlib.Path, stream: BinaryIO) -> dict[str, list[str]]:
    hint = "files of JSON lines must end in .jsonl"
    users = read_users(path, stream, allow_nan=True, hint=hint)
    return {user: _leaf_messages(path, user, count, data) for user, count, data in users}


def _leaf_messages(path, user: str, count: Any, data: Any) -> list[str]:
    messages = data.get("x") if isinstance(data, dict) else None
    if not isinstance(messages, list):
        raise ValueError(f"{path} has no list 'x' in user_data of user {user!r}.")
    texts = []
    for place, message in enumerate(messages):
        words = message if isinstance(message, list) else [message]
        if wrong := _not_text(words):
            raise ValueError(
                f"{path}: x[{place}] of user {user!r} holds a {wrong}; wanted a text or a list of "
                "words. For Reddit, give what LEAF's get_json.py wrote, not its preprocess.py."
            )
        texts.append(" ".join(words))
    if type(count) is not int or count != len(texts):  # since 1 equals 1.0 and True
        raise ValueError(
            f"{path}: user {user!r} has {count!r} in num_samples and {len(texts)} messages in x."
        )
    return texts
