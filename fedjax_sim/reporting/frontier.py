"""Loss against communication: tables and plots that compare protocols of model averaging.

M. Kamp et al., "Efficient decentralized deep learning by dynamic model averaging", ECML-PKDD 2018,
https://arxiv.org/abs/1807.03210, compares protocols by cumulative loss and cumulative communication,
with one point per setting.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.core.checks import choose
from fedjax_sim.reporting.plots import save_figure, subplots
from fedjax_sim.simulation import Link, SweepRun

_SETTINGS = (("delta", "Δ"), ("fraction", "C"))  # settings of particular protocols


def frontier_points(
    runs: Sequence[SweepRun], *, protocol: str, period: int, link: Link | None = None
) -> list[dict[str, Any]]:
    """Returns one point per run, ready for JSON.

    Args:
      runs: runs of `dynamic_averaging`.
      protocol: name of the protocol.
      period: `b`.
      link: link for the seconds; `Link()` by default.

    Returns:
      Dicts with the protocol, its settings, the run's totals, and its curves: steps, cumulative loss,
      bytes.

    Raises:
      ValueError: the rows do not record which messages sent all bytes.
    """
    link = link or Link()
    points = []
    for run in runs:
        last, history = run.rows[-1], run.history()
        settings = {name: float(run.hparams[name]) for name, _ in _SETTINGS if name in run.hparams}
        sent = history["bytes_up"] + history["bytes_down"]
        losses = np.nan_to_num(history["cumulative_loss"])  # none before the first round
        points.append(
            {
                "protocol": protocol,
                "b": period,
                "rate": float(run.hparams["client_lr"]),
                "seed": run.seed,
                **{name: value if np.isfinite(value) else "inf" for name, value in settings.items()},
                "examples": last["examples"],
                "cumulative_loss": last.get("cumulative_loss"),
                "bytes": int(sent[-1]),
                "seconds": float(link.seconds(run.rows)[-1]),
                "models_up": last["messages_up"],
                "accuracy": last.get("test_accuracy"),
                "diverged": run.diverged,
                "curve": {
                    "step": [row["round"] * period for row in run.rows],
                    "cumulative_loss": [float(f"{loss:.7g}") for loss in losses],
                    "bytes": [int(count) for count in sent],
                },
            }
        )
    return points


def compare_points(points: Sequence[Mapping[str, Any]], *, period: int) -> list[dict[str, Any]]:
    """Compares each point with periodic averaging every `period` steps at the same rate and seed.

    Returns:
      The points with `loss_ratio`, above 1 where the loss is larger, and `times_fewer_bytes`, None
      (infinite) where nothing was sent. Diverged runs are left out.

    Raises:
      ValueError: `points` holds no such baseline.
    """
    baselines = {
        (point["rate"], point["seed"]): point
        for point in points
        if (point["protocol"], point["b"]) == ("periodic", period) and point["diverged"] is None
    }
    if not baselines:
        raise ValueError(f"no run of periodic averaging with b = {period} to compare with; add one")
    compared = []
    for point in points:
        baseline = baselines.get((point["rate"], point["seed"]))
        if baseline is None or point["diverged"] is not None:
            continue
        fewer = baseline["bytes"] / point["bytes"] if point["bytes"] else None
        ratio = point["cumulative_loss"] / baseline["cumulative_loss"]
        compared.append(dict(point) | {"loss_ratio": ratio, "times_fewer_bytes": fewer})
    return compared


def frontier_table(compared: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table with a line per point of `compare_points`."""
    head = ["rate", "protocol", "loss per example", "loss ratio", "MB", "times fewer bytes", "seconds"]
    head += ["accuracy"]
    lines = [head, ["---:", "---", *["---:"] * (len(head) - 2)]]
    for point in compared:
        fewer = point["times_fewer_bytes"]
        line = [f"{point['rate']:g}", point_label(point)]
        line += [f"{point['cumulative_loss'] / point['examples']:.4f}", f"{point['loss_ratio']:.3f}"]
        line += [f"{point['bytes'] / 1e6:,.1f}", "nothing sent" if fewer is None else f"{fewer:.1f}"]
        accuracy = point["accuracy"]
        lines.append([*line, f"{point['seconds']:,.0f}", "" if accuracy is None else f"{accuracy:.2%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def point_label(point: Mapping[str, Any]) -> str:
    """Returns the protocol and its settings, such as "dynamic, b=10, Δ=0.3"."""
    values = [f"{sign}={point[name]}" for name, sign in _SETTINGS if name in point]
    return ", ".join([point["protocol"], f"b={point['b']}", *values])


def plot_frontier(
    panels: Mapping[str, Sequence[Mapping[str, Any]]], path: str | pathlib.Path, *, axis: str = "bytes"
) -> None:
    """Draws loss per example against communication: a point per run, a line per family of settings.

    The loss of "none" is a horizontal line; other runs that send nothing and diverged runs are left out.

    Args:
      panels: title -> points.
      path: path of the PNG file.
      axis: "bytes" or "seconds".

    Raises:
      ValueError: `axis` is unknown.
    """
    label, unit = choose(
        "axis", axis, {"bytes": ("MB sent, up + down", 1e6), "seconds": ("seconds of communication", 1)}
    )
    figure, grid = subplots(len(panels), squeeze=False)
    for axes, (title, points) in zip(grid[:, 0], panels.items(), strict=True):
        families = {}
        for point in points:
            varied = next((name for name, _ in _SETTINGS if name in point), "b")
            name = point["protocol"] + (f", b={point['b']}" if varied != "b" else "")
            families.setdefault(name, []).append(point)
        for name, family in families.items():
            family = [point for point in family if point["diverged"] is None]
            spoken = sorted((point for point in family if point["bytes"]), key=lambda p: p[axis])
            if spoken:
                losses = [point["cumulative_loss"] / point["examples"] for point in spoken]
                axes.plot([point[axis] / unit for point in spoken], losses, "o-", label=name)
            if name == "none" and family:
                loss = sum(p["cumulative_loss"] / p["examples"] for p in family) / len(family)
                axes.axhline(loss, color="gray", linestyle=":", label="nothing sent")
        axes.set_xscale("log")
        axes.set_title(title)
        axes.set_ylabel("loss per example")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    grid[-1, 0].set_xlabel(label)
    save_figure(figure, path)


def plot_over_time(
    points: Sequence[Mapping[str, Any]],
    path: str | pathlib.Path,
    *,
    drifts: Sequence[int] = (),
    title: str = "",
) -> None:
    """Draws the loss and the bytes between successive rows over a stream's steps.

    Args:
      points: points of `frontier_points`.
      path: path of the PNG file.
      drifts: steps to mark with vertical lines.
      title: title of the figure.
    """
    figure, panels = subplots(2, sharex=True)
    for point in (point for point in points if point["diverged"] is None):
        curve = {name: np.asarray(values, np.float64) for name, values in point["curve"].items()}
        steps, between = curve["step"][1:], np.diff(curve["step"])
        per_step = point["examples"] / curve["step"][-1]
        label = point_label(point)
        panels[0].plot(steps, np.diff(curve["cumulative_loss"]) / (between * per_step), label=label)
        panels[1].plot(steps, np.diff(curve["bytes"]) / between / 1e6, label=label)
    for axes, name in zip(panels, ("loss per example", "MB a step, up + down"), strict=True):
        for step in drifts:
            axes.axvline(step, color="gray", linewidth=0.8, linestyle=":")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    panels[0].set_title(title)
    panels[-1].set_xlabel("steps of each learner")
    save_figure(figure, path)
