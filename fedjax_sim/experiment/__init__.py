"""What papers and people want of runs: protocols, published tables, pictures, reports, counts."""

from fedjax_sim.experiment.averaging import FIGURE_1_RECORD, average_two_models
from fedjax_sim.experiment.cells import PublishedCell, batch_value, choose_rows, choose_target
from fedjax_sim.experiment.figures import (
    BEST,
    EACH,
    FIGURES,
    LOSS,
    Figure,
    draw_figure,
    figure_cells,
    figure_panels,
    figure_rates,
    figure_record,
    figure_rounds,
)
from fedjax_sim.experiment.flops import training_flops
from fedjax_sim.experiment.frontier import (
    compare_points,
    frontier_points,
    frontier_table,
    plot_frontier,
    plot_over_time,
    point_label,
)
from fedjax_sim.experiment.grids import rate_grid
from fedjax_sim.experiment.page import render_page
from fedjax_sim.experiment.plots import AXES, plot_curve, plot_curves, plot_labels, x_axis
from fedjax_sim.experiment.protocol import (
    Best,
    best_of_each_seed,
    envelope,
    expected_updates,
    mean_rounds,
    run_history,
    sweep_rates,
)
from fedjax_sim.experiment.published import PARTS, published
from fedjax_sim.experiment.records import (
    Records,
    claimed_workdir,
    provenance,
    write_csv,
    write_lines,
    write_text,
)
from fedjax_sim.experiment.report import write_report, write_tensorboard
from fedjax_sim.experiment.reproduction import (
    default_limit,
    evaluation,
    paper_algorithm,
    paper_clients,
    paper_data,
    run_cell,
    run_curves,
)
from fedjax_sim.experiment.tables import (
    markdown,
    render_tables,
    reproduction_table,
    reproduction_text,
    sweep_markdown,
    sweep_table,
    tables_that_ran,
)
from fedjax_sim.experiment.workloads import WORKLOADS, Workload

__all__ = [
    "AXES",
    "BEST",
    "EACH",
    "FIGURES",
    "FIGURE_1_RECORD",
    "LOSS",
    "PARTS",
    "WORKLOADS",
    "Best",
    "Figure",
    "PublishedCell",
    "Records",
    "Workload",
    "average_two_models",
    "batch_value",
    "best_of_each_seed",
    "choose_rows",
    "choose_target",
    "claimed_workdir",
    "compare_points",
    "default_limit",
    "draw_figure",
    "envelope",
    "evaluation",
    "expected_updates",
    "figure_cells",
    "figure_panels",
    "figure_rates",
    "figure_record",
    "figure_rounds",
    "frontier_points",
    "frontier_table",
    "markdown",
    "mean_rounds",
    "paper_algorithm",
    "paper_clients",
    "paper_data",
    "plot_curve",
    "plot_curves",
    "plot_frontier",
    "plot_labels",
    "plot_over_time",
    "point_label",
    "provenance",
    "published",
    "rate_grid",
    "render_page",
    "render_tables",
    "reproduction_table",
    "reproduction_text",
    "run_cell",
    "run_curves",
    "run_history",
    "sweep_markdown",
    "sweep_rates",
    "sweep_table",
    "tables_that_ran",
    "training_flops",
    "write_csv",
    "write_lines",
    "write_report",
    "write_tensorboard",
    "write_text",
    "x_axis",
]
