"""What tables say of bytes, and their notes."""

import html

from papers import fedavg
from record_samples import one, record

import fedjax_sim as fs


def with_bytes(found, *sent):
    """The record with these bytes to the target, one for each run."""
    runs = [run | {"bytes_to_target": n} for run, n in zip(found["runs"], sent, strict=True)]
    return found | {"runs": runs}


def test_a_sweeps_table_has_the_megabytes_at_the_best_rates():
    settings = {"C": 0.1, "E": 1, "B": "inf", "u": 1}
    two = record(50, 40, 60, **settings)
    two["runs"] += [one(0.1, 20, seed=1), one(0.215, 30, seed=1), one(0.464, None, seed=1)]
    table = fs.reporting.sweep_table(
        [
            with_bytes(two, 5e6, 4_000_000, 6e6, 2_500_000, 3e6, None),
            with_bytes(record(None, None, None, **settings), None, None, None),
            record(50, 40, 60, **settings),  # an older one
        ]
    )
    assert [row["megabytes_to_target"] for row in table] == [3.25, None, None]
    lines = [line.strip("| ").split(" | ") for line in fs.reporting.sweep_markdown(table).splitlines()]
    (column,) = (i for i, name in enumerate(lines[0]) if name == "MB to target, up + down")
    assert [line[column] for line in lines[2:]] == ["3.2", "-", "-"]


def test_the_papers_tables_have_no_bytes():
    name = "2nn-iid-C0.1-E1-B10"
    found = record(50, 40, 60)
    tables = [fedavg.render_tables({name: cell}) for cell in (found, with_bytes(found, 5, 4, 6))]
    assert tables[0] == tables[1]
    assert "MB" not in tables[0]


def test_a_note_stands_below_each_table_of_what_it_is_about():
    known = {
        "2nn-iid-C0.1-E1-B10": record(50, 40, 60),
        "cnn-iid-C0.1-E1-B10": record(5, 4, 6, target=0.99),
    }
    first, second, cnn = fedavg.render_tables(known).split("## ")[1:]
    note = fedavg.WORKLOADS["2nn"].note
    assert first.endswith(f"|\n\n{note}\n\n")
    assert second.startswith("Table 2, cnn")
    assert note not in second
    assert cnn.endswith(f"|\n\n{note}\n")
    page = fedavg.render_page(known, {})
    assert page.count(f"<p>{html.escape(note)}</p>") == 2
