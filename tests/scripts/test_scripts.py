"""The scripts, run as a user runs them: another process, flags, files."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from data_files import data_root, needs
from script_runs import ROOT, rows_of, train

import fedjax_sim as fs

EVALUATED = ("--num_rounds=6", "--eval_every=2", "--also_evaluate=train,clients", "--workdir=w")


def without_clock(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run with the default model and data, and its workdir."""
    cwd = tmp_path_factory.mktemp("finished")
    return train(*EVALUATED, cwd=cwd), cwd / "w"


def test_a_run_leaves_its_files(finished):
    done, workdir = finished
    names = {path.name for path in workdir.iterdir()}
    files = {"config.json", "metrics.jsonl", "curve.png", "clients.png", "summary.json"}
    assert files | {"checkpoints", "tensorboard"} <= names
    assert [row["round"] for row in rows_of(workdir)] == [0, 2, 4, 6]
    columns = {
        "round",
        "test_accuracy",
        "test_loss",
        "train_loss",
        "seconds",
        "bytes_up",
        "bytes_down",
        "full_train_loss",
        "client_accuracy_median",
    }
    assert all(columns <= row.keys() for row in rows_of(workdir))
    config = json.loads((workdir / "config.json").read_text())
    assert config["client_lr"] == 0.1
    assert config["dataset"] == "mnist5k"
    assert "round 6/6" in done.stderr  # plain lines, since this is no terminal
    assert "4,000 examples of 100 clients" in done.stderr


def test_the_summary_says_what_is_promised(finished):
    done, workdir = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert json.loads(done.stdout) == summary
    expected = {
        "num_params",
        "rounds",
        "best_accuracy",
        "final_accuracy",
        "target_accuracy",
        "rounds_to_target",
        "seconds_per_round",
        "compile_seconds",
        "compilations",
        "examples_per_second",
        "useful_flops_per_second",
        "padding_waste",
        "bytes_up",
        "bytes_down",
        "link",
        "link_seconds",
        "jax",
        "backend",
        "devices",
        "lanes",
    }
    assert expected <= summary.keys()
    assert summary["num_params"] == 199_210
    assert summary["bytes_up"] == 6 * 10 * 199_210 * 4
    assert summary["padding_waste"] == 0
    assert summary["seconds_per_round"] > 0


def test_the_same_command_continues_and_another_is_refused(finished):
    _, workdir = finished
    before = rows_of(workdir)
    again = train(*EVALUATED, cwd=workdir.parent)
    assert rows_of(workdir) == before
    assert json.loads(again.stdout)["rounds"] == 6
    refused = train(*EVALUATED, "--client_lr=0.2", cwd=workdir.parent, check=False)
    assert refused.returncode == 1
    assert "client_lr: 0.1 there, 0.2 now" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert rows_of(workdir) == before


@pytest.mark.slow
def test_another_axis_draws_the_same_run_anew(finished):
    _, workdir = finished
    before, picture = rows_of(workdir), (workdir / "curve.png").read_bytes()
    again = train(*EVALUATED, "--plot_axis=seconds", "--link=up_mbps=1,spread=0.5", cwd=workdir.parent)
    assert rows_of(workdir) == before
    assert (workdir / "curve.png").read_bytes() != picture
    link = fs.simulation.Link(up_mbps=1, spread=0.5)
    assert json.loads(again.stdout)["link_seconds"] == link.seconds(before)[-1]


@pytest.mark.slow
def test_the_target_ends_the_run(tmp_path):
    done = train("--target_accuracy=0.3", "--num_rounds=100", "--workdir=w", cwd=tmp_path)
    summary = json.loads(done.stdout)
    rows = rows_of(tmp_path / "w")
    assert summary["rounds"] < 100
    assert rows[-1]["test_accuracy"] >= 0.3
    assert all(row["test_accuracy"] < 0.3 for row in rows[:-1])
    assert rows[-2]["round"] < summary["rounds_to_target"] <= rows[-1]["round"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--algorithm=fed_sgd", "--client_lr=0.5", "--partition=iid", "--lanes=400"),
        ("--algorithm=sgd", "--partition=lognormal:1", "--model=logistic", "--compute_dtype=bfloat16"),
        (
            *("--batch_size=inf", "--partition=dirichlet:0.1"),
            *("--server_optimizer=adam:eps=1e-3", "--server_lr=0.01"),
        ),
        ("--model=logistic", "--algorithm=scaffold", "--server_optimizer=sgd"),
        ("--model=logistic", "--algorithm=fed_buff:concurrency=20,buffer=5"),
        (
            *("--model=logistic", "--algorithm=fed_prox:0.1", "--client_optimizer=sgd:momentum=0.9"),
            "--aggregator=clip:1.0,adaptive=0.5 | error_feedback(top_k(0.1) >> quantize(8)) | median",
        ),
    ],
    ids=["fed_sgd", "sgd", "fed_avg inf dirichlet adam", "scaffold", "fed_buff", "fed_prox aggregated"],
)
def test_other_settings_run(tmp_path, flags):
    done = train("--num_rounds=3", "--workdir=w", *flags, cwd=tmp_path)
    assert json.loads(done.stdout)["rounds"] == 3
    idle = "--lanes=400: a round has 10 clients and uses only as many lanes"
    assert (idle in done.stderr) == ("--lanes=400" in flags)


def test_divergence_ends_with_the_round_and_the_rate(tmp_path):
    done = train("--client_lr=1e20", "--workdir=w", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert re.search(r"diverged in round 1.*client_lr=1e\+20", done.stderr)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "w" / "checkpoints" / "0").is_dir()


def test_help_shows_the_ten_flags_that_matter_first_and_nothing_of_absl(tmp_path):
    told = train("--help", cwd=tmp_path).stdout
    for text in ("--partition=dirichlet:0.1", "fed_prox (mu, ", "summary.json", "--helpfull"):
        assert text in " ".join(told.split())
    described, first, *topics = re.split(r"\n\n(?=\S[^\n]*:\n  --)", told)
    names = [re.findall(r"(?m)^  --(?:\[no\])?(\w+)", part) for part in (first, *topics)]
    assert names[0][:3] == ["dataset", "partition", "num_clients"]
    assert len(names[0]) == 10
    every = [name for part in names for name in part]
    assert len(set(every)) == len(every) <= 35
    assert "verbosity" not in every
    for flag in re.findall(r"--(\w+)[= \n]", described):
        assert flag in every


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(tmp_path):
    """Killed several times at random moments, the run ends to the bit as one left alone."""
    flags = ("--num_rounds=120", "--local_epochs=1", "--eval_every=3", "--checkpoint_seconds=0.05")
    train(*flags, "--workdir=whole", cwd=tmp_path)
    rng = random.Random(0)
    killed = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags, "--workdir=killed"]
    rows_at_kills, checkpoints_at_kills = [], []
    for part in range(3):
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        # The first kill falls into the start; the others wait for progress, however slow the machine.
        before = newest_round(killed)
        deadline = time.monotonic() + (60 if part else 0)
        while newest_round(killed) == before and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5 if part else 3))
        process.kill()
        process.wait()
        checkpoints_at_kills.append(newest_round(killed))
        metrics = killed / "metrics.jsonl"
        rows_at_kills.append(len(metrics.read_text().splitlines()) if metrics.exists() else 0)
    assert any(0 < rows < 41 for rows in rows_at_kills), rows_at_kills
    assert max(checkpoints_at_kills) > 0, checkpoints_at_kills
    train(*flags, "--workdir=killed", cwd=tmp_path)
    whole = tmp_path / "whole"
    assert without_clock(rows_of(killed)) == without_clock(rows_of(whole))
    assert state_of(killed) == state_of(whole)


@pytest.mark.slow
def test_ctrl_c_ends_a_script_without_a_result(tmp_path):
    flags = ("--num_rounds=100000", "--checkpoint_seconds=0.05", "--workdir=w")
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while newest_round(tmp_path / "w") == 0:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == -signal.SIGINT
    assert not (tmp_path / "w" / "summary.json").exists()


def newest_round(workdir):
    """The round of the newest checkpoint; 0 without any."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def state_of(workdir):
    """The digest of all parameters in the last checkpoint, and its round."""
    newest = workdir / "checkpoints" / str(newest_round(workdir))
    meta = json.loads((newest / "meta" / "metadata").read_text())
    return newest.name, meta["state_digest"]


@pytest.mark.slow
def test_a_synthetic_population_trains_and_its_placement_is_no_setting(tmp_path):
    flags = ("--dataset=synthetic:num_examples=300", "--num_clients=60", "--model=small_word_lstm")
    flags += ("--num_rounds=2", "--local_epochs=1", "--workdir=w")
    done = train(*flags, "--data_placement=host", cwd=tmp_path)
    assert "300 examples of 60 clients" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["gather_seconds"] > 0
    assert summary["waited_seconds"] > 0
    rows = rows_of(tmp_path / "w")
    again = train(*flags, "--data_placement=device", cwd=tmp_path)
    assert json.loads(again.stdout)["rounds"] == 2
    assert rows_of(tmp_path / "w") == rows


@pytest.mark.slow
def test_stored_clients_train_from_their_files(tmp_path):
    digits, test = fs.data.load("mnist5k")
    for part, dataset in (("train", digits), ("test", test)):
        clients = fs.data.federate(dataset, fs.data.iid(num_clients=50))
        fs.data.save_federated(clients, tmp_path / "data" / part)
    flags = ("--dataset=stored", "--data_dir=data", "--model=logistic", "--num_rounds=2")
    done = train(*flags, "--algorithm=fed_sgd", "--workdir=w", cwd=tmp_path)
    assert "4,000 examples of 50 clients" in done.stderr
    assert json.loads(done.stdout)["gather_seconds"] > 0  # auto leaves them on the host
    assert (tmp_path / "w" / "clients.png").exists()


@pytest.mark.slow
@needs("mnist")
def test_real_mnist_with_natural_clients_where_it_is_present(tmp_path):
    flags = ("--dataset=qmnist", f"--data_dir={data_root()}", "--partition=natural")
    done = train(*flags, "--num_rounds=2", "--workdir=w", cwd=tmp_path)
    assert "60,000 examples of 539 clients" in done.stderr
