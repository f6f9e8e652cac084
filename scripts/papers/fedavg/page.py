"""A self-contained page of a reproduction: tables beside the paper's, figures, every cell's curves."""

import base64
import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from papers.fedavg.figures import FIGURES
from papers.fedavg.tables import tables_that_ran
from papers.fedavg.two_models import FIGURE_1_SENTENCE

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 62em; padding: 0 0.8em 3em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: 0.85em; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25em 0.6em; text-align: left; white-space: nowrap; }
tr.missed td { background: #fff1e6; }
img, svg { height: auto; max-width: 100%; }
details { border-bottom: 1px solid #eee; padding: 0.3em 0; }
summary { cursor: pointer; }
code { font-size: 0.85em; overflow-wrap: anywhere; }
"""
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")


def render_page(records: Mapping[str, Mapping[str, Any]], pictures: Mapping[int, pathlib.Path]) -> str:
    """Returns an HTML page without outside resources, readable on a phone.

    Args:
      records: records of all cells that have run, by name.
      pictures: paths of the drawn figures, by number.
    """
    body = ["<h1>Federated Averaging, reproduced</h1>", _introduction(records)]
    raced: set[str] = set()
    for title, cells, rows in tables_that_ran(records):
        body += [f"<h2>{html.escape(title)}</h2>", _table(rows)]
        if cells[0].workload.note:
            body.append(f"<p>{html.escape(cells[0].workload.note)}</p>")
        raced |= {cell.name for cell in cells}
    for number, picture in sorted(pictures.items()):
        sentence = FIGURE_1_SENTENCE if number == 1 else FIGURES[number].sentence
        body += [f"<h2>Figure {number}</h2>", f"<p>{html.escape(sentence)}</p>", _image(picture)]
    body.append("<h2>All runs: command, machine, versions, curves</h2>")
    body += [_details(name, record, name in raced) for name, record in records.items()]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>FedAvg, reproduced</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _introduction(records: Mapping[str, Mapping[str, Any]]) -> str:
    machines = {_machine(record["machine"]) for record in records.values()}
    versions = {_versions(record["versions"]) for record in records.values()}
    dates = sorted(record["date"][:10] for record in records.values())
    when = "" if not dates else f"{dates[0]} to {dates[-1]}"
    return (
        "<p>H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "
        '<a href="https://arxiv.org/abs/1602.05629">Communication-efficient learning of deep networks '
        "from decentralized data</a>, AISTATS 2017. Rounds are communication rounds until the monotone "
        "curve of test accuracy, interpolated linearly, crosses the target, at the best learning rate "
        "of a cell; several seeds are averaged, each at its own best rate. In parentheses: speedups "
        "over the first row of a column.</p>"
        f"<p>Run {html.escape(when)} on {html.escape('; '.join(sorted(machines)))}, with "
        f"{html.escape('; '.join(sorted(versions)))}.</p>"
    )


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    lines = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in row.values())
        lines.append(f"<tr{' class=missed' if 'missed' in row.values() else ''}>{cells}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _image(path: pathlib.Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def _details(name: str, record: Mapping[str, Any], raced: bool) -> str:
    facts = (
        f"{record['seconds']:.0f} s on {record['date']}; {_machine(record['machine'])}; "
        f"{_versions(record['versions'])}"
    )
    if record.get("commit"):
        facts += f"; commit {record['commit']}"
    if record["runs"]:
        rates = ", ".join(f"{rate:g}" for rate in sorted({run["rate"] for run in record["runs"]}))
        seeds = ", ".join(map(str, sorted({run["seed"] for run in record["runs"]})))
        facts = f"rates {rates}; seeds {seeds}; {facts}"
    return (
        f"<details><summary>{html.escape(name)}</summary><p>{html.escape(facts)}</p>"
        f"<p><code>{html.escape(record['command'])}</code></p>"
        f"<p><code>{html.escape(json.dumps(record['cell']))}</code></p>"
        f"{_drawing(record['runs'], record['cell']['target']) if raced else ''}</details>"
    )


def _drawing(runs: Sequence[Mapping[str, Any]], target: float) -> str:
    """Returns an SVG of a cell's curves near the target: accuracy over rounds."""
    width, height, low = 640, 220, max(0.0, target - 0.12)
    high = max([target, *(max(run["accuracy"]) for run in runs)]) + 0.005
    last = max(max(run["rounds"][-1] for run in runs), 1)

    def y(accuracy):
        return height - 20 - (max(accuracy, low) - low) / (high - low) * (height - 30)

    parts = [
        f'<line x1="0" x2="{width}" y1="{y(target):.1f}" y2="{y(target):.1f}" stroke="#999"/>',
        f'<text x="2" y="{y(target) - 3:.1f}" font-size="11">{target:g}</text>',
        f'<text x="2" y="{height - 4}" font-size="11">{low:.2f}, round 0</text>',
        f'<text x="{width - 80}" y="{height - 4}" font-size="11">round {last}</text>',
    ]
    legend = []
    for i, run in enumerate(runs):
        colour = _COLOURS[i % len(_COLOURS)]
        points = " ".join(
            f"{r / last * width:.1f},{y(a):.1f}"
            for r, a in zip(run["rounds"], run["accuracy"], strict=True)
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
        end = "" if run["diverged"] is None else f", diverged in round {run['diverged']}"
        label = f"rate {run['rate']:g}, seed {run['seed']}{end}"
        legend.append(f'<span style="color: {colour}">{label}</span>')
    picture = f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
    return f"{picture}<p>{'; '.join(legend)}</p>"


def _machine(machine: Mapping[str, Any]) -> str:
    device = "" if machine["backend"] == "cpu" else f", {machine['device']}"
    return f"{machine['processor']}, {machine['cores']} cores{device}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
