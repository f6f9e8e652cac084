"""Records of cells, the tables and the page made of them."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from papers import fedavg
from record_samples import CIFAR, IID, curve_record, figure_1_record, one, record

import fedjax_sim as fs
from fedjax_sim.reporting import records as records_module
from fedjax_sim.reporting.rate_search import describe_run


def row_of(rounds, name=IID, part=(4, "2nn")):
    """The table's row of a cell whose best rate takes so many rounds."""
    cells = [cell for cell in fedavg.published(*part) if cell.name == name]
    (row,) = fedavg.reproduction_table(cells, {name: record(None, rounds, None)})
    return row


def test_a_record_is_read_as_it_was_written(tmp_path):
    records = fs.reporting.Records(tmp_path / "w")
    assert records.load("b") is None
    assert records.load_all() == {}
    first, second = record(9, 5, None, B="inf"), record(1.5, 2, 3, E=5)
    records.save("b", first)
    records.save("a", second)
    assert records.load("b") == first
    assert list(records.load_all().items()) == [("a", second), ("b", first)]
    assert {path.name for path in (tmp_path / "w").rglob("*")} == {"cells", "a.json", "b.json"}
    lines = records.path("b").read_text().splitlines()
    assert len(lines) == len(first) + 1 + 3 + 2  # of braces, of runs, around them


@pytest.mark.parametrize("text", ["", '{"cell": 1', "[1]", '{"cell": {}}', '{"runs": []}', "null"])
def test_what_is_no_record_is_refused_by_name(tmp_path, text):
    records = fs.reporting.Records(tmp_path)
    records.save("good", record(1, 2, 3))
    records.path("bad").write_text(text)
    for load in (lambda: records.load("bad"), records.load_all):
        with pytest.raises(ValueError, match=r"bad\.json is not .*; delete it to run the cell again"):
            load()


def test_half_written_records_are_passed_over(tmp_path):
    records = fs.reporting.Records(tmp_path)
    records.save("good", record(1, 2, 3))
    records.path("bad").with_name("bad.json.partial").write_text('{"cell": {"E"')
    assert list(records.load_all()) == ["good"]
    assert records.load("bad") is None


def test_a_record_that_is_no_json_leaves_nothing(tmp_path):
    records = fs.reporting.Records(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        records.save("a", {"cell": {"target": float("nan")}, "runs": []})
    assert records.load_all() == {}


def test_a_result_says_where_it_comes_from(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/a b.py", "--rows=E=1/B=10"])
    found = fs.reporting.provenance()
    assert found["command"] == "python 'scripts/a b.py' --rows=E=1/B=10"
    assert found["date"][:2] == "20"
    assert {"processor", "cores", "backend", "device"} == found["machine"].keys()
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy"} <= found["versions"].keys()
    assert found["versions"]["fedjax_sim"] == fs.__version__
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["commit"])


def git(folder, *arguments):
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", "-C", folder, *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a package and a script, as committed; what else it holds is ignored."""
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # of a hook that runs these tests
        monkeypatch.delenv(name, raising=False)
    files = {"package/a.py": "1", "script.py": "2", "results/r.json": "{}", ".gitignore": ".venv\n"}
    for name, text in (files | {".venv/package/a.py": "1"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    return tmp_path


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_that_of_the_source_tree(repository, monkeypatch):
    source, head = repository / "package" / "a.py", git(repository, "rev-parse", "HEAD")
    commit = records_module._commit.__wrapped__
    assert commit(source) == head
    (repository / "results" / "r.json").write_text("[]")  # what a run writes is no change of code
    assert commit(source) == head
    for changed in ("script.py", "package/b.py"):
        (repository / changed).write_text("3")
        assert commit(source) == f"{head}-dirty"
        git(repository, "stash", "--include-untracked")
        assert commit(source) == head
    monkeypatch.setenv("GIT_DIR", os.fspath(repository / "other"))
    assert commit(source) == head


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_package_without_its_repository_has_no_commit(repository, monkeypatch):
    commit = records_module._commit.__wrapped__
    assert commit(repository / ".venv" / "package" / "a.py") is None  # the repository is another's
    shutil.rmtree(repository / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", os.fspath(repository.parent))
    assert commit(repository / "package" / "a.py") is None
    monkeypatch.setenv("PATH", "")
    assert commit(pathlib.Path(__file__)) is None


def test_a_run_is_described_in_few_digits():
    rows = [
        {"round": 0, "test_accuracy": 0.1234567, "train_loss": None, "seconds": 0.0},
        {"round": 5, "test_accuracy": 0.7123456, "train_loss": 0.01234567, "seconds": 1.23456},
    ]
    run = fs.simulation.SweepRun({"client_lr": 0.1, "lr_decay": 1.0}, 3, rows, None, 7)
    expected = {"rate": 0.1, "seed": 3, "rounds_to_target": 3.2, "best_accuracy": 0.71234}
    expected |= {"seconds": 1.23, "diverged": 7, "rounds": [0, 5]}
    expected |= {"accuracy": [0.12345, 0.71234], "train_loss": [None, 0.012346]}
    assert describe_run(run, 0.5) == expected
    assert describe_run(run, None) == expected | {"rounds_to_target": None}
    for row in rows:
        row["full_train_loss"] = 1.2345678
    assert describe_run(run, 0.5) == expected | {"full_train_loss": [1.2346, 1.2346]}


def of_accuracies(*accuracies):
    rows = [
        {"round": n, "test_accuracy": accuracy, "train_loss": None, "seconds": 0.0}
        for n, accuracy in enumerate(accuracies)
    ]
    return fs.simulation.SweepRun({"client_lr": 0.1}, 0, rows, None, None)


@pytest.mark.parametrize(
    ("accuracy", "target", "kept"),
    [
        (0.9699996, 0.97, 0.96999),  # a miss stays one
        (0.9697, 0.97, 0.9697),
        (0.97, 0.97, 0.97),
        (0.9700001, 0.97, 0.97),
        (0.9666666666666667, 0.9666666, 0.9666666666666667),  # and what reaches a fine target reaches it
        (0.9666666666666667, 0.9666667, 0.96666),
        (0.00007, 0.97, 0.00007),  # times 100000 it is less than 7
        (1.0, 1.0, 1.0),
        (0.0, None, 0.0),
    ],
)
def test_rounding_makes_no_hit_of_a_miss_and_no_miss_of_a_hit(accuracy, target, kept):
    found = describe_run(of_accuracies(0.0, accuracy), target)
    assert found["accuracy"] == [0.0, kept]
    assert found["best_accuracy"] == kept
    assert (found["rounds_to_target"] is not None) == (target is not None and accuracy >= target)


def test_decimals_that_are_few_enough_are_kept_as_they_are():
    shares = [k / 10_000 for k in range(10_001)]
    assert describe_run(of_accuracies(*shares), 0.97)["accuracy"] == shares


def test_what_a_record_says_of_the_target_follows_from_its_own_curve():
    run = of_accuracies(0.1, 0.9599996, 0.9750004)
    found = describe_run(run, 0.97)
    assert found["rounds_to_target"] == round(fs.rounds_to_target([0, 1, 2], found["accuracy"], 0.97), 2)
    assert found["rounds_to_target"] == 1.67
    assert found["best_accuracy"] == max(found["accuracy"]) == 0.975


def test_tables_are_written_for_spreadsheets(tmp_path):
    rows = [{"a": 1, "b": None, "c": [0.1, 0.2]}, {"a": "x,y", "b": 2.5, "c": []}]
    fs.reporting.write_csv(tmp_path / "t.csv", rows)
    assert (tmp_path / "t.csv").read_text() == 'a,b,c\n1,,0.1;0.2\n"x,y",2.5,\n'


def test_a_workdir_belongs_to_one_process(tmp_path):
    records = fs.reporting.Records(tmp_path / "w")
    code = "import sys, fedjax_sim as fs\nwith fs.reporting.Records(sys.argv[1]).locked(): print('in')"
    with records.locked():
        with pytest.raises(ValueError, match="another process is running in"), records.locked():
            pass
        command = [sys.executable, "-c", code, tmp_path / "w"]
        other = subprocess.run(command, capture_output=True, text=True)
        assert other.returncode == 1
        assert "another process is running in" in other.stderr
    with records.locked():  # free again
        pass


@pytest.mark.parametrize(
    ("name", "part", "rounds", "verdict"),
    [
        (IID, (4, "2nn"), 115, "met"),  # 1.25 times 92
        (IID, (4, "2nn"), 115.1, "missed"),
        (IID, (1, "2nn"), 115, "missed"),  # more than 1.25 times 87
        (IID, (4, "2nn"), 20, "met"),
        (IID, (4, "2nn"), None, "missed"),
        ("2nn-iid-C0.1-E1-B50", (4, "2nn"), None, "not reached in 115 rounds"),  # of 180 to come
        ("2nn-iid-C0.5-E1-Binf", (1, "2nn"), None, "not reached, as in the paper"),
        ("2nn-iid-C0.5-E1-Binf", (1, "2nn"), 999, "reached"),
    ],
)
def test_the_verdict_is_by_five_quarters_of_the_papers_rounds(name, part, rounds, verdict):
    row = row_of(rounds, name, part)
    assert row["verdict"] == verdict
    assert row["rounds"] == rounds
    assert row["rates"] == [0.1, 0.215, 0.464]
    if row["paper"] and rounds:
        assert row["ratio"] == rounds / row["paper"]


def test_a_published_table_compares_means_over_seeds_with_its_first_row():
    first, other = "2nn-iid-C0.1-E1-Binf", record(50, 40, 60)
    other["runs"] += [one(0.1, 60, seed=1), one(0.215, None, seed=1, diverged=3), one(0.464, 30, seed=1)]
    records = {first: record(800, 700, 900), IID: other}
    rows = fedavg.reproduction_table(fedavg.published(4, "2nn"), records)
    assert [row["row"] for row in rows if row["verdict"] != "not run"] == ["E=1/B=inf", "E=1/B=10"]
    found = next(row for row in rows if (row["row"], row["partition"]) == ("E=1/B=10", "iid"))
    assert (found["rounds"], found["per_seed"], found["rate"]) == (35, [40, 30], [0.215, 0.464])
    assert (found["speedup"], found["interior"], found["diverged"]) == (20, False, [0.215])
    text = fedavg.render_tables(records)
    assert text.count("## Table") == 2
    assert "## Table 4, 2nn: rounds to 97% test accuracy\n\n| row | clients | u |" in text
    assert "| E=1/B=10 | iid | 60 | 92 (16.0x) | 35 (20.0x) | 0.38 | met | 0.215, 0.464 (edge" in text
    assert "| E=1/B=50 | iid | 12 | 144 (10.2x) | - | - | not run | - | - | - | - |" in text


def test_the_speedups_of_a_sweep_are_over_its_first_cell():
    cells = [record(*r, C=0.1, E=e, B="inf", u=e) for e, r in ((1, (50, 40, 60)), (5, (None, 10, 25)))]
    rows = fs.reporting.sweep_table([*cells, record(None, None, None, C=0.1, E=9, B=10, u=36.5)])
    assert [(row["E"], row["rounds"], row["speedup"]) for row in rows] == [
        (1, 40, 1),
        (5, 10, 4),
        (9, None, None),
    ]
    text = fs.reporting.sweep_markdown(rows).splitlines()
    assert len(text) == 5
    assert text[3].startswith("| 0.1 | 5 | inf | 5 | 10 (4.0x) | 0.215 | 0.1, 0.215, 0.464 | 10 |")
    assert text[4].startswith("| 0.1 | 9 | 10 | 36.5 | - | 0.1 (edge of the grid) |")
    assert (fs.reporting.sweep_table([]), fs.reporting.markdown([])) == ([], "")
    assert fs.reporting.markdown([{"a": "1", "b": "2"}]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_every_target_of_a_part_is_a_table_of_the_same_runs():
    records = {CIFAR: curve_record([0, 100, 200, 300, 400], [0.1, 0.79, 0.81, 0.8, 0.83])}
    sections = fedavg.tables_that_ran(records)
    assert [title for title, _, _ in sections] == [
        f"Table 3, cifar: rounds to {n}% test accuracy" for n in (80, 82, 85)
    ]
    shown = [rows[-1] for _, _, rows in sections]
    assert [row["row"] for row in shown] == ["E=5/B=50"] * 3
    assert [row["paper"] for row in shown] == ["280 (64.3x)", "630 (49.2x)", "2000 (49.5x)"]
    assert [row["ours"] for row in shown] == ["150", "350", "-"]
    assert [row["ours / paper"] for row in shown] == ["0.54", "0.56", "-"]
    assert [row["at most 1.25"] for row in shown] == ["met", "met", "not reached in 400 rounds"]
    assert [row["u"] for row in shown] == ["50"] * 3


def test_runs_to_another_target_are_a_table_of_their_own():
    name = "word-noniid-m200-E1-B8"
    records = {name: curve_record([0, 10, 20], [0.0, 0.07, 0.09], target=0.08)}
    ((title, cells, rows),) = fedavg.tables_that_ran(records)
    assert title == "Word LSTM: rounds to 8% test accuracy"
    assert [(row["u"], row["paper"], row["ours"]) for row in rows] == [("-", "-", "-"), ("-", "-", "15")]
    assert rows[1]["at most 1.25"] == "reached"
    records = {name: curve_record([0, 10, 40], [0.0, 0.075, 0.115], target=0.105)}
    ((title, cells, rows),) = fedavg.tables_that_ran(records)
    assert title == "Word LSTM: rounds to 10.5% test accuracy"
    assert [(cell.rounds, row["paper"]) for cell, row in zip(cells, rows, strict=True)] == [
        (820, "820 (1.0x)"),
        (35, "35 (23.4x)"),
    ]
    # On other messages than the paper's nothing is met or missed.
    shown = [rows[1][name] for name in ("ours", "ours / paper", "at most 1.25")]
    assert shown == ["32", "-", "reached"]
    # Runs that ended below a target say nothing about it.
    records |= {IID: curve_record([0, 5], [0.1, 0.91], target=0.9)}
    titles = [title for title, _, _ in fedavg.tables_that_ran(records)]
    assert [title for title in titles if "2nn" in title] == [
        "Table 1, 2nn: rounds to 90% test accuracy",
        "Table 4, 2nn: rounds to 90% test accuracy",
    ]


def test_the_page_is_whole_by_itself(tmp_path):
    figure_1, other = fedavg.FIGURE_1_RECORD, "2nn-noniid-C0.1-E10-B50"
    records = {IID: record(50, None, 60), other: record(None, None, None), figure_1: figure_1_record()}
    records[IID]["command"] = "python x.py '<script>' & more"
    pictures = {n: fedavg.draw_figure(n, records, tmp_path) for n in (1, 7)}
    text = fedavg.render_page(records, pictures)
    links = re.findall(r'\b(?:src|href|srcset|data|poster|action)="(.{22})', text)
    assert sorted(links) == ["data:image/png;base64,"] * 2 + ["https://arxiv.org/abs/"]
    assert not re.search(r"<(link|script|iframe)|url\(|@import", text)
    assert '<meta name="viewport" content="width=device-width' in text
    assert "<code>python x.py &#x27;&lt;script&gt;&#x27; &amp; more</code>" in text
    assert all(f"<summary>{name}</summary>" in text for name in records)
    assert text.count("<polyline") == 6
    assert text.count("<tr class=missed>") == text.count("<td>missed</td>") == 0
    assert text.count("<td>not reached in 115 rounds</td>") == 1
