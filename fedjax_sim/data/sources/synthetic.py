"""A synthetic population of any size: clients with power-law sizes and their own word frequencies.

A topic is a Zipf distribution over the words, ranked in the topic's own order. A client mixes the topics
in proportions drawn from a Dirichlet distribution, and draws all its words from that mixture. Rows have
the layout of `data.messages`: the model reads `BEGIN` and predicts the first word, and so on; each row
has a fixed number of words and no `END`.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from fedjax_sim.core.checks import check_count, check_seed
from fedjax_sim.data.draws import apportion
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.messages import BEGIN, SPECIAL
from fedjax_sim.data.storage.stored import open_federated, write_federated

_EXAMPLES_EACH = 20
_MOST_SYMBOLS = 2**16  # as many as uint16 distinguishes
_PIECE_CLIENTS, _PIECE_ROWS = 2**14, 2**16  # drawn at a time, to bound memory


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
    """Draws a population for predicting each next word, and other clients to test on.

    Args:
      num_clients: number of clients, `N`.
      num_examples: number of examples, `n`, by default 20 per client. Each client has one, and a share
        of the others.
      num_test_clients: number of additional test clients, with as many examples on average.
      length: words of an example, T.
      vocabulary_size: number of symbols, V, including the 4 special ones of `data.messages`.
      num_topics: number of distributions that the clients mix.
      size_exponent: exponent of the clients' shares, from a Pareto distribution that begins at zero
        (Lomax's): a share exceeds s, in some unit, with probability `(1 + s) ** -size_exponent`.
      word_exponent: exponent of a topic: its word of rank r has a probability proportional to
        `r ** -word_exponent`.
      concentration: parameter of the Dirichlet distribution; a small one means one topic per client.
      seed: seed of all draws.
      folder: folder for data that need not fit in memory: its subfolders "train" and "test" are written
        piece by piece, and opened by `open_federated`.

    Returns:
      The federation, and that of the test clients. `examples` `"x"` and `"y"`, uint16 `[n, T]`: the
      symbols read and the symbol after each.

    Raises:
      ValueError: a setting is out of range, or the folder already holds a population.
    """
    num_clients = check_count("num_clients", num_clients)
    num_test_clients = check_count("num_test_clients", num_test_clients)
    length, num_topics = check_count("length", length), check_count("num_topics", num_topics)
    vocabulary_size = check_count("vocabulary_size", vocabulary_size)
    wanted = _EXAMPLES_EACH * num_clients if num_examples is None else num_examples
    num_examples = check_count("num_examples", wanted)
    if num_examples < num_clients:
        raise ValueError(
            f"num_examples is {num_examples} for {num_clients} clients; wanted at least one for each."
        )
    if not len(SPECIAL) + 1 <= vocabulary_size <= _MOST_SYMBOLS:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}; wanted {len(SPECIAL) + 1} to {_MOST_SYMBOLS}: "
            f"{len(SPECIAL)} symbols are special."
        )
    for name, value in {"size_exponent": size_exponent, "concentration": concentration}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; wanted a finite number above 0.")
    if not (math.isfinite(word_exponent) and word_exponent >= 0):
        raise ValueError(f"word_exponent is {word_exponent}; wanted a finite number of at least 0.")
    check_seed(seed)

    streams = np.random.SeedSequence(seed).spawn(3)
    # PCG64 by name: default_rng may change its algorithm between versions of NumPy.
    of_topics, of_train, of_test = (np.random.Generator(np.random.PCG64(s)) for s in streams)
    topics = _Topics.draw(of_topics, num_topics, vocabulary_size - len(SPECIAL), word_exponent)

    def population(part: str, generator: np.random.Generator, clients: int, rows: int) -> FederatedData:
        # log(exp(e) - 1), without computing exp(e), which may overflow.
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
        # Files just written are verified on first use.
        return open_federated(pathlib.Path(folder) / part, verify=False)

    test_rows = max(num_test_clients, round(num_examples / num_clients * num_test_clients))
    test = population("test", of_test, num_test_clients, test_rows)
    return population("train", of_train, num_clients, num_examples), test


@dataclasses.dataclass(frozen=True, eq=False)
class _Topics:
    """Distributions over `W` words.

    Attributes:
      cumulative: cumulative probabilities of all ranks but the last, `[W - 1]`.
      symbols: symbol that each topic gives to each rank, `[topics, W]` uint16.
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
    """Yields `"x"` and `"y"` of successive rows, uint16 `[m, length]`."""
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
