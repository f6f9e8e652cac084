"""Rate searches, records, tables, plots and operation counts of runs."""

from fedjax_sim.reporting.frontier import (
    compare_points,
    frontier_points,
    frontier_table,
    plot_frontier,
    plot_over_time,
    point_label,
)
from fedjax_sim.reporting.grids import neighbour, rate_grid
from fedjax_sim.reporting.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from fedjax_sim.reporting.operation_counts import training_flops
from fedjax_sim.reporting.plots import AXES, plot_curve, plot_curves, plot_labels, x_axis
from fedjax_sim.reporting.rate_search import (
    MOST_RATES,
    Best,
    best_of_each_seed,
    envelope,
    expected_updates,
    five_digits,
    mean_rounds,
    run_history,
    sweep_rates,
)
from fedjax_sim.reporting.records import (
    Records,
    claimed_workdir,
    provenance,
    write_csv,
    write_lines,
    write_text,
)
from fedjax_sim.reporting.report import write_report, write_tensorboard
from fedjax_sim.reporting.tables import (
    RESULT_COLUMNS,
    markdown,
    rates_text,
    ratio,
    result_columns,
    speedup_text,
    sweep_markdown,
    sweep_table,
    value_text,
)
from fedjax_sim.simulation.workdir import write_json

__all__ = [
    "AXES",
    "MOST_RATES",
    "RESULT_COLUMNS",
    "Best",
    "CSVLogger",
    "Records",
    "TensorBoardLogger",
    "WandbLogger",
    "best_of_each_seed",
    "claimed_workdir",
    "compare_points",
    "envelope",
    "expected_updates",
    "five_digits",
    "frontier_points",
    "frontier_table",
    "markdown",
    "mean_rounds",
    "neighbour",
    "plot_curve",
    "plot_curves",
    "plot_frontier",
    "plot_labels",
    "plot_over_time",
    "point_label",
    "provenance",
    "rate_grid",
    "rates_text",
    "ratio",
    "result_columns",
    "run_history",
    "speedup_text",
    "sweep_markdown",
    "sweep_rates",
    "sweep_table",
    "training_flops",
    "value_text",
    "write_csv",
    "write_json",
    "write_lines",
    "write_report",
    "write_tensorboard",
    "write_text",
    "x_axis",
]
