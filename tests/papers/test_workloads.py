"""What the paper's cells are run on: their clients, and the learning rates to begin with."""

import pytest
from papers import fedavg

import fedjax_sim as fs
from fedjax_sim.reporting.grids import neighbour, resolution


def cell_of(table, model, partition):
    """The first cell with this partition."""
    return next(c for c in fedavg.published(table, model) if c.partition == partition)


def test_starting_rates_are_three_neighbours_of_the_papers_grid():
    for part in fedavg.PARTS:
        for cell in fedavg.published(*part):
            low, middle, high = cell.starting_rates()
            if cell.model == "cifar":  # figure 4's
                assert low < middle < high
            elif cell.model == "word":  # one step beside the paper's best
                assert middle == {"fed_sgd": 18, "fed_avg": 9}[cell.algorithm]
                assert [middle / low, high / middle] == pytest.approx([10 ** (1 / 3)] * 2, rel=3e-3)
            else:
                assert [neighbour(middle, 3, -1), neighbour(middle, 3, 1)] == [low, high]
                assert resolution([low, middle, high]) == 3


def labelled(rows, **keys):
    """Rows whose labels take turns."""
    labels = [i % 10 for i in range(rows)]
    return fs.data.from_arrays([[0.0]] * rows, labels, num_classes=10, keys=keys)


@pytest.mark.parametrize(("partition", "labels"), [("iid", 10), ("noniid", 2)])
def test_clients_of_mnist_are_a_hundred_of_six_hundred_examples(partition, labels):
    cell = cell_of(4, "2nn", partition)
    histogram = fedavg.paper_clients(cell, labelled(60_000)).label_histogram()
    assert histogram.shape == (100, 10)
    assert set(histogram.sum(axis=1)) == {600}
    assert max((histogram > 0).sum(axis=1)) == labels


@pytest.mark.parametrize(
    ("table", "model", "partition", "sizes"),
    [
        (2, "lstm", "iid", [1] * 1146),
        (2, "lstm", "noniid", [382] * 3),
        (3, "cifar", "iid", [11] * 54 + [12] * 46),
        (None, "word", "noniid", [573] * 2),
    ],
)
def test_clients_are_the_papers(table, model, partition, sizes):
    rows = 1146
    train = labelled(rows, role=[i % 3 for i in range(rows)], author=[i % 2 for i in range(rows)])
    cell = cell_of(table, model, partition)
    assert sorted(fedavg.paper_clients(cell, train).sizes) == sizes
