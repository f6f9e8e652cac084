"""Plots of runs and of federations, written as PNG files. Matplotlib is imported only when used."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim.core.checks import choose
from fedjax_sim.runtime import processes
from fedjax_sim.simulation import Link

AXES = ("rounds", "bytes", "seconds")  # x-axes of curves

_MOST_CLIENTS = 200  # more bars cannot be told apart
_MOST_LABELS = 100  # nor can more colours, and counts of 10,000 words per client would fill the memory


def x_axis(
    history: Mapping[str, np.ndarray], axis: str = "rounds", link: Link | None = None
) -> tuple[np.ndarray, str]:
    """Returns the x-values of a run's curves, and the label of the axis.

    Args:
      history: columns of the run's rows, as `Result.history()` gives them.
      axis: "rounds"; "bytes", the total sent up and down so far; or "seconds" of communication so far,
        see `Link.seconds`.
      link: link for the seconds; `Link()` by default.

    Returns:
      Values `[evaluations]` and the label of the axis; bytes are in MB (10^6 bytes).

    Raises:
      ValueError: `axis` is unknown, or the run does not record what was sent.
    """
    choose("axis", axis, dict.fromkeys(AXES))
    if axis == "rounds":
        return history["round"], "communication rounds"
    if "bytes_up" not in history:
        raise ValueError(
            f"the run does not record what was sent (older ones do not), so {axis} are unknown; draw it "
            "over rounds, or run it again in another workdir"
        )
    if axis == "bytes":
        return (history["bytes_up"] + history["bytes_down"]) / 1e6, "MB sent, up and down"
    link = link or Link()
    speeds = f"{link.up_mbps:g} Mbit/s up, {link.down_mbps:g} down, {link.latency_ms:g} ms"
    spread = f", spread {link.spread:g}" if link.spread else ""
    return link.seconds(history), f"seconds of communication at {speeds}{spread}"


def plot_curve(
    history: Mapping[str, np.ndarray],
    path: str | pathlib.Path,
    *,
    target: float | None = None,
    title: str = "",
    axis: str = "rounds",
    link: Link | None = None,
) -> None:
    """Draws a run's accuracies if there are any, losses, and bytes sent unless they are the x-axis.

    Args:
      history: columns of the run's rows, as `Result.history()` gives them.
      path: path of the PNG file.
      target: accuracy to mark with a line.
      title: title of the figure.
      axis: x-axis of the curves, see `x_axis`.
      link: link for the seconds; `Link()` by default.

    Raises:
      ValueError: see `x_axis`.
    """
    along, label = x_axis(history, axis, link)
    sent = {
        direction: history[f"bytes_{direction}"]
        for direction in ("up", "down")
        if axis != "bytes" and np.any(history.get(f"bytes_{direction}", 0) > 0)
    }
    judged = any(name in history for name in ("test_accuracy", "client_accuracy_median"))
    figure, panels = subplots(1 + bool(judged) + bool(sent), sharex=True, squeeze=False)
    panels = panels[:, 0]
    losses = panels[1] if judged else panels[0]
    if judged:
        _plot_accuracy(panels[0], along, history, target)
    panels[0].set_title(title)
    for name in ("train_loss", "full_train_loss", "test_loss"):
        if name in history and np.isfinite(history[name]).any():
            losses.plot(along, history[name], label=name.replace("_", " "))
    losses.set_yscale("log")
    losses.set_ylabel("loss")
    if sent:
        _plot_sent(panels[-1], along, sent)
    panels[-1].set_xlabel(label)
    for axes in panels:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    save_figure(figure, path)


def plot_curves(
    panels: Mapping[str, Mapping[str, tuple[Any, Any]]],
    path: str | pathlib.Path,
    *,
    target: float | Mapping[str, float] | None = None,
    ylabel: str = "test accuracy",
    log: bool = False,
    xlabel: str = "communication rounds",
    title: str = "",
) -> None:
    """Draws many curves, with panels in one column, or in two if there are more than two panels.

    Args:
      panels: title of a panel -> name of a curve -> (x `[n]`, values `[n]`).
      path: path of the PNG file.
      target: value to mark with a line; if panels differ, title of a panel -> value.
      ylabel: label of the y-axis.
      log: whether the y-axis is logarithmic.
      xlabel: label of the x-axis.
      title: title of the figure.
    """
    columns = 1 if len(panels) <= 2 else 2
    figure, grid = subplots(math.ceil(len(panels) / columns), columns, squeeze=False)
    targets = target if isinstance(target, Mapping) else dict.fromkeys(panels, target)
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
        target = targets.get(name)
        for (label, curve), colour in zip(curves.items(), colours(len(curves)), strict=True):
            axes.plot(*curve, label=label, color=colour)
        if target is not None:
            axes.axhline(target, color="gray", linewidth=0.8)
            best = max((np.max(values) for _, values in curves.values()), default=target)
            axes.set_ylim(bottom=max(0, min(target, best) - 0.2))  # where curves differ
        if log:
            axes.set_yscale("log")
        axes.set_title(name)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid.flat[: len(panels)][-columns:]:
        axes.set_xlabel(xlabel)
    figure.suptitle(title)
    save_figure(figure, path)


def plot_labels(data: Any, path: str | pathlib.Path) -> bool:
    """Writes a picture of the clients' labels, see `draw_labels`, unless there are too many labels.

    Args:
      data: a `FederatedData`.
      path: path of the PNG file.

    Returns:
      True if the plot was written.
    """
    if (data.num_classes or 0) > _MOST_LABELS:
        return False
    figure, axes = subplots(1)
    draw_labels(data, axes)
    save_figure(figure, path)
    return True


def draw_labels(data: Any, axes: Any) -> None:
    """Draws the clients' labels; for arguments and errors see `FederatedData.plot_labels`."""
    if (data.num_classes or 0) > _MOST_LABELS:
        raise ValueError(
            f"the data have {data.num_classes} labels, whose colours cannot be told apart; wanted at "
            f"most {_MOST_LABELS}"
        )
    histogram = data.label_histogram()
    shown = np.arange(len(histogram))
    if len(shown) > _MOST_CLIENTS:
        shown = np.linspace(0, len(histogram) - 1, _MOST_CLIENTS).astype(int)
    by_label = colours(histogram.shape[1])
    below = np.zeros(len(shown))
    for label in range(histogram.shape[1]):
        height = histogram[shown, label]
        axes.bar(np.arange(len(shown)), height, 1.0, below, color=by_label[label], label=label)
        below += height
    part = "" if len(shown) == len(histogram) else f"{len(shown)} of "
    axes.set_title(f"labels of {part}{len(histogram)} clients")
    axes.set_xlabel("client")
    axes.set_ylabel("examples")
    axes.set_xlim(-0.5, len(shown) - 0.5)
    if histogram.shape[1] <= 20:
        axes.legend(title="label", bbox_to_anchor=(1, 1), loc="upper left")


def _plot_accuracy(axes, along, history: Mapping[str, np.ndarray], target: float | None) -> None:
    if "test_accuracy" in history:
        axes.plot(along, history["test_accuracy"], color="tab:blue", label="test accuracy")
    if "client_accuracy_median" in history:
        spread = (history["client_accuracy_p10"], history["client_accuracy_p90"])
        axes.fill_between(along, *spread, alpha=0.2, label="clients, 10 % to 90 %")
    if target is not None:
        axes.axhline(target, color="gray", linewidth=0.8, label=f"target {target:g}")
    axes.set_ylabel("accuracy")


def _plot_sent(axes, along: np.ndarray, sent: Mapping[str, np.ndarray]) -> None:
    styles = {"up": "-", "down": "--"}  # the curves often coincide
    for direction, total in sent.items():
        axes.plot(along, total / 1e6, styles[direction], label=f"sent {direction}")
    axes.set_ylabel("MB so far")


def subplots(rows: int, columns: int = 1, **settings):
    """Returns a figure and its axes, as matplotlib's `Figure.subplots` does."""
    # The object interface leaves a notebook's own figures and backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8 * columns, 1 + 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **settings)


def colours(count: int) -> np.ndarray:
    """Returns colours that can be told apart, `[count, 4]`."""
    from matplotlib import colormaps

    return colormaps["tab10" if count <= 10 else "turbo"](np.linspace(0, 1, count))


def save_figure(figure, path: str | pathlib.Path) -> None:
    """Writes a figure as a PNG file, on the first process only."""
    if not processes.is_first():
        return
    partial = pathlib.Path(f"{path}.partial")  # a killed process leaves no half-written plot
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
