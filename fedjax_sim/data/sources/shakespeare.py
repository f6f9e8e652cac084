"""The Complete Works of Shakespeare, line by line, with the role that speaks each line.

The data of H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient
learning of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629,
section 3. Details that text leaves open follow the preprocessing published with S. Caldas et al., "LEAF:
A benchmark for federated settings", https://arxiv.org/abs/1812.01097, without its later changes.

The text is Project Gutenberg's etext 100 in the World Library edition, https://www.gutenberg.org/ebooks/100
as posted in 2011. That edition is for personal, non-commercial use. The rules:

* A work starts at a line with "by William Shakespeare"; its title is the nearest non-blank line, 2 to
  7 lines above. The first work (the sonnets, after the contents) is skipped, as is any work with fewer
  than two roles. The last ends at a line with "END OF THIS PROJECT GUTENBERG".
* Two spaces, a name of letters and spaces, a full stop and a space open a speech. A line indented by
  four spaces or more continues it and loses four, so stage directions at that depth count as spoken.
  All other lines are dropped and do not end a speech. Names in different case are different roles.
* The Comedy of Errors is set two spaces too far left. It is moved right from the second occurrence of
  its title, above Act I (a start inferred from the paper's counts). Two lines of a copyright notice
  that recurs there then look like speeches: "COMMERCIALLY" and "WITH PERMISSION" are roles.
* Roles of fewer than three lines are dropped (the paper says two). The last max(int(n / 5), 1) of the
  n lines of a role are test lines.

This gives the paper's counts: 1,146 roles, 3,564,579 training and 870,014 test characters, including
newlines; 85,113 and 20,832 lines of 36 plays.
"""

import pathlib
import re
from collections.abc import Iterator

import numpy as np

from fedjax_sim.data.dataset import Dataset
from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES, check_made_bytes, unpacked

SYMBOLS = 258  # bytes and two more, as the paper's parameter count implies
PADDING = 257  # after the end of a line; 256 is unused
UNROLL = 80

_AUTHOR = b"by William Shakespeare"
_AUTHOR_LINE = re.compile(rb"^.*?%b.*" % re.escape(_AUTHOR), re.MULTILINE)
_END = b"END OF THIS PROJECT GUTENBERG"
_SHIFTED = b"THE COMEDY OF ERRORS"
_SPOKEN = re.compile(rb"  (?:([A-Za-z][A-Za-z ]*)\. (.*)|  (.*))")
_FEWEST_LINES = 3
_LONGEST_TITLE = 200  # bytes; each role of the play repeats its title
_ROW_BYTES = UNROLL * 6  # an x and a y


def read_shakespeare(
    path: pathlib.Path, name: str, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES
) -> tuple[Dataset, Dataset]:
    """Reads etext 100 as `(train, test)`.

    An example is a line of bytes c_1 to c_m and a newline, c_{m+1}. Its `"x"` and `"y"` `[80]` are
    c_1, ..., c_m and c_2, ..., c_{m+1}, then `PADDING`: having read c_1, a model predicts c_2. Lines
    are cut off after 80 predictions, which drops only the newline of one test line of 81 characters.

    The key `"role"` is "PLAY_ROLE", with the same 1,146 values in train and test; `natural("role")`
    makes them clients. The paper's IID version is `iid(num_clients=1146)` of the training lines.

    Args:
      path: file of the text as posted, or gzipped under a name that ends in `.gz`.
      name: name of the data set.
      max_unpacked_bytes: limit on the size of the unpacked file, and on the size of its examples.
        Memory of several times that is needed.

    Returns:
      Two `Dataset`s with `examples` `"x"`, uint16 `[n, 80]`, and `"y"`, int32 `[n, 80]`. Rows are
      ordered by play, then role, as each first speaks; a role's lines keep their order.

    Raises:
      ValueError: the file is damaged, too large, or another text.
    """
    with unpacked(path, max_unpacked_bytes) as stream:
        content = stream.read().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    roles = [
        (f"{title.decode(errors='replace')}_{role.decode()}", spoken)
        for title, speeches in _plays(path, content)
        for role, spoken in speeches.items()
        if len(spoken) >= _FEWEST_LINES
    ]
    if not roles:
        raise ValueError(
            f"{path} has no work in which two roles speak, one of them {_FEWEST_LINES} lines; wanted "
            "lines such as '  HAMLET. Words, words, words.', with their indentation."
        )
    num_rows = sum(len(spoken) for _, spoken in roles)
    check_made_bytes(path, num_rows * _ROW_BYTES, max_unpacked_bytes)
    tests = [max(len(spoken) // 5, 1) for _, spoken in roles]
    train = [(role, spoken[:-n]) for (role, spoken), n in zip(roles, tests, strict=True)]
    test = [(role, spoken[-n:]) for (role, spoken), n in zip(roles, tests, strict=True)]
    return _dataset(train, f"{name}/train"), _dataset(test, f"{name}/test")


def _plays(path, content: bytes) -> Iterator[tuple[bytes, dict[bytes, list[bytes]]]]:
    """Yields the title of each play and the lines that each of its roles speaks."""
    found = content.find(_END)
    if found < 0:
        raise ValueError(
            f"{path} has no line with {_END.decode()!r}, which ends the works in the edition posted "
            "in 2011: is it another edition, or cut short?"
        )
    end = content.rfind(b"\n", 0, found) + 1
    starts = [match.span() for match in _AUTHOR_LINE.finditer(content, 0, end)]
    if len(starts) < 2:
        raise ValueError(
            f"{path} has {len(starts)} lines with {_AUTHOR.decode()!r} before its end; wanted one for "
            "the sonnets and one for each play: is it the Complete Works?"
        )
    stops = [first for first, _ in starts[2:]] + [end]
    for (above, first), stop in zip(starts[1:], stops, strict=True):
        title = _title(content, above)
        if len(title) > _LONGEST_TITLE:
            raise ValueError(
                f"{path} has a title of {len(title)} bytes, {title[:40]!r} and so on; wanted at most "
                f"{_LONGEST_TITLE}: is it the Complete Works?"
            )
        first, indent = first + 1, b""
        if title == _SHIFTED:
            again = (place for place, line in _lines(content, first, stop) if line.strip() == title)
            first, indent = next(again, first), b"  "
        speeches = _speeches(indent + line for _, line in _lines(content, first, stop))
        if len(speeches) > 1:
            yield title, speeches


def _title(content: bytes, author: int) -> bytes:
    """Returns the nearest non-blank line, 2 to 7 above the one that begins at `author`, or nothing."""
    stop = author - 1
    for above in range(1, 8):
        if stop < 0:
            break
        first = content.rfind(b"\n", 0, stop) + 1
        title = content[first:stop].strip()
        if title and above > 1:
            return title
        stop = first - 1
    return b""


def _lines(content: bytes, first: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yields the start and content of each line; a list of all lines could be large."""
    while first < stop:
        end = content.find(b"\n", first, stop)
        end = stop if end < 0 else end
        yield first, content[first:end]
        first = end + 1


def _speeches(text: Iterator[bytes]) -> dict[bytes, list[bytes]]:
    speeches = {}
    speaking = []  # nobody's lines, until the first role line
    for line in text:
        if found := _SPOKEN.match(line):
            role, opening, more = found.groups()
            if role is not None:
                speaking = speeches.setdefault(role, [])
            speaking.append(more if role is None else opening)
    return speeches


def _dataset(roles: list[tuple[str, list[bytes]]], name: str) -> Dataset:
    x, y = _encoded([line for _, spoken in roles for line in spoken])
    # Objects, which rows share: NumPy's strings all take the space of the longest.
    names, counts = np.array([role for role, _ in roles], object), [len(spoken) for _, spoken in roles]
    return Dataset({"x": x, "y": y}, SYMBOLS, name, {"role": np.repeat(names, counts)})


def _encoded(lines: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs and targets of each line, uint16 `[n, UNROLL]` each."""
    texts = [(line + b"\n")[: UNROLL + 1] for line in lines]
    lengths = np.array([len(text) for text in texts])
    symbols = np.full((len(texts), UNROLL + 1), PADDING, np.uint16)
    symbols[np.arange(UNROLL + 1) < lengths[:, None]] = np.frombuffer(b"".join(texts), np.uint8)
    x, y = symbols[:, :-1].copy(), symbols[:, 1:]
    x[y == PADDING] = PADDING  # nothing follows a newline
    return x, y
