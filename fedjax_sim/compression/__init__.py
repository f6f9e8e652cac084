"""Codecs that make updates smaller; each is a stage of `fs.aggregate` and composes by `>>`."""

from fedjax_sim.compression.codec import Codec
from fedjax_sim.compression.quantize import quantize
from fedjax_sim.compression.top_k import top_k
from fedjax_sim.compression.wire import Wire, num_bytes

__all__ = ["Codec", "Wire", "num_bytes", "quantize", "top_k"]
