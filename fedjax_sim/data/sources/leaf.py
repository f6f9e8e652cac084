"""The JSON in which LEAF keeps the data of users.

S. Caldas et al., "LEAF: A benchmark for federated settings", https://arxiv.org/abs/1812.01097. A file
is `{"users": ["ada"], "num_samples": [2], "user_data": {"ada": {"x": [...], "y": [...]}}}`; other keys
of the object, such as "hierarchies", are ignored.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from fedjax_sim.data.storage import strict_json

ENDINGS = (".json", ".json.gz", ".json.xz")


def read_users(
    path: pathlib.Path, stream: BinaryIO, *, allow_nan: bool = False, hint: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Reads the users of a file.

    Args:
      path: path of the file, for errors.
      stream: the file, unpacked.
      allow_nan: whether to read NaN and infinities, which are not JSON.
      hint: advice that ends an error about the file as a whole.

    Yields:
      Each user's name, entry of `num_samples`, and entry of `user_data` or None, in the order of
      `users`.

    Raises:
      ValueError: the file is not JSON in this format, or a user is listed twice or not at all.
    """
    try:
        content = strict_json.loads(stream.read(), allow_nan=allow_nan)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}){hint and f'; {hint}'}.") from error
    kinds = {"users": list, "num_samples": list, "user_data": dict}
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(
                f"{path} has no {kind.__name__} {key!r}; wanted an object with {', '.join(kinds)}, as "
                f"LEAF writes it{hint and f' ({hint})'}."
            )
    users, counts, data = (content[key] for key in kinds)
    if len(users) != len(counts):
        extra = (
            f"; user {users[len(counts)]!r} is the first without one" if len(users) > len(counts) else ""
        )
        raise ValueError(f"{path} has {len(users)} users and {len(counts)} num_samples{extra}.")
    seen = set()
    for user, count in zip(users, counts, strict=True):
        if not isinstance(user, str) or user in seen:
            raise ValueError(f"{path} has user {user!r}; wanted strings, each once.")
        seen.add(user)
        yield user, count, data.get(user)
    if unlisted := [user for user in data if user not in seen]:
        raise ValueError(f"{path} has user_data of {unlisted[0]!r}, who is not among its users.")
