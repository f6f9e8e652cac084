"""Reports of a run beside its metrics, for people and programs."""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from fedjax_sim.reporting.plots import plot_curve
from fedjax_sim.simulation import Link, Result
from fedjax_sim.simulation.workdir import write_json


def write_report(
    result: Result,
    workdir: str | pathlib.Path,
    *,
    title: str = "",
    flops_per_example: int | None = None,
    axis: str = "rounds",
    link: Link | None = None,
) -> dict[str, Any]:
    """Writes summary.json, curve.png and, if tensorboardX is installed, TensorBoard events.

    Args:
      result: result of `simulate`.
      workdir: an existing directory.
      title: title of the plot.
      flops_per_example: useful operations to train on one example (see `training_flops`); adds the
        achieved rate to the summary.
      axis: x-axis of the plot, see `x_axis`.
      link: link for the summary's `link_seconds`, the time of communication; `Link()` by default.

    Returns:
      The summary.

    Raises:
      ValueError: `axis` is unknown, or the rows do not record what was sent.
    """
    workdir = pathlib.Path(workdir)
    link = link or Link()
    summary = result.summary()
    rate = summary["examples_per_second"]
    if flops_per_example is not None:
        summary["useful_flops_per_second"] = None if rate is None else rate * flops_per_example
    summary["link"] = dataclasses.asdict(link)
    summary["link_seconds"] = float(link.seconds(result.rows)[-1])
    write_json(workdir / "summary.json", summary)
    curve = workdir / "curve.png"
    plot_curve(result.history(), curve, target=result.target, title=title, axis=axis, link=link)
    write_tensorboard(result.rows, workdir / "tensorboard")
    return summary


def write_tensorboard(rows: list[dict], directory: pathlib.Path) -> bool:
    """Writes all rows as TensorBoard scalars, replacing those written before.

    Metrics that are vectors, such as one number per class, become one scalar per entry, name/0 and so
    on; those of more axes are left out.

    Returns:
      True if scalars were written, False without tensorboardX.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return False
    shutil.rmtree(directory, ignore_errors=True)
    with SummaryWriter(str(directory)) as writer:
        for row in rows:
            add_scalars(writer, row)
    return True


def add_scalars(writer: Any, row: Mapping[str, Any]) -> None:
    """Adds the numbers of a row to a tensorboardX `SummaryWriter`."""
    for name, number in scalars_of(row).items():
        writer.add_scalar(name, number, row["round"])


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row but its round, those of a vector as name/0 and so on."""
    scalars = {}
    for name, value in row.items():
        is_vector = isinstance(value, list)
        scalars |= {f"{name}/{i}": v for i, v in enumerate(value)} if is_vector else {name: value}
    known = {k: v for k, v in scalars.items() if v is not None and not isinstance(v, list)}
    return {name: number for name, number in known.items() if name != "round"}
