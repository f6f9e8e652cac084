"""FedAvg in Flower's simulation engine, as its PyTorch quickstart has it, a process per core."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

sys.path += [str(Path(__file__).parents[i]) for i in (1, 2)]
import client
from torch_models import MODELS, report
from workers import load_job, serve

CORES = len(os.sched_getaffinity(0))
app = ServerApp()


@app.main()
def main(grid, context):
    job, model, initial, clients = client.prepared()

    def run_round():
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=len(clients))
        result = strategy.start(grid=grid, initial_arrays=ArrayRecord(initial), num_rounds=1)
        return result.arrays.to_torch_state_dict()

    versions = {name: version(name) for name in ("flwr", "ray", "torch")}
    serve("Flower", versions, run_round, lambda s: report(model, initial, s, job), threads=CORES)


if __name__ == "__main__":
    job = load_job(sys.argv[-1])
    if job.model not in MODELS:
        sys.exit(f"no {job.model}: PyTorch's LSTM has no peepholes")
    # For the engine's processes.
    places = [str(Path(__file__).parents[i]) for i in range(3)]
    os.environ |= {"PYTHONPATH": os.pathsep.join(places), "JOB": sys.argv[-1]}
    run_simulation(
        app,
        client.app,
        num_supernodes=len(job.offsets) - 1,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": CORES, "log_to_driver": False},
        },
    )
