"""A client of Flower; its module is imported in each of the engine's processes."""

import functools
import os

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch_models import prepare, train
from workers import load_job

app = ClientApp()


@functools.cache
def prepared():
    """Returns the job that the variable JOB names, its model, initial state and clients."""
    torch.set_num_threads(1)
    job = load_job(os.environ["JOB"])
    return job, *prepare(job)


@app.train()
def train_client(message, context):
    job, model, _, clients = prepared()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = clients[context.node_config["partition-id"]]
    train(model, x, y, job)
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(y)}),
    }
    return Message(content=RecordDict(content), reply_to=message)
