"""Messages by author, for predicting each next word.

The task of H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient
learning of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629,
section 3: a client is an author with at most 5,000 words, the test set is messages of other authors,
and a model distinguishes 10,000 symbols, unrolled over 10. Its 10 million posts are not public; any file
that `read_messages` reads takes their place. Our choices where that text leaves them open:

* A word is a match of `WORD` in the lower-cased message: letters, digits and underscores, with
  apostrophes inside ("don't"), or any other single character that is not a space.
* The 10,000 symbols are 4 special ones and the training authors' 9,996 most frequent words, counted
  after the cut to 5,000 words; alphabetical order breaks ties.
* A message is `BEGIN`, its words, `END`: the model reads `BEGIN` and predicts the first word, and so on
  to `END`. Each piece of 10 predictions is a row, which starts without memory of the previous piece.
* A message that the word limit cuts short has no `END`. Messages without words are left out.
"""

import array
import dataclasses
import itertools
import os
import re
from collections import defaultdict

import numpy as np

from fedjax_sim.core.checks import check_count, check_seed
from fedjax_sim.data.dataset import Dataset
from fedjax_sim.data.sources.message_files import find_messages, read_messages
from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES, check_made_bytes

PADDING, UNKNOWN, BEGIN, END = range(4)
SPECIAL = ("<padding>", "<unknown>", "<begin>", "<end>")  # never words, since "<" is a word by itself
_SLOT_BYTES = 6  # an x and a y
WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


@dataclasses.dataclass(frozen=True, eq=False)
class Messages:
    """Training and test data that `messages` makes from a file.

    Attributes:
      train: data set with a row per piece of T predictions. `examples` `"x"`, uint16 `[n, T]` (int32 for
        more than 65,536 symbols): the symbols read. `"y"`, int32 `[n, T]`: the symbol after each, then
        `PADDING`. The key `"author"`, strings `[n]` as objects. Rows keep the order of the file.
      test: the same for other authors.
      symbols: meanings of the symbols, `[V]`: padding, unknown word, begin and end of a message, then
        the words, the most frequent first.
      authors_dropped: number of authors left out because they had no word.
    """

    train: Dataset
    test: Dataset
    symbols: tuple[str, ...]
    authors_dropped: int


def messages(
    path: str | os.PathLike,
    *,
    vocabulary_size: int = 10_000,
    length: int = 10,
    most_words: int = 5_000,
    test_share: float = 0.1,
    seed: int = 0,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
) -> Messages:
    """Reads messages by author; `natural("author")` makes clients of the training authors.

    `models.word_lstm` is the model for these data.

    Args:
      path: file that `read_messages` can read, or a folder that holds one.
      vocabulary_size: number of symbols, V, including the 4 special ones.
      length: predictions in a row, T.
      most_words: limit on the words of an author; the rest are left out.
      test_share: share of test authors among authors with a word, rounded to at least one author.
      seed: seed of the choice of test authors.
      max_unpacked_bytes: limit on the size of the unpacked file, and on the size of its examples.
        Memory of several times that is needed.

    Raises:
      ValueError: a setting is out of range, the file is damaged or too large, fewer than two authors
        have a word, or the training authors have fewer words than the vocabulary needs.
      FileNotFoundError: the file does not exist.
    """
    vocabulary_size = check_count("vocabulary_size", vocabulary_size)
    length, most_words = check_count("length", length), check_count("most_words", most_words)
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share}; wanted a share of the authors, between 0 and 1.")
    check_seed(seed)
    path = find_messages(path)
    said = read_messages(path, max_unpacked_bytes=max_unpacked_bytes)
    corpus = _Corpus.of(said, most_words)
    check_made_bytes(path, int(corpus.num_rows(length).sum()) * length * _SLOT_BYTES, max_unpacked_bytes)
    writers = np.unique(corpus.authors)
    if len(writers) < 2:
        raise ValueError(
            f"{path}: of {len(said)} authors, {len(writers)} have a word; wanted at least two, one to "
            "train and one to test on."
        )
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(writers)
    num_test = min(max(round(test_share * len(writers)), 1), len(writers) - 1)
    in_test = np.isin(corpus.authors, drawn[:num_test])
    symbol_of, symbols = _vocabulary(path, corpus, ~in_test, vocabulary_size)
    # Objects, which rows share: NumPy's strings all take the space of the longest, and lose NULs.
    names = np.array(list(said), object)

    def split(chosen: np.ndarray, name: str) -> Dataset:
        part = corpus.only(chosen)
        x, y = part.rows(symbol_of, length, np.uint16 if len(symbols) <= 2**16 else np.int32)
        keys = {"author": np.repeat(names[part.authors], part.num_rows(length))}
        return Dataset({"x": x, "y": y}, len(symbols), f"messages/{name}", keys)

    return Messages(split(~in_test, "train"), split(in_test, "test"), symbols, len(said) - len(writers))


@dataclasses.dataclass(frozen=True, eq=False)
class _Corpus:
    """`m` messages with `w` words in all.

    Attributes:
      words: indices into `spellings`, `[w]`, message after message.
      lengths: words in each message, `[m]`, at least 1.
      whole: `[m]`, False for messages that the word limit cut short.
      authors: author of each message, `[m]`, numbered in the order of the file.
      spellings: all distinct words.
    """

    words: np.ndarray
    lengths: np.ndarray
    whole: np.ndarray
    authors: np.ndarray
    spellings: list[str]

    @classmethod
    def of(cls, said: dict[str, list[str]], most_words: int) -> "_Corpus":
        number_of = defaultdict(itertools.count().__next__)
        words, lengths, whole, authors = array.array("i"), [], [], []
        for author, texts in enumerate(said.values()):
            left = most_words
            for text in texts:
                if left == 0:
                    break
                # Not findall, which would list all words of a message, however long.
                matches = itertools.islice(WORD.finditer(text.lower()), left + 1)
                found = [match[0] for match in matches]
                if found:
                    kept = found[:left]
                    left -= len(kept)
                    words.extend(map(number_of.__getitem__, kept))
                    lengths.append(len(kept))
                    whole.append(len(kept) == len(found))
                    authors.append(author)
        numbers = np.array(words, np.int32)
        columns = np.array(lengths, np.int64), np.array(whole, bool), np.array(authors, np.int64)
        return cls(numbers, *columns, list(number_of))

    def only(self, chosen: np.ndarray) -> "_Corpus":
        """Returns the messages for which `chosen` `[m]` is True."""
        words = self.words[np.repeat(chosen, self.lengths)]
        columns = self.lengths[chosen], self.whole[chosen], self.authors[chosen]
        return _Corpus(words, *columns, self.spellings)

    def num_rows(self, length: int) -> np.ndarray:
        """Returns how many rows of `length` predictions each message fills, `[m]`."""
        return -(-(self.lengths + self.whole) // length)

    def rows(self, symbol_of: np.ndarray, length: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        """Cuts the messages into n rows.

        Args:
          symbol_of: symbol of each spelling.
          length: T.
          dtype: dtype of x.

        Returns:
          x and y `[n, T]`: the symbols read and the symbol after each.
        """
        predictions, rows = self.lengths + self.whole, self.num_rows(length)
        ends, num_slots = np.cumsum(predictions), int(rows.sum()) * length
        starts = ends - predictions
        is_word = np.ones(predictions.sum(), bool)
        is_word[ends[self.whole] - 1] = False
        y = np.full(len(is_word), END, np.int32)
        y[is_word] = symbol_of[self.words]
        x = np.roll(y, 1)
        x[starts] = BEGIN
        narrow = np.int32 if num_slots < 2**31 else np.int64
        shift = (np.cumsum(rows) - rows) * length - starts
        into = np.repeat(shift.astype(narrow), predictions)
        into += np.arange(len(into), dtype=narrow)

        def lay_out(flat: np.ndarray, dtype: type) -> np.ndarray:
            slots = np.full(num_slots, PADDING, dtype)
            slots[into] = flat
            return slots.reshape(-1, length)

        return lay_out(x, dtype), lay_out(y, np.int32)


def _vocabulary(path, corpus: _Corpus, in_train: np.ndarray, size: int) -> tuple[np.ndarray, tuple]:
    """Returns the symbol of each spelling, and the meaning of each symbol."""
    counts = np.bincount(corpus.only(in_train).words, minlength=len(corpus.spellings))
    present = np.flatnonzero(counts)
    most = len(SPECIAL) + len(present)
    if not len(SPECIAL) < size <= most:
        raise ValueError(
            f"{path}: vocabulary_size is {size}, including {len(SPECIAL)} special symbols, and the "
            f"training authors use {len(present)} distinct words; wanted {len(SPECIAL) + 1} to {most}."
        )
    ranked = sorted(present.tolist(), key=lambda word: (-counts[word], corpus.spellings[word]))
    chosen = ranked[: size - len(SPECIAL)]
    symbol_of = np.full(len(corpus.spellings), UNKNOWN, np.int32)
    symbol_of[chosen] = len(SPECIAL) + np.arange(len(chosen))
    return symbol_of, (*SPECIAL, *(corpus.spellings[word] for word in chosen))
