"""Small HTML tables, by which objects show themselves in notebooks."""

import html
from collections.abc import Iterable, Sequence
from typing import Any


def table(title: str, lines: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Returns an HTML table; all texts are escaped.

    Args:
      title: text above the table.
      lines: cells of each line; if there is no head, the first names the line.
      head: names of the columns.
    """
    body = [] if not head else ["<tr>" + "".join(f"<th>{_text(name)}</th>" for name in head) + "</tr>"]
    for first, *rest in lines:
        kind = "td" if head else "th"
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in rest)
        body.append(f"<tr><{kind}>{_text(first)}</{kind}>{cells}</tr>")
    return f"<table><caption>{_text(title)}</caption>{''.join(body)}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
