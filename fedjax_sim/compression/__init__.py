"""Codecs that make updates smaller; each is a stage of `fs.aggregate` and composes by `>>`.

`error_feedback`, `ef21` and `power_sgd` are stages with client memory, which `>>` does not compose.
"""

from fedjax_sim.compression.cast import bfloat16, fp8
from fedjax_sim.compression.codec import Codec, Step, Subspace, whole
from fedjax_sim.compression.drive import drive
from fedjax_sim.compression.eden import eden
from fedjax_sim.compression.ef21 import ef21
from fedjax_sim.compression.error_feedback import error_feedback
from fedjax_sim.compression.hadamard import hadamard_transform
from fedjax_sim.compression.power_sgd import power_sgd
from fedjax_sim.compression.qsgd import qsgd
from fedjax_sim.compression.quantize import quantize
from fedjax_sim.compression.rotate import rotate
from fedjax_sim.compression.sign import sign
from fedjax_sim.compression.structured import low_rank, random_mask
from fedjax_sim.compression.subsample import random_k, subsample
from fedjax_sim.compression.tern_grad import tern_grad
from fedjax_sim.compression.top_k import top_k
from fedjax_sim.compression.wire import Wire, num_bytes

__all__ = [
    "Codec",
    "Step",
    "Subspace",
    "Wire",
    "bfloat16",
    "drive",
    "eden",
    "ef21",
    "error_feedback",
    "fp8",
    "hadamard_transform",
    "low_rank",
    "num_bytes",
    "power_sgd",
    "qsgd",
    "quantize",
    "random_k",
    "random_mask",
    "rotate",
    "sign",
    "subsample",
    "tern_grad",
    "top_k",
    "whole",
]
