"""The paper's figures: whose curves they draw, from which runs."""

import pytest
from papers import fedavg
from record_samples import IID, curve_record, figure_1_record, loss_record, record


def test_figures_are_drawn_of_what_was_run(tmp_path):
    assert {fedavg.draw_figure(n, {}, tmp_path) for n in (1, *fedavg.FIGURES)} == {None}
    records = {fedavg.FIGURE_1_RECORD: figure_1_record(), IID: record(50, 40, 60)}
    records["loss-cnn-noniid-C0.1-E5-B10"] = loss_record()
    drawn = {n for n in (1, *fedavg.FIGURES) if fedavg.draw_figure(n, records, tmp_path)}
    assert drawn == {1, 6, 7, 8}
    assert {path.name for path in tmp_path.iterdir()} == {f"figure{n}.png" for n in drawn}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    ((title, curves),) = fedavg.figure_panels(7, records).items()
    assert title == "IID"
    rounds, accuracies = curves["E=1, B=10"]
    assert (list(rounds), list(accuracies)) == ([0, 41, 51, 61], [0.1, 0.98, 0.98, 0.98])
    ((title, curves),) = fedavg.figure_panels(8, records).items()
    assert (title, curves) == ("non-IID, two digits each", {"E=5, B=10, rate 0.1": ([0, 2], [2.3, 0.4])})


def test_a_figure_of_two_models_has_panels_for_each():
    models = ("cnn", "lstm")
    records = {f"{m}-{p}-C0.1-E5-B10": record(9, 5, 7) for m in models for p in ("iid", "noniid")}
    assert list(fedavg.figure_panels(2, records)) == [
        "CNN, IID",
        "CNN, non-IID, two digits each",
        "LSTM, IID",
        "LSTM, non-IID, a role of a play each",
    ]
    assert {cell.model for cell in fedavg.figure_cells(2)} == {"cnn"}
    assert {cell.model for cell in fedavg.figure_cells(2, "lstm")} == {"lstm"}
    with pytest.raises(ValueError, match=r"unknown model of figure 2 '2nn'.* Known: cnn, lstm"):
        fedavg.figure_cells(2, "2nn")


@pytest.mark.parametrize(
    ("number", "name", "title", "label", "scale"),
    [
        (3, "lstm-noniid-C0.1-E20-B10", "non-IID, a role of a play each", "E=20, B=10", 1),
        (4, "cifar-iid-C0.1-E1-Binf", "IID", "FedSGD", 1),
        (9, "cifar-iid-sgd-B50", "IID", "SGD, B=50", 1),
        (9, "cifar-iid-C0-E5-B50", "IID", "C=0, E=5, B=50", 50),
        (9, "cifar-iid-C0.1-E1-B50", "IID", "E=1, B=50", 100),
        (10, "word-noniid-m200-E5-B8", "authors", "E=5, B=8", 1),
    ],
)
def test_a_figures_own_curves_are_as_they_were(tmp_path, number, name, title, label, scale):
    record = curve_record([0, 2, 4], [0.1, 0.5, 0.3], rates=(0.15, 0.25))
    record["runs"][1]["seed"] = 1
    records = {f"figure{number}-{name}": record}
    (cell,) = (cell for cell in fedavg.FIGURES[number].cells if cell.name == name)
    assert fedavg.figure_record(number, cell) in records
    curves = {f"{label}, rate 0.15": ([0, 2 * scale, 4 * scale], [0.1, 0.5, 0.3])}
    assert fedavg.figure_panels(number, records) == {title: curves}
    assert fedavg.draw_figure(number, records, tmp_path).name == f"figure{number}.png"


def test_a_figures_own_runs_have_its_rounds_and_rates():
    figures = fedavg.FIGURES
    assert fedavg.figure_rounds(4, figures[4].cells[0]) == (2000, 20)
    assert fedavg.figure_rounds(4, figures[4].cells[0], 30) == (30, 1)
    assert fedavg.figure_rounds(6, figures[6].cells[0]) == (30, 2)
    assert fedavg.figure_rounds(10, figures[10].cells[0]) == (820, 20)
    rounds = [fedavg.figure_rounds(9, cell, 3) for cell in figures[9].cells]
    assert rounds == [(1500, 15), (150, 2), (30, 1), (15, 1), (3, 1)]  # of 1,500 gradients
    for number, rates in ((3, (1.47,)), (4, (0.45, 0.6, 0.7)), (6, (0.215,)), (10, (18.0,))):
        assert fedavg.figure_rates(number, figures[number].cells[0], None) == rates
    assert fedavg.figure_rates(10, figures[10].cells[0], record(50, 60, 40)) == (0.464,)
