"""FedAvg in pfl-research, from the parts of its benchmark of CIFAR-10; `--one_thread` for one thread."""

import sys
import types
from importlib.metadata import version
from pathlib import Path

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel

sys.path += [str(Path(__file__).parents[i]) for i in (1, 2)]
from torch_models import MODELS, mean_loss, prepare, report
from workers import load_job, serve

NEVER = 10**9  # rounds between evaluations; only the first round, which is not timed, has some


def main(path, one_thread):
    if one_thread:
        torch.set_num_threads(1)
    job = load_job(path)
    if job.model not in MODELS or job.model == "lstm":
        sys.exit(f"no {job.model}: pfl's benchmarks have none")
    module, initial, clients = prepare(job)
    module.loss = types.MethodType(lambda self, x, y, eval=False: mean_loss(self(x), y), module)
    module.metrics = types.MethodType(lambda self, x, y, eval=True: {}, module)
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    users = list(range(len(clients)))
    datasets = [Dataset(raw_data=list(client)) for client in clients]
    data = FederatedDataset(datasets.__getitem__, get_user_sampler("minimize_reuse", users))
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
    algorithm = FederatedAveraging()
    train_params = NNTrainHyperParams(
        local_learning_rate=job.learning_rate,
        local_num_epochs=job.local_epochs,
        local_batch_size=job.batch_size or None,
    )
    rounds = 0

    def run_round():
        nonlocal rounds
        rounds += 1
        module.load_state_dict(initial)
        algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=rounds,  # continues after those before
                evaluation_frequency=NEVER,
                train_cohort_size=len(users),
                val_cohort_size=0,
            ),
            backend,
            model,
            train_params,
            NNEvalHyperParams(local_batch_size=None),
            send_metrics_to_platform=False,
        )
        return {name: p.clone() for name, p in module.state_dict().items()}

    versions = {"pfl": version("pfl"), "torch": torch.__version__}
    threads = torch.get_num_threads()
    serve("pfl", versions, run_round, lambda state: report(module, initial, state, job), threads=threads)


if __name__ == "__main__":
    main(sys.argv[-1], "--one_thread" in sys.argv)
