"""FedAvg in PyTorch: a loop over clients, one model that each of them trains in its turn."""

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


def state_dict(params):
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


def train(model, x, y, job):
    """E epochs of SGD on one client's examples, in batches of B."""
    optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
    for _ in range(job.local_epochs):
        if job.shuffle:
            order = torch.randperm(len(y))
            x, y = x[order], y[order]
        batch_size = job.batch_size or len(y)
        for xb, yb in zip(x.split(batch_size), y.split(batch_size), strict=True):
            optimizer.zero_grad()
            cross_entropy(model(xb), yb).backward()
            optimizer.step()


def main(path, one_thread):
    # By itself PyTorch uses a thread for each core. On two cores the 2NN's products are too small to
    # share and one thread is faster; the CNN's are not.
    if one_thread:
        torch.set_num_threads(1)
    job = load_job(path)
    initial = state_dict(job.params)
    # Channels last, because on two Zen 5 cores a step of the CNN then takes 3.0 ms where PyTorch's
    # own order takes 3.6 (B = 10), and 13.3 where it takes 14.5 (B = 50).
    model = {"2nn": TwoNN, "cnn": CNN}[job.model]().to(memory_format=torch.channels_last)
    x = torch.from_numpy(job.x.transpose(0, 3, 1, 2))  # A view, so channels last as well.
    y = torch.from_numpy(job.y).long()
    sizes = np.diff(job.offsets).tolist()
    clients = list(zip(x.split(sizes), y.split(sizes), strict=True))

    def run_round():
        average = {name: torch.zeros_like(p) for name, p in initial.items()}
        for xk, yk in clients:
            model.load_state_dict(initial)
            train(model, xk, yk, job)
            for name, p in model.state_dict().items():
                average[name].add_(p, alpha=len(yk) / len(y))
        return average

    @torch.no_grad()
    def report(average):
        model.load_state_dict(average)
        loss = cross_entropy(model(x[:PROBE]), y[:PROBE])
        return {"loss": loss.item(), **norms(initial.values(), average.values())}

    versions = {"torch": torch.__version__}
    serve("PyTorch", versions, run_round, report, threads=torch.get_num_threads())


if __name__ == "__main__":
    main(sys.argv[-1], "--one_thread" in sys.argv)
