"""Stages and ends of aggregation; `fs.aggregate` chains them."""

from fedjax_sim.aggregation.aggregator import Aggregator, aggregate
from fedjax_sim.aggregation.clip import clip
from fedjax_sim.aggregation.ends import End, keep_updates, majority_vote, mean
from fedjax_sim.aggregation.gaussian import gaussian
from fedjax_sim.aggregation.krum import krum
from fedjax_sim.aggregation.median import median, trimmed_mean
from fedjax_sim.compression.error_feedback import error_feedback
from fedjax_sim.core.stage import Stage

__all__ = [
    "Aggregator",
    "End",
    "Stage",
    "aggregate",
    "clip",
    "error_feedback",
    "gaussian",
    "keep_updates",
    "krum",
    "majority_vote",
    "mean",
    "median",
    "trimmed_mean",
]
