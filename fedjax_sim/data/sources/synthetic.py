"""A synthetic population of any size: clients of power-law sizes, each with words of its own.

A topic is a Zipf distribution over the words, which every topic ranks in another order. A client mixes
the topics in proportions drawn from a Dirichlet distribution, and draws all its words from that mixture.
Rows are laid out as those of `data.messages`: the model reads `BEGIN` and predicts the first word, and
so on; each row is cut off after so many words and has no `END`.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from fedjax_sim.core.checks import check_count, check_seed
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.partition import apportion
from fedjax_sim.data.sources.messages import BEGIN, SPECIAL
from fedjax_sim.data.storage.stored import open_federated, write_federated

_EXAMPLES_EACH = 20
_MOST_SYMBOLS = 2**16  # that uint16 tells apart
_PIECE_CLIENTS, _PIECE_ROWS = 2**14, 2**16  # drawn at a time, so that memory does not grow with all


def synthetic(
    *,
    num_clients: int,
    num_examples: int | None = None,
    num_test_clients: int = 100,
    length: int = 10,
    vocabulary_size: int = 1_000,
    num_topics: int = 10,
    size_exponent: float = 2.0,
    word_exponent: float = 1.0,
    concentration: float = 0.3,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
) -> tuple[FederatedData, FederatedData]:
    """Draws a population that predicts each next word, and other clients to test on.

    Args:
      num_clients: `N`.
      num_examples: `n`, by default 20 for each client. Each has one, and a share of the others.
      num_test_clients: how many there are besides, with as many examples on average.
      length: T, words of an example.
      vocabulary_size: V, how many symbols there are, the 4 special ones of `data.messages` included.
      num_topics: how many distributions the clients mix.
      size_exponent: a client's share follows a Pareto distribution that begins at zero (Lomax's): it is
        larger than s, in some unit, with probability `(1 + s) ** -size_exponent`.
      word_exponent: a topic's word of rank r has a probability proportional to `r ** -word_exponent`.
      concentration: of the Dirichlet distribution; small means one topic for each client.
      seed: decides all draws.
      folder: where to write what memory need not hold: its subfolders "train" and "test" are written
        piece by piece, and opened by `open_federated`.

    Returns:
      The federation, and that of the test clients. `examples` `"x"` and `"y"`, uint16 `[n, T]`: what is
      read and what follows each.

    Raises:
      ValueError: a setting is out of range, or the folder holds a population already.
    """
    num_clients = check_count("num_clients", num_clients)
    num_test_clients = check_count("num_test_clients", num_test_clients)
    length, num_topics = check_count("length", length), check_count("num_topics", num_topics)
    vocabulary_size = check_count("vocabulary_size", vocabulary_size)
    wanted = _EXAMPLES_EACH * num_clients if num_examples is None else num_examples
    num_examples = check_count("num_examples", wanted)
    if num_examples < num_clients:
        raise ValueError(
            f"num_examples is {num_examples} for {num_clients} clients; wanted one for each at least."
        )
    if not len(SPECIAL) + 1 <= vocabulary_size <= _MOST_SYMBOLS:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}; wanted {len(SPECIAL) + 1} to {_MOST_SYMBOLS}: "
            f"{len(SPECIAL)} symbols are no words."
        )
    for name, value in {"size_exponent": size_exponent, "concentration": concentration}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; wanted a finite number above 0.")
    if not (math.isfinite(word_exponent) and word_exponent >= 0):
        raise ValueError(f"word_exponent is {word_exponent}; wanted a finite number of at least 0.")
    check_seed(seed)

    streams = np.random.SeedSequence(seed).spawn(3)
    # Named, since default_rng is free to change its algorithm between versions of NumPy.
    of_topics, of_train, of_test = (np.random.Generator(np.random.PCG64(s)) for s in streams)
    topics = _Topics.draw(of_topics, num_topics, vocabulary_size - len(SPECIAL), word_exponent)

    def population(part: str, generator: np.random.Generator, clients: int, rows: int) -> FederatedData:
        # The logarithm of exp(e) - 1, where exp(e) may exceed what a float holds.
        e = generator.standard_exponential(clients) / size_exponent
        log_shares = e + np.log(-np.expm1(-e))
        sizes = 1 + apportion(log_shares, rows - clients)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        pieces = _draw_rows(generator, topics, offsets, length, concentration)
        about = {"num_classes": vocabulary_size, "name": f"synthetic/{part}"}
        if folder is None:
            drawn = list(pieces)
            examples = {name: np.concatenate([piece[name] for piece in drawn]) for name in ("x", "y")}
            return FederatedData(examples, offsets, np.arange(clients), **about)
        write_federated(pathlib.Path(folder) / part, pieces, offsets, np.arange(clients), **about)
        # Files that were just written are verified when they are first used.
        return open_federated(pathlib.Path(folder) / part, verify=False)

    test_rows = max(num_test_clients, round(num_examples / num_clients * num_test_clients))
    test = population("test", of_test, num_test_clients, test_rows)
    return population("train", of_train, num_clients, num_examples), test


@dataclasses.dataclass(frozen=True, eq=False)
class _Topics:
    """Distributions over `W` words.

    Attributes:
      cumulative: `[W - 1]`, the probability of the first ranks together, without the last one's.
      symbols: `[topics, W]` uint16, which symbol a topic gives to each rank.
    """

    cumulative: np.ndarray
    symbols: np.ndarray

    @classmethod
    def draw(cls, generator, num_topics: int, num_words: int, exponent: float) -> "_Topics":
        weights = np.arange(1, num_words + 1, dtype=np.float64) ** -exponent
        words = np.arange(len(SPECIAL), len(SPECIAL) + num_words, dtype=np.uint16)
        symbols = generator.permuted(np.tile(words, (num_topics, 1)), axis=1)
        return cls(np.cumsum(weights / weights.sum())[:-1], symbols)


def _draw_rows(
    generator: np.random.Generator,
    topics: _Topics,
    offsets: np.ndarray,
    length: int,
    concentration: float,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields `"x"` and `"y"` of some rows after the other, uint16 `[m, length]`."""
    num_topics, num_clients = len(topics.symbols), len(offsets) - 1
    for first in range(0, num_clients, _PIECE_CLIENTS):
        last = min(first + _PIECE_CLIENTS, num_clients)
        mixtures = generator.dirichlet(np.full(num_topics, concentration), last - first).cumsum(axis=1)
        for row in range(offsets[first], offsets[last], _PIECE_ROWS):
            rows = np.arange(row, min(row + _PIECE_ROWS, offsets[last]))
            mixture = mixtures[np.searchsorted(offsets[first : last + 1], rows, side="right") - 1]
            uniform = generator.random((len(rows), length))
            topic = np.zeros(uniform.shape, np.intp)
            for k in range(num_topics - 1):
                topic += uniform >= mixture[:, k, None]
            rank = np.searchsorted(topics.cumulative, generator.random(uniform.shape), side="right")
            y = topics.symbols[topic, rank]
            begin = np.full((len(rows), 1), BEGIN, np.uint16)
            yield {"x": np.concatenate([begin, y[:, :-1]], axis=1), "y": y}
