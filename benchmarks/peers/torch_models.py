"""The compared models in PyTorch, a job's data and parameters for them, and a client's SGD."""

import functools

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d, relu
from workers import PROBE, norms


class TwoNN(nn.Module):
    """Two hidden layers of 200: 199,210 parameters."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 200)
        self.fc2 = nn.Linear(200, 200)
        self.fc3 = nn.Linear(200, 10)

    def forward(self, x):
        x = relu(self.fc1(x.flatten(1)))
        return self.fc3(relu(self.fc2(x)))


class CNN(nn.Module):
    """Two convolutions of 5 x 5 and two dense layers: 1,663,370 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc1 = nn.Linear(64 * 7 * 7, 512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, x):
        x = max_pool2d(relu(self.conv1(x)), 2)
        x = max_pool2d(relu(self.conv2(x)), 2)
        return self.fc2(relu(self.fc1(x.flatten(1))))


class DropoutCNN(nn.Module):
    """Two convolutions of 3 x 3 and two dense layers: 1,626,442 parameters on 32 x 32 x 3.

    Args:
      rates: dropout rates of the pooled values and of the 128 units.
    """

    def __init__(self, rates=(0.25, 0.5)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 14 * 14, 128)
        self.fc2 = nn.Linear(128, 10)
        self.drops = nn.ModuleList(nn.Dropout(rate) for rate in rates)

    def forward(self, x):
        x = max_pool2d(relu(self.conv2(relu(self.conv1(x)))), 2)
        x = relu(self.fc1(self.drops[0](x).flatten(1)))
        return self.fc2(self.drops[1](x))


class CharLSTM(nn.Module):
    """Two layers of 256 units, each with a second bias that is constant: 865,042 trained parameters."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(258, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.lstm.bias_hh_l1.requires_grad_(False)
        self.fc = nn.Linear(256, 258)

    def forward(self, x):
        x, _ = self.lstm(self.embedding(x))
        return self.fc(x)


def images(x):
    """Bytes in NHWC order as floats in PyTorch's, a view, so channels last in memory."""
    return torch.from_numpy((x.astype(np.float32) / 255).transpose(0, 3, 1, 2))


def text(x):
    return torch.from_numpy(x.astype(np.int64))


def image_state(params):
    """The job's parameters, which are in NHWC order, in PyTorch's."""
    state = {}
    for layer, p in params.items():
        kernel = p["kernel"]
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif layer == "fc1" and "conv2" in params:
            inputs, units = kernel.shape
            size = round((inputs / 64) ** 0.5)
            kernel = kernel.reshape(size, size, 64, units).transpose(3, 2, 0, 1).reshape(units, inputs)
        else:
            kernel = kernel.T
        state[f"{layer}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        state[f"{layer}.bias"] = torch.from_numpy(p["bias"])
    return state


def char_lstm_state(params):
    """The job's parameters, with gates in the order i, g, f, o, in PyTorch's order i, f, g, o."""

    def permuted(array):
        i, g, f, o = np.split(array, 4, axis=-1)
        return np.concatenate([i, f, g, o], axis=-1).T

    state = {
        "embedding.weight": params["characters"]["embedding"],
        "fc.weight": params["fc"]["kernel"].T,
        "fc.bias": params["fc"]["bias"],
    }
    for i, layer in enumerate(("lstm1", "lstm2")):
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        units = len(bias) // 4
        state[f"lstm.weight_ih_l{i}"] = permuted(kernel[:-units])
        state[f"lstm.weight_hh_l{i}"] = permuted(kernel[-units:])
        state[f"lstm.bias_ih_l{i}"] = permuted(bias)
        state[f"lstm.bias_hh_l{i}"] = np.repeat(np.float32([0, 1, 0, 0]), units)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}


# The module, and what takes the job's x and parameters to it.
MODELS = {
    "2nn": (TwoNN, images, image_state),
    "cnn": (CNN, images, image_state),
    "dropout-cnn": (DropoutCNN, images, image_state),
    "lstm": (CharLSTM, text, char_lstm_state),
}


def mean_loss(logits, y):
    """Returns the mean cross-entropy over images, or over all positions of texts."""
    return cross_entropy(logits.flatten(0, -2), y.flatten())


def train(model, x, y, job):
    """E epochs of SGD on one client's examples, in batches of B."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=job.learning_rate)
    for _ in range(job.local_epochs):
        if job.draws:
            order = torch.randperm(len(y), device=y.device)
            x, y = x[order], y[order]
        batch_size = job.batch_size or len(y)
        for xb, yb in zip(x.split(batch_size), y.split(batch_size), strict=True):
            optimizer.zero_grad()
            mean_loss(model(xb), yb).backward()
            optimizer.step()


def prepare(job):
    """Returns the job's model, initial state and clients.

    Returns:
      A tuple of
        model: module, on a GPU if there is one.
        initial: its state before the round.
        clients: list of `(x, y)`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, decode, to_state = MODELS[job.model]
    if job.model == "dropout-cnn" and not job.draws:
        module = functools.partial(DropoutCNN, rates=(0.0, 0.0))
    # Channels last, because on two Zen 5 cores a step of the CNN then takes 3.0 ms where PyTorch's
    # own order takes 3.6 (B = 10), and 13.3 where it takes 14.5 (B = 50).
    model = module().to(device, memory_format=torch.channels_last)
    initial = {name: p.to(device) for name, p in to_state(job.params).items()}
    x = decode(job.x).to(device)
    y = torch.from_numpy(job.y).long().to(device)
    sizes = np.diff(job.offsets).tolist()
    return model, initial, list(zip(x.split(sizes), y.split(sizes), strict=True))


@torch.no_grad()
def report(model, initial, state, job):
    """Returns what a round is compared by, see `workers.serve`."""
    model.load_state_dict(state)
    model.eval()
    device = next(model.parameters()).device
    x = MODELS[job.model][1](job.x[:PROBE]).to(device)
    loss = mean_loss(model(x), torch.from_numpy(job.y[:PROBE]).long().to(device))
    model.train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    before, after = ([s[name].cpu() for name in trained] for s in (initial, state))
    return {"loss": loss.item(), **norms(before, after)}
