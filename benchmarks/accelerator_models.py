"""Models that `accelerator.py` trains, data of their shapes, and the minimum cost of a round."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np

import fedjax_sim as fs

_DISTINCT = 20_000  # rows drawn; larger federations repeat them


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and the data of one of its clients.

    Attributes:
      task: function that makes the task.
      draw: function `draw(rng, n)` that returns the columns of n examples.
      size: examples of a client.
      batch_size: B.
      reread: weights that a step of an LSTM reads again, summed over its time steps.
      random: whether the loss draws dropout or distortions.
    """

    task: Callable[[], fs.Task]
    draw: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    size: int
    batch_size: int
    reread: int = 0
    random: bool = False

    def data(self, num_clients):
        """Returns a federation of clients of equal size."""
        n = num_clients * self.size
        drawn = self.draw(np.random.default_rng(0), min(n, _DISTINCT))
        columns = {name: np.resize(column, (n, *column.shape[1:])) for name, column in drawn.items()}
        offsets = np.arange(0, n + 1, self.size, dtype=np.int32)
        return fs.data.FederatedData(columns, offsets)


def draw_images(rng, n, shape):
    """Draws dim, noisy images of ten patterns, `[n, *shape]` uint8, with losses that stay finite."""
    patterns = rng.integers(0, 32, (10, *shape), np.uint8)
    y = rng.integers(0, 10, n, np.int32)
    return {"x": patterns[y] + rng.integers(0, 32, (n, *shape), np.uint8), "y": y}


def draw_text(rng, n, length, symbols, first):
    """Draws lines of symbols from `first` on, by Zipf's law, and the symbol that follows each."""
    share = 1 / np.arange(1, symbols - first + 1)
    line = rng.choice(symbols - first, (n, length + 1), p=share / share.sum()) + first
    return {"x": line[:, :-1].astype(np.uint16), "y": line[:, 1:].astype(np.int32)}


digits = functools.partial(draw_images, shape=(28, 28, 1))
colours = functools.partial(draw_images, shape=(32, 32, 3))
_RECURRENT = 256 * 4 * 256  # weights that each time step of a layer reads


def models(small):
    """Returns name -> `Model`; small ones have few examples and short text."""

    def of(count):
        return 8 if small else count

    length, words, symbols = (8, 4, 50) if small else (80, 10, 10_000)
    chars = functools.partial(draw_text, length=length, symbols=127, first=32)
    messages = functools.partial(draw_text, length=words, symbols=symbols, first=4)
    char_lstm = functools.partial(fs.models.char_lstm, length=length)
    word_lstm = functools.partial(fs.models.word_lstm, symbols, words)
    pfl_cnn = functools.partial(fs.models.dropout_cnn, 10, (32, 32, 3))
    return {
        "2nn": Model(fs.models.mnist_2nn, digits, of(600), 10),
        "2nn-b50": Model(fs.models.mnist_2nn, digits, of(600), 50),
        "cnn": Model(fs.models.mnist_cnn, digits, of(600), 10),
        "cnn-b50": Model(fs.models.mnist_cnn, digits, of(600), 50),
        # Shakespeare's roles have 74 lines on average.
        "char-lstm": Model(char_lstm, chars, of(74), 10, reread=2 * (length - 1) * 2 * _RECURRENT),
        "cifar-cnn": Model(fs.models.cifar_cnn, colours, of(500), 50, random=True),
        "word-lstm": Model(word_lstm, messages, of(80), 8, reread=2 * (words - 1) * _RECURRENT),
        "pfl-cnn": Model(pfl_cnn, colours, of(50), 10, random=True),
    }


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a round on a device.

    Attributes:
      flops: useful operations, three times the products of the forward pass.
      bytes: minimum bytes that weights move, see `COST`.
    """

    flops: float
    bytes: float


COST = (
    "Bytes per step and lane: each weight is read forward and backward, its gradient is written, and "
    "the update reads both and writes the weight, 6 x 4 bytes. In bfloat16 it is 22 bytes, since the "
    "weight is first read and rounded and then half as long, as is its gradient until it is widened. An "
    "LSTM's recurrent weights are read again at every further time step, forward and backward. "
    "Activations and examples are not counted. The binding ceiling is the larger of operations / rate "
    "of products and bytes / bandwidth; the share is that over the time. It may exceed 1 if weights "
    "stay in a cache, or if XLA fuses the update with the gradient."
)
_BYTES = {"float32": 24, "bfloat16": 22}


def cost(model, cohort, dtype="float32"):
    """Returns the `Cost` of a round of `cohort` clients, E = 1."""
    task = model.task()
    one = model.draw(np.random.default_rng(0), 1)
    params = jax.eval_shape(task.init, jax.random.key(0))
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    steps = cohort * math.ceil(model.size / model.batch_size)
    flops = fs.reporting.training_flops(task, one) * model.size * cohort
    return Cost(flops, steps * (_BYTES[dtype] * weights + 4 * model.reread))


def judge(seconds, cost, ceilings, dtype="float32"):
    """Returns a row with a round's time beside the ceilings.

    Args:
      seconds: seconds of a round.
      cost: cost of a round.
      ceilings: rows of `accelerator_ceilings`; those that failed may be missing.
      dtype: type of the products.
    """
    row = {"seconds": seconds, **dataclasses.asdict(cost), "gflops": cost.flops / seconds / 1e9}
    if {f"gemm {dtype}", "bandwidth"} <= ceilings.keys():
        needed = {
            "products": cost.flops / (1e9 * ceilings[f"gemm {dtype}"]["gflops"]),
            "bandwidth": cost.bytes / (1e9 * ceilings["bandwidth"]["gbytes_per_s"]),
        }
        shares = {ceiling: least / seconds for ceiling, least in needed.items()}
        binding = max(shares, key=shares.get)
        row |= {"binding": binding, "share": shares[binding], "shares": shares}
    return row
