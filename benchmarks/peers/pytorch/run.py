"""FedAvg in PyTorch: a loop over clients, one model that each trains in its turn, on a GPU if there.

`--one_thread` computes with one thread, `--process_per_core` with as many processes of one thread.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import torch

sys.path += [str(Path(__file__).parents[i]) for i in (1, 2)]
from torch_models import MODELS, prepare, report, train
from workers import load_job, serve


def weighted_sum(model, initial, clients, job, total):
    """Trains clients in turn and adds their models, weighted, to `total`."""
    count = sum(len(y) for _, y in clients)
    for p in total.values():
        p.zero_()
    for x, y in clients:
        model.load_state_dict(initial)
        train(model, x, y, job)
        for name, p in model.state_dict().items():
            total[name].add_(p, alpha=len(y))
    return count


def work(job, share, total, connection):
    """Trains its share of the clients, largest first, whenever told to, in a process of its own."""
    torch.set_num_threads(1)
    model, initial, clients = prepare(job)
    clients.sort(key=lambda client: len(client[1]), reverse=True)  # so that shares are about equal
    connection.send("ready")
    while connection.recv():
        connection.send(weighted_sum(model, initial, clients[share[0] :: share[1]], job, total))


def started(job, initial):
    """Starts a process per core; returns their connections and the sums that they share."""
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    workers = []
    for i in range(cores):
        ours, theirs = context.Pipe()
        total = {name: torch.zeros_like(p).share_memory_() for name, p in initial.items()}
        arguments = (job, (i, cores), total, theirs)
        context.Process(target=work, args=arguments, daemon=True).start()
        workers.append((ours, total))
    for connection, _ in workers:
        connection.recv()
    return workers


def main(path, how):
    # By itself PyTorch uses a thread for each core. On two cores the 2NN's products are too small to
    # share and one thread is faster; the CNN's are not.
    if how:
        torch.set_num_threads(1)
    job = load_job(path)
    if job.model not in MODELS:
        sys.exit(f"no {job.model}: PyTorch's LSTM has no peepholes")
    on_gpu = torch.cuda.is_available()
    if on_gpu and how:
        sys.exit(f"{how} is for a CPU; this machine has a GPU")
    # TF32, which is what JAX multiplies with by default on such devices, and PyTorch convolves with.
    torch.set_float32_matmul_precision("high" if on_gpu else "highest")
    model, initial, clients = prepare(job)
    workers = started(job, initial) if how == "--process_per_core" else None

    def run_round():
        if workers:
            for connection, _ in workers:
                connection.send(True)
            counts = [connection.recv() for connection, _ in workers]
            totals = [total for _, total in workers]
            return {name: sum(t[name] for t in totals) / sum(counts) for name in initial}
        total = {name: torch.zeros_like(p) for name, p in initial.items()}
        count = weighted_sum(model, initial, clients, job, total)
        if on_gpu:
            torch.cuda.synchronize()  # so that the clock sees the end
        return {name: p / count for name, p in total.items()}

    versions = {"torch": torch.__version__, "device": "cuda" if on_gpu else "cpu"}
    threads = len(workers) if workers else torch.get_num_threads()
    serve("PyTorch", versions, run_round, lambda s: report(model, initial, s, job), threads=threads)


if __name__ == "__main__":
    main(sys.argv[-1], next((arg for arg in sys.argv[1:-1] if arg.startswith("--")), None))
