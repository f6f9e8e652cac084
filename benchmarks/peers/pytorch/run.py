"""FedAvg in PyTorch: a loop over clients, one model that each trains in its turn, on a GPU if there."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d, relu

sys.path.append(str(Path(__file__).parents[2]))
from workers import PROBE, load_job, norms, serve


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
        elif kernel.shape[0] == 64 * 7 * 7:
            kernel = kernel.reshape(7, 7, 64, -1).transpose(3, 2, 0, 1).reshape(-1, 64 * 7 * 7)
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
    "lstm": (CharLSTM, text, char_lstm_state),
}


def mean_loss(logits, y):
    """Of images or of all positions of a text."""
    return cross_entropy(logits.flatten(0, -2), y.flatten())


def train(model, x, y, job):
    """E epochs of SGD on one client's examples, in batches of B."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=job.learning_rate)
    for _ in range(job.local_epochs):
        if job.shuffle:
            order = torch.randperm(len(y), device=y.device)
            x, y = x[order], y[order]
        batch_size = job.batch_size or len(y)
        for xb, yb in zip(x.split(batch_size), y.split(batch_size), strict=True):
            optimizer.zero_grad()
            mean_loss(model(xb), yb).backward()
            optimizer.step()


def main(path, one_thread):
    # By itself PyTorch uses a thread for each core. On two cores the 2NN's products are too small to
    # share and one thread is faster; the CNN's are not.
    if one_thread:
        torch.set_num_threads(1)
    job = load_job(path)
    if job.model not in MODELS:
        sys.exit(f"no {job.model}: PyTorch's LSTM has no peepholes")
    module, decode, to_state = MODELS[job.model]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # TF32, which is what JAX multiplies with by default on such devices, and PyTorch convolves with.
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    initial = {name: p.to(device) for name, p in to_state(job.params).items()}
    # Channels last, because on two Zen 5 cores a step of the CNN then takes 3.0 ms where PyTorch's
    # own order takes 3.6 (B = 10), and 13.3 where it takes 14.5 (B = 50).
    model = module().to(device, memory_format=torch.channels_last)
    x = decode(job.x).to(device)
    y = torch.from_numpy(job.y).long().to(device)
    sizes = np.diff(job.offsets).tolist()
    clients = list(zip(x.split(sizes), y.split(sizes), strict=True))

    def run_round():
        average = {name: torch.zeros_like(p) for name, p in initial.items()}
        for xk, yk in clients:
            model.load_state_dict(initial)
            train(model, xk, yk, job)
            for name, p in model.state_dict().items():
                average[name].add_(p, alpha=len(yk) / len(y))
        if device.type == "cuda":
            torch.cuda.synchronize()  # so that the clock sees the end
        return average

    @torch.no_grad()
    def report(average):
        model.load_state_dict(average)
        loss = mean_loss(model(x[:PROBE]), y[:PROBE])
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        before, after = ([state[name].cpu() for name in trained] for state in (initial, average))
        return {"loss": loss.item(), **norms(before, after)}

    versions = {"torch": torch.__version__, "device": str(device)}
    serve("PyTorch", versions, run_round, report, threads=torch.get_num_threads())


if __name__ == "__main__":
    main(sys.argv[-1], "--one_thread" in sys.argv)
