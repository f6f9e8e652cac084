"""The FedAvg paper: its cells, figures and workloads, and the code that reproduces them.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629
"""

from papers.fedavg.cells import (
    PublishedCell,
    batch_value,
    choose_rows,
    choose_target,
)
from papers.fedavg.figures import (
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
from papers.fedavg.page import (
    render_page,
)
from papers.fedavg.published import (
    PARTS,
    published,
)
from papers.fedavg.reproduction import (
    default_limit,
    evaluation,
    paper_algorithm,
    paper_clients,
    paper_data,
    run_cell,
    run_curves,
)
from papers.fedavg.tables import (
    ACCEPTED,
    render_tables,
    reproduction_table,
    reproduction_text,
    tables_that_ran,
)
from papers.fedavg.two_models import (
    FIGURE_1_RECORD,
    average_two_models,
)
from papers.fedavg.workloads import (
    WORKLOADS,
    Workload,
)

__all__ = [
    "ACCEPTED",
    "BEST",
    "EACH",
    "FIGURES",
    "FIGURE_1_RECORD",
    "LOSS",
    "PARTS",
    "WORKLOADS",
    "Figure",
    "PublishedCell",
    "Workload",
    "average_two_models",
    "batch_value",
    "choose_rows",
    "choose_target",
    "default_limit",
    "draw_figure",
    "evaluation",
    "figure_cells",
    "figure_panels",
    "figure_rates",
    "figure_record",
    "figure_rounds",
    "paper_algorithm",
    "paper_clients",
    "paper_data",
    "published",
    "render_page",
    "render_tables",
    "reproduction_table",
    "reproduction_text",
    "run_cell",
    "run_curves",
    "tables_that_ran",
]
