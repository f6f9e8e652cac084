"""Curves of runs, and clients' labels, on matplotlib Axes, for notebooks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.reporting.plots import colours, draw_labels, x_axis
from fedjax_sim.simulation.link import Link


def plot_run(
    history: Mapping[str, np.ndarray],
    metric: str | None = None,
    *,
    axis: str = "rounds",
    link: Link | None = None,
    ax: Any = None,
) -> Any:
    """Draws a metric of one run; for arguments and errors see `Result.plot`, which calls this."""
    metric = _chosen(metric, history)
    along, values, label = _curve(history, metric, axis, link)
    ax = _axes(ax)
    ax.plot(along, values, label=metric.replace("_", " "))
    return _labelled(ax, label, metric)


def plot_runs(
    runs: Sequence[Any],
    metric: str | None = None,
    *,
    axis: str = "rounds",
    link: Link | None = None,
    ax: Any = None,
) -> Any:
    """Draws the mean and the range over seeds; for arguments and errors see `SweepResult.plot`."""
    groups: dict[tuple, list] = {}
    for run in runs:
        groups.setdefault(tuple(run.hparams.items()), []).append(run)
    varied = {name for name in runs[0].hparams if len({run.hparams[name] for run in runs}) > 1}
    curves = []
    for settings, group in groups.items():
        good = [run.history() for run in group if run.diverged is None]
        if not good:
            continue
        metric = _chosen(metric, good[0])
        name = ", ".join(f"{name}={value:g}" for name, value in settings if name in varied) or metric
        if len(good) < len(group):
            name += f" ({len(group) - len(good)} of {len(group)} seeds diverged)"
        curves.append((name, _band(good, metric, axis, link)))
    if not curves:
        raise ValueError("all runs of the sweep diverged, so there is nothing to draw; try lower rates")
    ax = _axes(ax)
    for (name, (along, values, _)), colour in zip(curves, colours(len(curves)), strict=True):
        ax.plot(along, values.mean(axis=0), label=name, color=colour)
        if len(values) > 1:
            ax.fill_between(along, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
    _labelled(ax, curves[0][1][2], metric)
    is_banded = any(len(values) > 1 for _, (_, values, _) in curves)
    ax.legend(title="mean of seeds, band from least to most" if is_banded else None, fontsize="small")
    return ax


def plot_clients(data: Any, ax: Any = None) -> Any:
    """Draws clients' labels; see `FederatedData.plot_labels`, which calls this."""
    ax = _axes(ax)
    draw_labels(data, ax)
    return ax


def _band(
    histories: Sequence[Mapping[str, np.ndarray]], metric: str, axis: str, link: Link | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns x `[n]`, the mean over seeds, values `[seeds, n]` at the rounds of all, and x's label."""
    curves = [_curve(history, metric, axis, link) for history in histories]
    rounds = [history["round"][np.isfinite(history[metric])] for history in histories]
    common = rounds[0]
    for other in rounds[1:]:
        common = np.intersect1d(common, other)
    chosen = [np.isin(each, common) for each in rounds]
    along = [x[where] for (x, _, _), where in zip(curves, chosen, strict=True)]
    values = [y[where] for (_, y, _), where in zip(curves, chosen, strict=True)]
    return np.mean(along, axis=0), np.stack(values), curves[0][2]


def _curve(
    history: Mapping[str, np.ndarray], metric: str, axis: str, link: Link | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns x and the values of a metric where it has any, and x's label.

    Raises:
      ValueError: the metric or the axis is unknown.
    """
    if metric not in history:
        raise ValueError(f"the rows have no metric {metric!r}; they have {', '.join(history)}")
    if history[metric].ndim > 1:
        raise ValueError(
            f"{metric!r} is an array in each row, [{', '.join(map(str, history[metric].shape[1:]))}]; "
            "wanted a metric that is a number: draw an entry of history() yourself"
        )
    along, label = x_axis(history, axis, link)
    known = np.isfinite(history[metric])
    return np.asarray(along)[known], history[metric][known], label


def _chosen(metric: str | None, history: Mapping[str, np.ndarray]) -> str:
    if metric is not None:
        return metric
    return "test_accuracy" if "test_accuracy" in history else "train_loss"


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib import pyplot  # so that a notebook shows the figure

    return pyplot.subplots(layout="constrained")[1]


def _labelled(ax: Any, xlabel: str, metric: str) -> Any:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(metric.replace("_", " "))
    ax.grid(alpha=0.3)
    return ax
