"""The rounds that `round_time.py` times: models, clients' sizes, data and the jobs of participants."""

import dataclasses
import math

import numpy as np
from workers import save_job

# Maximum relative differences of one round between implementations. Rounding that flips a ReLU near
# zero moves the CNN's update by up to 0.5 %, even between two memory layouts of one library.
TOLERANCE = {"loss": 1e-3, "param_norm": 1e-3, "update_norm": 1e-2}
# The LSTM is smooth, so all agree to 1e-6. Swapping gates i and o, the mistake that changes least, is
# 1e-3 away, but only at a rate at which the round moves the gates: at 0.1 it is 1e-6.
SMOOTH = {"loss": 1e-5, "param_norm": 1e-5, "update_norm": 1e-4}


@dataclasses.dataclass(frozen=True)
class Layer:
    """The shapes of a layer's arrays, and the number of positions of an example they apply to."""

    shapes: dict[str, tuple[int, ...]]
    positions: int = 1

    @property
    def flops(self):
        """Forward operations of one example: two per weight and position, counting biases as weights."""
        return 2 * self.positions * sum(math.prod(shape) for shape in self.shapes.values())


def affine(*kernel, positions=1, **others):
    """Returns a layer of a kernel, a bias and other arrays."""
    return Layer({"kernel": kernel, "bias": kernel[-1:], **others}, positions)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model.

    Attributes:
      data: "digits", "colours" or "text".
      layers: layers by name.
      learning_rate: learning rate of its clients.
      tolerance: maximum relative differences of a round.
    """

    data: str
    layers: dict[str, Layer]
    learning_rate: float
    tolerance: dict[str, float]

    @property
    def flops(self):
        """Forward operations of one example."""
        return sum(layer.flops for layer in self.layers.values())


def char_lstm(**others):
    """Returns the FedAvg paper's model of Shakespeare; `others` are further arrays of its LSTMs."""
    layers = {
        "characters": Layer({"embedding": (258, 8)}, positions=0),  # only looked up
        "lstm1": affine(8 + 256, 4 * 256, positions=80, **others),
        "lstm2": affine(256 + 256, 4 * 256, positions=80, **others),
        "fc": affine(256, 258, positions=80),
    }
    return Model("text", layers, learning_rate=1.0, tolerance=SMOOTH)


MODELS = {
    "2nn": Model(
        "digits",
        {"fc1": affine(784, 200), "fc2": affine(200, 200), "fc3": affine(200, 10)},
        learning_rate=0.1,
        tolerance=TOLERANCE,
    ),
    "cnn": Model(
        "digits",
        {
            "conv1": affine(5, 5, 1, 32, positions=28 * 28),
            "conv2": affine(5, 5, 32, 64, positions=14 * 14),
            "fc1": affine(7 * 7 * 64, 512),
            "fc2": affine(512, 10),
        },
        learning_rate=0.1,
        tolerance=TOLERANCE,
    ),
    # That of pfl-research's benchmark of CIFAR-10.
    "dropout-cnn": Model(
        "colours",
        {
            "conv1": affine(3, 3, 3, 32, positions=30 * 30),
            "conv2": affine(3, 3, 32, 64, positions=28 * 28),
            "fc1": affine(14 * 14 * 64, 128),
            "fc2": affine(128, 10),
        },
        learning_rate=0.1,
        tolerance=TOLERANCE,
    ),
    "lstm": char_lstm(),
    "lstm-peepholes": char_lstm(peepholes=(3, 256)),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One round: a model, the clients' sizes and the batch size (0 for all of a client's examples)."""

    model: str
    sizes: tuple[int, ...]
    batch_size: int

    @property
    def flops(self):
        """Useful operations: three times those of the forward pass; padding does not count."""
        return 3 * MODELS[self.model].flops * sum(self.sizes)


def lognormal_sizes(num_clients, total, sigma):
    """Draws sizes of at least 1 that add up to `total`."""
    share = np.random.default_rng(0).lognormal(sigma=sigma, size=num_clients)
    ends = np.round(np.cumsum(share) / share.sum() * (total - num_clients)).astype(int)
    return tuple((np.diff(ends, prepend=0) + 1).tolist())


EQUAL, RAGGED = "2nn-20x300-b10", "2nn-20ragged-b10"
ROWS = {
    "2nn-10x600-b10": Row("2nn", (600,) * 10, 10),
    "2nn-10x600-b50": Row("2nn", (600,) * 10, 50),
    "2nn-10x600-binf": Row("2nn", (600,) * 10, 0),
    "cnn-10x100-b10": Row("cnn", (100,) * 10, 10),
    "cnn-10x100-b50": Row("cnn", (100,) * 10, 50),
    "cnn-10x600-b10": Row("cnn", (600,) * 10, 10),
    "cnn-10x600-b50": Row("cnn", (600,) * 10, 50),
    EQUAL: Row("2nn", (300,) * 20, 10),
    RAGGED: Row("2nn", lognormal_sizes(20, 6000, sigma=1.2), 10),
    "dropout-cnn-10x50-b10": Row("dropout-cnn", (50,) * 10, 10),
    "dropout-cnn-50x50-b10": Row("dropout-cnn", (50,) * 50, 10),
    "dropout-cnn-1000x10-b10": Row("dropout-cnn", (10,) * 1000, 10),
    "lstm-10x20-b10": Row("lstm", (20,) * 10, 10),
    "lstm-peepholes-10x20-b10": Row("lstm-peepholes", (20,) * 10, 10),
    # Shakespeare's roles have 74 lines on average.
    "lstm-shakespeare-10-b10": Row("lstm", lognormal_sizes(10, 740, sigma=1.2), 10),
}


def load_digits(data_dir):
    """Returns MNIST's training images, `[n, 28, 28, 1]` uint8, and labels, `[n]` int32."""
    import fedjax_sim

    if data_dir:
        train, _ = fedjax_sim.data.load("mnist", data_dir=data_dir)
    else:
        train, _ = fedjax_sim.data.load("mnist5k")
    return train.examples["x"].reshape(-1, 28, 28, 1), train.examples["y"].astype(np.int32)


def draw_colours():
    """Draws images, `[n, 32, 32, 3]` uint8, and labels, `[n]` int32."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5000, 32, 32, 3), np.uint8), rng.integers(0, 10, 5000, np.int32)


def draw_text():
    """Draws lines of characters, `[n, 80]` uint16, and the characters that follow, `[n, 80]` int32."""
    share = 1 / np.arange(1, 96)  # Zipf's, of the printable characters
    drawn = np.random.default_rng(0).choice(95, (1000, 81), p=share / share.sum()) + ord(" ")
    return drawn[:, :-1].astype(np.uint16), drawn[:, 1:].astype(np.int32)


def draw_array(rng, kind, shape):
    """Draws an initial value: Glorot's for weights with inputs, else zeros."""
    if kind not in ("kernel", "embedding"):
        return np.zeros(shape, np.float32)
    *window, fan_in, fan_out = shape
    limit = math.sqrt(6 / (math.prod(window) * (fan_in + fan_out)))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def make_job(path, row, data, *, local_epochs=1, draws=True):
    """Writes `row` as a job on a random subset of its model's data, repeated if too small.

    Args:
      path: path of the job.
      row: row to run.
      data: `{name: (x, y)}`, see `Model`.
      local_epochs: E.
      draws: whether clients shuffle and drop units.
    """
    rng = np.random.default_rng(0)
    model = MODELS[row.model]
    x, y = data[model.data]
    chosen = np.resize(rng.permutation(len(y)), sum(row.sizes))
    params = {
        name: {kind: draw_array(rng, kind, shape) for kind, shape in layer.shapes.items()}
        for name, layer in model.layers.items()
    }
    save_job(
        path,
        x=x[chosen],
        y=y[chosen],
        offsets=np.cumsum([0, *row.sizes]),
        params=params,
        model=row.model,
        batch_size=row.batch_size,
        local_epochs=local_epochs,
        learning_rate=model.learning_rate,
        draws=draws,
    )
