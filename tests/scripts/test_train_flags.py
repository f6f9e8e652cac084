"""The flags of scripts/train.py: each bad one is refused with a cure, before any data is read."""

import gzip
import importlib
import os
import re

import numpy as np
import pytest
from script_runs import check, loaded, refusal, train

import fedjax_sim as fs


@pytest.fixture(scope="module")
def script():
    """scripts/train.py as a module."""
    with loaded("train") as module:
        yield module


LEARNERS = "--algorithm=dynamic_averaging"
STREAMS = f"{LEARNERS} --dataset=graphical_model --model=logistic"
REFUSED = {
    "--dataset=mnits": "unknown dataset 'mnits'; did you mean 'mnist'",
    "--dataset=": "unknown dataset ''",
    "--dataset=tfds:": "unknown dataset 'tfds:'; did you mean 'tfds:<name>'",
    "--model=cmn": "unknown model 'cmn'; did you mean 'cnn'? Known: 2nn, char_lstm",
    "--algorithm=fedavg": "unknown algorithm 'fedavg'; did you mean 'fed_avg'",
    "--compute_dtype=float16": "unknown compute_dtype 'float16'; did you mean 'bfloat16'",
    "--partition=dirichlett": "did you mean 'dirichlet'",
    "--server_optimizer=sdg": "unknown server_optimizer 'sdg'; did you mean 'sgd'",
    "--shuffle=neverr": "unknown shuffle 'neverr'; did you mean 'never'",
    "--weighting=foo": "unknown weighting 'foo'. Known: examples, uniform",
    "--data_placement=hots": "unknown data_placement 'hots'; did you mean 'host'",
    "--plot_axis=byte": "--plot_axis=byte: value should be one of <rounds|bytes|seconds>",
    "--alpha=0": "--alpha=0: wanted a finite number above 0",
    "--alpha=inf": "--alpha=inf: wanted a finite number above 0",
    "--sigma=nan": "--sigma=nan: wanted a finite number of at least 0",
    "--num_clients=0": "--num_clients=0: wanted a whole number from 1 to 2147483647",
    "--num_rounds=3000000000": "--num_rounds=3000000000: wanted a whole number from 1 to 2147483647",
    "--num_rounds=1e3": "--num_rounds=1e3: wanted a whole number",
    "--eval_every=": "--eval_every=: wanted a whole number",
    "--client_fraction=1.5": "--client_fraction=1.5: wanted a number from 0 to 1",
    "--client_fraction=nan": "--client_fraction=nan: wanted a number from 0 to 1",
    "--batch_size=0": "--batch_size holds '0'; wanted a whole number from 1 to 2147483647, or inf",
    "--batch_size=ten": "--batch_size holds 'ten'; wanted a whole number",
    "--batch_size=2147483647": "batch_size=2147483647 makes at least 107374182350 examples in a round",
    "--local_epochs=2147483647": "local_epochs=2147483647 with batch_size=10",
    "--batch_size=inf --local_epochs=2147483647": "local_epochs=2147483647 with batch_size=inf",
    "--local_epochs=1073741824 --shuffle=never": "wanted at most 500000000: lower them",
    "--client_lr=-1": "--client_lr=-1: wanted 0, or a number from 1.18e-38 to 3.4e+38",
    "--client_lr=1e39": "--client_lr=1e39: wanted 0, or a number",
    "--client_lr=1e-60": "--client_lr=1e-60: wanted 0, or a number",
    "--server_lr=inf": "--server_lr=inf: wanted 0, or a number",
    "--lr_decay=1e30": "--lr_decay=1e+30 makes the clients' rate exceed 3.4e+38, the largest float32, "
    "in round 3 of 200",
    "--lr_decay=1.6": "--lr_decay=1.6 makes",
    "--client_lr=1e30 --lr_decay=2": "the largest float32, in round 30 of 200",
    "--lanes=0": "--lanes=0: wanted a whole number",
    "--mesh_runs=2": "--mesh_runs=2, but there is one run",
    "--mesh_clients=3": "mesh_clients is 3, which does not divide the 2 devices",
    "--coordinator=localhost:": "--coordinator=localhost:: wanted host:port, with a port from 1",
    "--coordinator=x:65536": "--coordinator=x:65536: wanted host:port",
    "--num_processes=0": "--num_processes=0: wanted a whole number",
    "--process_id=-1": "--process_id=-1: wanted a whole number from 0",
    "--seed=4294967296": "--seed=4294967296: wanted a whole number from 0 to 4294967295",
    "--seed=-1": "--seed=-1: wanted a whole number from 0 to 4294967295",
    f"--seed={10**30}": "wanted a whole number from 0 to 4294967295",
    "--partition_seed=4294967296": "--partition_seed=4294967296: wanted a whole number from 0",
    "--checkpoint_seconds=nan": "--checkpoint_seconds=nan: wanted a number of at least 0, or inf",
    "--checkpoint_seconds=-1": "--checkpoint_seconds=-1: wanted a number of at least 0",
    "--workdir=": "--workdir=: wanted a name",
    "--workdir=/dev/null": "--workdir=/dev/null: /dev/null is not a folder",
    "--workdir=/dev/null/w": "--workdir=/dev/null/w: /dev/null is not a folder",
    f"--workdir={'w' * 300}": "File name too long; wanted a folder to write to",
    "--max_unpacked_gb=0": "--max_unpacked_gb=0: wanted a number from 1e-09 to 1e+09",
    "--max_unpacked_gb=nan": "--max_unpacked_gb=nan: wanted a number",
    "--data_dir=": "--data_dir=: wanted a name",
    "--target_accuracy=97": "--target_accuracy=97: wanted a number above 0, at most 1",
    "--target_accuracy=nan": "--target_accuracy=nan: wanted a number above 0",
    "--up_mbps=0": "--up_mbps=0: wanted a number from 1e-06 to 1e+12",
    "--up_mbps=1e-310": "--up_mbps=1e-310: wanted a number",
    "--latency_ms=inf": "--latency_ms=inf: wanted a number from 0 to 1e+09",
    "--link_spread=nan": "--link_spread=nan: wanted a number from 0 to 10",
    "--dataset=shakespeare": "--model=2nn reads images or numbers, not the characters of "
    "--dataset=shakespeare; wanted --model=char_lstm",
    "--model=word_lstm": "not the images of --dataset=mnist5k; wanted --model=2nn or cnn",
    "--dataset=synthetic": "wanted --model=word_lstm or small_word_lstm",
    "--dataset=synthetic --model=word_lstm --num_examples=99": "--num_clients=100 with 99 examples",
    "--dataset=synthetic --model=word_lstm --num_clients=2000000000": "wanted --num_examples from",
    "--dataset=shakespeare --model=char_lstm": "--partition=shards divides by label, but the characters",
    "--partition=natural": "--partition=natural divides by owner, but --dataset=mnist5k names none",
    "--dataset=qmnist --partition=natural --partition_key=role": "--partition_key=role; for "
    "--dataset=qmnist, wanted the owner, writer",
    "--dataset=stored": "--dataset=stored needs --data_dir",
    "--dataset=graphical_model --model=logistic": "--algorithm=dynamic_averaging only",
    "--algorithm=sgd --batch_size=inf": "--batch_size=inf; --algorithm=sgd needs a whole number",
    "--algorithm=sgd --data_placement=host": "reads the data of all clients",
    f"{LEARNERS} --data_placement=host": "reads the data of all clients",
    f"{LEARNERS} --batch_size=inf": "--algorithm=dynamic_averaging needs a whole number",
    f"{LEARNERS} --num_clients=1": "--num_clients=1; wanted at least 2",
    f"{LEARNERS} --num_clients=5 --mesh_clients=2": "cannot share 5 learners evenly",
    f"{LEARNERS} --num_rounds=2147483647": "214748364700 examples to count",
    f"{LEARNERS} --sync_period=2147483647": "wanted at most 2147483647",
    f"{LEARNERS} --delta=nan": "--delta=nan: wanted a number of at least 0, or inf",
    f"{LEARNERS} --stream=foo": "unknown stream 'foo'. Known: once, repeat, shared",
    f"{LEARNERS} --drift=rotation --degrees_per_step=nan": "--degrees_per_step=nan: wanted a finite",
    f"{LEARNERS} --drift=labels": "--drift=labels needs --drift_at or --drift_probability",
    f"{LEARNERS} --drift=labels --drift_at=6,3": "--drift_at=6,3; wanted ascending steps below 2000",
    f"{LEARNERS} --drift=labels --drift_at=0": "--drift_at holds '0'; wanted a whole number from 1",
    f"{LEARNERS} --drift=labels --drift_at=2000": "--drift_at=2000; wanted ascending steps",
    f"{LEARNERS} --drift=labels --drift_at=3 --target_accuracy=0.5": "have no test set, so leave it out",
    f"{LEARNERS} --drift_at=3": "need --drift=labels or --dataset=graphical_model",
    f"{LEARNERS} --drift_at=3 --drift_probability=0.1": "exclude each other",
    f"{STREAMS} --model=cnn": "--model=cnn reads images, not the numbers of --dataset=graphical_model; "
    "wanted --model=2nn or logistic",
    f"{STREAMS} --drift=rotation": "--drift=rotation suits images",
    f"{STREAMS} --target_accuracy=0.5 --eval_train": "--target_accuracy=0.5; streams that drift",
    f"{STREAMS} --num_rounds=100000 --batch_size=100": "makes 10000000000 examples to count",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_bad_flags_are_refused_before_any_data_is_read(script, flags):
    assert REFUSED[flags] in refusal(script, *flags.split())


@pytest.mark.parametrize(
    "flags",
    [
        "--client_lr=0 --lr_decay=0 --client_fraction=0",
        "--lr_decay=1.5",
        "--lr_decay=1e30 --num_rounds=2",
        "--seed=4294967295 --partition_seed=4294967295",
        "--checkpoint_seconds=inf --target_accuracy=1",
        "--algorithm=fed_sgd --batch_size=2147483647 --local_epochs=2147483647",
        "--batch_size=10000000",
        "--num_rounds=2147483647 --eval_every=2147483647",
        "--dataset=tfds:emnist/letters --model=cnn",
        "--dataset=shakespeare --model=char_lstm --partition=natural --partition_key=role",
        f"{LEARNERS} --drift=labels --drift_at=1999 --delta=inf",
    ],
)
def test_the_ends_of_ranges_are_accepted(script, flags):
    check(script, *flags.split())


def test_a_workdir_that_may_not_be_written_to_is_refused(script, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert "cannot be written to" in refusal(script, f"--workdir={tmp_path / 'a' / 'b'}")


def test_a_link_to_nowhere_is_no_workdir(script, tmp_path):
    (tmp_path / "w").symlink_to(tmp_path / "absent")
    assert "is not a folder" in refusal(script, f"--workdir={tmp_path / 'w'}")


def test_the_scripts_know_the_data_sets_of_the_library(script):
    with pytest.raises(ValueError, match="Known: ") as error:
        importlib.import_module("fedjax_sim.data.sources").load("?")
    known = str(error.value).partition("Known: ")[2].rstrip(".").split(", ")
    own = {"synthetic", "graphical_model", "stored"}
    told = refusal(script, "--dataset=?").partition("Known: ")[2].rstrip(".").split(", ")
    assert {*told} == {*known} | own


def test_how_much_a_file_may_unpack_to_reaches_the_loader(script, monkeypatch, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(10_000)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    check(script, "--dataset=mnist", f"--data_dir={tmp_path}", "--max_unpacked_gb=1e-6")
    monkeypatch.setattr(fs.data, "load", importlib.import_module("fedjax_sim.data.sources").load)
    with pytest.raises(ValueError, match="wanted at most max_unpacked_bytes, 1,000"):
        script.workload.load(0)


def test_too_little_memory_ends_in_one_message(script, monkeypatch):
    common = importlib.import_module("common")
    monkeypatch.setattr(common.app, "run", lambda main: main(["train"]))
    monkeypatch.setattr(common.logging, "set_verbosity", lambda level: None)

    def work():
        np.empty(2**60, np.uint8)

    with pytest.raises(SystemExit) as ended:
        common.run("train.py", work)
    assert re.match(r"train.py: .*memory .*Unable to allocate .*Lower --num_clients", ended.value.code)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--client_lr=-1",), "flag --client_lr=-1: wanted 0, or a number"),
        (("--lr_decay=1e30",), "train.py: --lr_decay=1e+30 makes the clients' rate exceed"),
        (("--num_clients=5000", "--partition=iid"), "5000"),
        (("--dataset=mnist",), "data_dir is None; give the folder that holds train-images"),
        (("--dataset=stored", "--data_dir=nowhere"), "nowhere/train/index.json is not there"),
    ],
)
def test_bad_flags_end_with_a_cure_and_nothing_written(tmp_path, flags, message):
    done = train(*flags, "--workdir=w", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_stored_federation_wants_a_model_that_reads_it(script, tmp_path):
    words = {"x": np.zeros((4, 10), np.uint16), "y": np.zeros((4, 10), np.uint16)}
    digits = {"x": np.zeros((4, 28, 28, 1), np.uint8), "y": np.zeros(4, np.int32)}
    numbers = {"x": np.zeros((4, 5), np.float32), "y": np.zeros(4, np.int32)}
    check_stored = importlib.import_module("flags.catalogue").check_stored
    for model, fitting in (("cnn", digits), ("2nn", digits), ("2nn", numbers), ("word_lstm", words)):
        check_stored(model, fitting)
    for model, strange in (("cnn", words), ("cnn", numbers), ("2nn", words), ("word_lstm", digits)):
        with pytest.raises(ValueError, match=f"--model={model} reads .*; what is stored in --data_dir"):
            check_stored(model, strange)
