"""What papers and people want of runs: pictures, reports, counts."""

from fedjax_sim.experiment.flops import training_flops
from fedjax_sim.experiment.plots import plot_curve, plot_labels
from fedjax_sim.experiment.report import write_report, write_tensorboard

__all__ = ["plot_curve", "plot_labels", "training_flops", "write_report", "write_tensorboard"]
