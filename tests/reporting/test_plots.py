"""Pictures and event files: read back, and found to show what they were given."""

import struct
import sys

import matplotlib.image
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.reporting import (
    plot_curve,
    plot_curves,
    plot_labels,
    plots,
    write_tensorboard,
    x_axis,
)

ROUNDS = np.arange(0, 50, 5)
CURVE = {
    "round": ROUNDS,
    "test_accuracy": 1 - 0.9 * np.exp(-ROUNDS / 10),
    "train_loss": np.r_[np.nan, np.exp(-ROUNDS[1:] / 20)],
    "test_loss": 1.2 * np.exp(-ROUNDS / 20),
}
# A round is a model of 1 MB to each of 10 clients, and an update of half of that back.
SENT = dict.fromkeys(("trips_down_model", "trips_up_update"), ROUNDS)
SENT |= dict.fromkeys(("messages_down_model", "messages_up_update"), 10 * ROUNDS)
SENT |= dict.fromkeys(("bytes_down", "bytes_down_model"), 10_000_000 * ROUNDS)
SENT |= dict.fromkeys(("bytes_up", "bytes_up_update"), 5_000_000 * ROUNDS)
LINK = fs.simulation.Link(up_mbps=2, down_mbps=8, latency_ms=500)
SPREAD = {f"client_accuracy_{name}": CURVE["test_accuracy"] - 0.02 for name in ("median", "p10", "p90")}


def colours(path):
    """How many colours a picture has; greys, which empty axes have too, do not count."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = (matplotlib.image.imread(path) * 255).astype(np.uint8)
    height, width, channels = pixels.shape
    assert 300 < height < 2000
    assert 300 < width < 2000
    assert channels in (3, 4)
    found = np.unique(pixels[..., :3].reshape(-1, 3), axis=0).astype(int)
    return (found.max(axis=1) - found.min(axis=1) > 60).sum()


@pytest.fixture
def figures(monkeypatch):
    """The figures saved, beside their files."""
    saved = []
    save = plots.save_figure

    def keep(figure, path):
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", keep)
    return saved


def test_a_curve_shows_accuracy_and_losses(tmp_path, figures):
    plot_curve(CURVE, tmp_path / "curve.png", target=0.8, title="digits")
    assert colours(tmp_path / "curve.png") > 10
    top, bottom = figures[0].axes
    assert top.get_title() == "digits"
    lines = {line.get_label(): line for line in top.lines}
    assert set(lines) == {"test accuracy", "target 0.8"}
    np.testing.assert_array_equal(lines["test accuracy"].get_xdata(), ROUNDS)
    np.testing.assert_array_equal(lines["test accuracy"].get_ydata(), CURVE["test_accuracy"])
    assert {line.get_label() for line in bottom.lines} == {"train loss", "test loss"}
    assert bottom.get_yscale() == "log"
    assert [text.get_text() for text in top.get_legend().get_texts()] == list(lines)


@pytest.mark.parametrize(
    ("axis", "along", "label"),
    [
        ("rounds", ROUNDS, "communication rounds"),
        ("bytes", 15 * ROUNDS, "MB sent, up and down"),
        (
            "seconds",
            (0.5 + 1 + 0.5 + 2) * ROUNDS,
            "seconds of communication at 2 Mbit/s up, 8 down, 500 ms",
        ),
    ],
)
def test_a_curve_runs_over_rounds_bytes_or_seconds(tmp_path, figures, axis, along, label):
    values, said = x_axis(CURVE | SENT, axis, LINK)
    np.testing.assert_allclose(values, along)
    assert said == label
    path = tmp_path / "curve.png"
    plot_curve(CURVE | SENT | SPREAD, path, target=0.8, axis=axis, link=LINK)
    assert colours(path) > 10
    panels = figures[0].axes
    assert [axes.get_xlabel() for axes in panels] == [""] * (len(panels) - 1) + [label]
    curves = [line for axes in panels for line in axes.lines if "target" not in line.get_label()]
    assert all(np.allclose(line.get_xdata(), along) for line in curves)
    assert len(panels) == (2 if axis == "bytes" else 3)
    if axis != "bytes":
        sent = {line.get_label(): line.get_ydata() for line in panels[2].lines}
        np.testing.assert_array_equal(sent["sent up"], 5 * ROUNDS)
        np.testing.assert_array_equal(sent["sent down"], 10 * ROUNDS)
        assert panels[2].get_yscale() == "linear"


def test_by_default_the_link_is_the_usual_one_and_a_spread_is_said():
    values, label = x_axis(CURVE | SENT, "seconds")
    np.testing.assert_array_equal(values, fs.simulation.Link().seconds(SENT))
    assert "spread" not in label
    _, label = x_axis(CURVE | SENT, "seconds", fs.simulation.Link(spread=0.25))
    assert label.endswith("at 8 Mbit/s up, 24 down, 50 ms, spread 0.25")


def test_a_run_that_sends_nothing_has_no_panel_of_bytes(tmp_path, figures):
    silent = CURVE | {"bytes_up": 0 * ROUNDS, "bytes_down": 0 * ROUNDS}
    for axis in ("rounds", "bytes", "seconds"):
        plot_curve(silent, tmp_path / f"{axis}.png", axis=axis)
        colours(tmp_path / f"{axis}.png")
    assert [len(figure.axes) for figure in figures] == [2, 2, 2]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (
            "bytes",
            r"does not record what was sent \(older ones do not\), so bytes are unknown; draw it over",
        ),
        ("seconds", "so seconds are unknown; draw it over rounds, or run it again"),
        ("byte", "unknown axis 'byte'; did you mean 'bytes'"),
    ],
)
def test_what_a_run_does_not_tell_is_no_axis(tmp_path, axis, message):
    with pytest.raises(ValueError, match=message):
        plot_curve(CURVE, tmp_path / "curve.png", axis=axis)
    assert not list(tmp_path.iterdir())


def test_a_curve_shows_the_spread_of_the_clients(tmp_path, figures):
    plot_curve(CURVE | SPREAD, tmp_path / "curve.png")
    assert colours(tmp_path / "curve.png") > 10
    assert len(figures[0].axes[0].collections) == 1


@pytest.mark.parametrize(
    "history",
    [
        {"round": ROUNDS},
        {"round": ROUNDS, "train_loss": np.full(10, np.nan)},
        {name: column[:1] for name, column in CURVE.items()},
    ],
)
def test_a_curve_of_next_to_nothing_is_still_drawn(tmp_path, history):
    plot_curve(history, tmp_path / "curve.png")
    colours(tmp_path / "curve.png")


def test_more_than_two_panels_stand_side_by_side_each_with_its_target(tmp_path, figures):
    panels = {name: {"a": ([0, 1], [0.1, 0.7]), "b": ([0, 2], [0.2, 0.6])} for name in "xyz"}
    plot_curves(dict(list(panels.items())[:2]), tmp_path / "two.png", target=0.5)
    plot_curves(panels, tmp_path / "three.png", target={"x": 0.5, "z": 0.9}, title="many")
    assert colours(tmp_path / "three.png") > 10
    two, three = (figure.axes for figure in figures)
    assert [len({axes.get_position().x0 for axes in drawn}) for drawn in (two, three)] == [1, 2]
    assert [axes.get_title() for axes in three] == ["x", "y", "z"]
    assert [[line.get_ydata()[0] for line in axes.lines[2:]] for axes in two] == [[0.5], [0.5]]
    assert [[line.get_ydata()[0] for line in axes.lines[2:]] for axes in three] == [[0.5], [], [0.9]]
    assert [bool(axes.get_xlabel()) for axes in three] == [False, True, True]


def heights_of(axes):
    """What the bars show, `[clients, labels]`."""
    return np.array([[bar.get_height() for bar in bars] for bars in axes.containers]).T


def test_labels_are_drawn_for_every_client(tmp_path, figures):
    data = toys.federation()
    plot_labels(data, tmp_path / "labels.png")
    assert colours(tmp_path / "labels.png") >= toys.CLASSES
    (axes,) = figures[0].axes
    assert axes.get_title() == "labels of 10 clients"
    np.testing.assert_array_equal(heights_of(axes), data.label_histogram())
    tops = [
        max(bar.get_y() + bar.get_height() for bar in bars)
        for bars in zip(*axes.containers, strict=True)
    ]
    np.testing.assert_array_equal(tops, toys.SIZES)


def test_of_many_clients_a_part_is_drawn_and_said(tmp_path, figures):
    data = toys.federation(np.arange(300) % 7)
    plot_labels(data, tmp_path / "labels.png")
    assert colours(tmp_path / "labels.png") >= toys.CLASSES
    (axes,) = figures[0].axes
    assert axes.get_title() == "labels of 200 of 300 clients"
    heights = heights_of(axes)
    assert heights.shape == (200, toys.CLASSES)
    np.testing.assert_array_equal(heights[[0, -1]], data.label_histogram()[[0, -1]])


def test_pictures_leave_the_callers_figures_alone(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot_curve(CURVE, tmp_path / "curve.png")
    assert pyplot.get_fignums() == before


def scalars(directory):
    """`{(name, round): value}` of the one events file there."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (path,) = directory.iterdir()
    content, position, found = path.read_bytes(), 0, {}
    while position < len(content):
        # A record: its length, a checksum of that, the event, a checksum of that.
        (length,) = struct.unpack_from("<Q", content, position)
        event = event_pb2.Event.FromString(content[position + 12 : position + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        position += length + 16
    return found


def test_tensorboard_holds_the_rows_of_the_last_writing(tmp_path):
    pytest.importorskip("tensorboardX")
    rows = [
        {"round": 0, "test_accuracy": 0.125, "round_seconds": None},
        {"round": 5, "test_accuracy": 0.75, "round_seconds": 0.5},
    ]
    for written in (rows, rows[:1]):
        assert write_tensorboard(written, tmp_path / "tensorboard")
        expected = {
            (name, row["round"]): value
            for row in written
            for name, value in row.items()
            if name != "round" and value is not None
        }
        assert scalars(tmp_path / "tensorboard") == expected
        # The name tells the second, so the next writing might otherwise fall on the same file.
        (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
        path.rename(path.with_name("events.out.tfevents.0.old"))


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert not write_tensorboard([{"round": 0, "test_loss": 1.0}], tmp_path / "tensorboard")
    assert not list(tmp_path.iterdir())


def test_symbols_of_a_language_have_no_picture(tmp_path):
    dataset = fs.data.from_arrays(np.zeros((4, 2)), np.array([0, 1, 2, 200]), num_classes=258)
    clients = fs.data.federate(dataset, fs.data.iid(num_clients=2))
    assert not plot_labels(clients, tmp_path / "labels.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="258 labels, whose colours cannot be told apart"):
        clients.plot_labels()


def test_clients_draw_their_labels_themselves():
    from matplotlib import pyplot

    data = toys.federation()
    _, given = pyplot.subplots()
    assert data.plot_labels(given) is given
    np.testing.assert_array_equal(heights_of(given), data.label_histogram())
    own = data.plot_labels()
    assert own is not given
    np.testing.assert_array_equal(heights_of(own), data.label_histogram())
    pyplot.close("all")
