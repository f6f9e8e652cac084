"""What papers and people want of runs: protocols, published tables, pictures, reports, counts."""

from fedjax_sim.experiment.figures import (
    FIGURE_1_RECORD,
    FIGURES,
    average_two_models,
    draw_figure,
    figure_cells,
    figure_panels,
    loss_name,
    run_loss,
)
from fedjax_sim.experiment.flops import training_flops
from fedjax_sim.experiment.grids import rate_grid
from fedjax_sim.experiment.page import render_page
from fedjax_sim.experiment.plots import plot_curve, plot_curves, plot_labels
from fedjax_sim.experiment.protocol import (
    Best,
    best_of_each_seed,
    envelope,
    expected_updates,
    mean_rounds,
    sweep_rates,
)
from fedjax_sim.experiment.published import PARTS, PublishedCell, batch_value, choose_rows, published
from fedjax_sim.experiment.records import (
    Records,
    claim_workdir,
    provenance,
    write_csv,
    write_lines,
    write_text,
)
from fedjax_sim.experiment.report import write_report, write_tensorboard
from fedjax_sim.experiment.reproduction import (
    default_limit,
    paper_algorithm,
    paper_clients,
    run_cell,
)
from fedjax_sim.experiment.tables import (
    markdown,
    render_tables,
    reproduction_table,
    reproduction_text,
    sweep_markdown,
    sweep_table,
)

__all__ = [
    "FIGURES",
    "FIGURE_1_RECORD",
    "PARTS",
    "Best",
    "PublishedCell",
    "Records",
    "average_two_models",
    "batch_value",
    "best_of_each_seed",
    "choose_rows",
    "claim_workdir",
    "default_limit",
    "draw_figure",
    "envelope",
    "expected_updates",
    "figure_cells",
    "figure_panels",
    "loss_name",
    "markdown",
    "mean_rounds",
    "paper_algorithm",
    "paper_clients",
    "plot_curve",
    "plot_curves",
    "plot_labels",
    "provenance",
    "published",
    "rate_grid",
    "render_page",
    "render_tables",
    "reproduction_table",
    "reproduction_text",
    "run_cell",
    "run_loss",
    "sweep_markdown",
    "sweep_rates",
    "sweep_table",
    "training_flops",
    "write_csv",
    "write_lines",
    "write_report",
    "write_tensorboard",
    "write_text",
]
