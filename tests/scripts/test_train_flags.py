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
    "--dataset=synthetic:topics=3": "unknown argument of synthetic 'topics'; did you mean 'num_topics'",
    "--dataset=synthetic:num_clients=3": "num_clients of synthetic is set elsewhere; leave it out",
    "--model=cmn": "unknown model 'cmn'; did you mean 'cnn'? Known: 2nn, char_lstm",
    "--algorithm=fedavg": "unknown algorithm 'fedavg'; did you mean 'fed_avg'",
    "--compute_dtype=float16": "unknown compute_dtype 'float16'; did you mean 'bfloat16'",
    "--partition=dirichlett": "did you mean 'dirichlet'",
    "--algorithm=local_sgd": "unknown algorithm 'local_sgd'",
    "--algorithm=fed_prox": "fed_prox needs mu, a number: fed_prox:mu=...",
    "--algorithm=fed_prox:nu=0.1": "unknown argument of fed_prox 'nu'. Known: "
    "drop_stragglers, lr_decay, mu, shuffle, stragglers, weighting.",
    "--algorithm=fed_prox:mu=abc": "mu of fed_prox is abc; wanted a number",
    "--algorithm=fed_prox:mu=-1": "--algorithm=fed_prox:mu=-1: mu is -1.0; wanted a finite number",
    "--algorithm=fed_prox:0.1,drop_stragglers=1": "drop_stragglers of fed_prox is 1; wanted true or",
    "--algorithm=fed_avg:local_epochs=3": "local_epochs of fed_avg is set elsewhere; leave it out",
    "--algorithm=fed_avg:shuffle=neverr": "--algorithm=fed_avg:shuffle=neverr: shuffle is 'neverr';",
    "--algorithm=fed_avg:weighting=foo": "weighting is 'foo'; wanted 'examples' or 'uniform'",
    "--algorithm=fed_buff:concurrency=5,buffer=10": "--algorithm=fed_buff:concurrency=5,buffer=10:",
    "--algorithm=ifca:2.5": "num_clusters of ifca is 2.5; wanted a whole number",
    "--algorithm=ifca:2 --also_evaluate=clients": "ifca trains several models, but this is an",
    "--algorithm=scaffold --client_optimizer=adam": "--client_optimizer is given, but scaffold does not",
    "--algorithm=fed_sgd --local_epochs=3": "--local_epochs is given, but fed_sgd does not use it",
    "--algorithm=sgd:steps_per_round=3 --local_epochs=3": "--local_epochs is given, but sgd does not",
    "--algorithm=fed_buff:20,5 --client_fraction=0.5": "--client_fraction is given, but fed_buff does",
    "--algorithm=fed_nova --client_optimizer=adam": "the client optimizer is not linear in its",
    "--protocol=periodic:3": "--protocol is given, but fed_avg does not use it",
    "--client_optimizer=sdg": "unknown optimizer 'sdg'; did you mean 'sgd'",
    "--client_optimizer=sgd:momentum=x": "momentum of sgd is x; wanted a number or none",
    "--client_optimizer=sgd:learning_rate=1": "learning_rate of sgd is set elsewhere",
    "--client_optimizer=lbfgs": "--client_optimizer=lbfgs cannot take a step",
    "--client_optimizer=sgd:momentum=0.9,accumulator_dtype=x": "accumulator_dtype=x cannot take a step",
    "--aggregator=clip(1)>>median": "clip(1) >> median: wanted >> between codecs only, else |",
    "--server_optimizer=adam": "--server_optimizer=adam needs --server_lr, its rate",
    "--aggregator=medan": "unknown aggregation stage 'medan'; did you mean 'median'",
    "--aggregator=keep_updates": "unknown aggregation stage 'keep_updates'",
    "--aggregator=": "'' cannot be read; wanted name:value,name=value",
    "--aggregator=median|clip:1": "median combines the updates of all clients; wanted it last, and once",
    "--aggregator=gaussian:1|mean:uniform": "no clip comes before gaussian",
    "--aggregator=clip:1|gaussian:1": "--aggregator=clip:1|gaussian:1: gaussian and mean: gaussian",
    "--aggregator=error_feedback(clip(1))": "unknown codec 'clip'. Known: bfloat16, drive, eden, fp8, ",
    "--also_evaluate=trian": "unknown entry of --also_evaluate 'trian'; did you mean 'train'",
    "--data_placement=hots": "unknown data_placement 'hots'; did you mean 'host'",
    "--plot_axis=byte": "--plot_axis=byte: value should be one of <rounds|bytes|seconds>",
    "--partition=dirichlet": "dirichlet needs alpha, a number: dirichlet:alpha=...",
    "--partition=dirichlet:0": "--partition=dirichlet:0: alpha is 0.0; wanted a finite number above 0",
    "--partition=dirichlet:inf": "alpha is inf; wanted a finite number above 0",
    "--partition=dirichlet:1e-60": "alpha of dirichlet is 1e-60; wanted 0, inf, or a number from",
    "--partition=dirichlet:0.1,2,3,4": "dirichlet takes alpha, min_size, seed, and more is given",
    "--partition=lognormal:nan": "--partition=lognormal:nan: sigma is nan; wanted a finite number",
    "--partition=shards:2.5": "shards_per_client of shards is 2.5; wanted a whole number",
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
    "--local_epochs=1073741824 --algorithm=fed_avg:shuffle=never": "wanted at most 500000000: lower",
    "--client_lr=-1": "--client_lr=-1: wanted 0, or a number from 1.18e-38 to 3.4e+38",
    "--client_lr=1e39": "--client_lr=1e39: wanted 0, or a number",
    "--client_lr=1e-60": "--client_lr=1e-60: wanted 0, or a number",
    "--server_lr=inf": "--server_lr=inf: wanted 0, or a number",
    "--algorithm=fed_avg:lr_decay=1e30": "lr_decay=1e+30 of --algorithm makes the clients' rate exceed "
    "3.4e+38, the largest float32, in round 3 of 200",
    "--algorithm=fed_avg:lr_decay=1.6": "lr_decay=1.6 of --algorithm makes",
    "--client_lr=1e30 --algorithm=fed_avg:lr_decay=2": "the largest float32, in round 30 of 200",
    "--lanes=0": "--lanes=0: wanted a whole number",
    "--mesh=2": "--mesh=2, but there is one run; wanted clients=... alone",
    "--mesh=clients=3": "mesh_clients is 3, which does not divide the 2 devices",
    "--mesh=clients=x": "clients of mesh is x; wanted a whole number or none",
    "--coordinator=localhost:": "--coordinator=localhost:: wanted host:port, with a port from 1",
    "--coordinator=x:65536": "--coordinator=x:65536: wanted host:port",
    "--num_processes=0": "--num_processes=0: wanted a whole number",
    "--process_id=-1": "--process_id=-1: wanted a whole number from 0",
    "--seed=4294967296": "--seed=4294967296: wanted a whole number from 0 to 4294967295",
    "--seed=-1": "--seed=-1: wanted a whole number from 0 to 4294967295",
    f"--seed={10**30}": "wanted a whole number from 0 to 4294967295",
    "--partition=iid:seed=-1": "--partition=iid:seed=-1: seed is -1; wanted an integer of at least 0",
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
    "--link=0": "up_mbps is 0.0; wanted megabits per second, above 0",
    "--link=1e-9": "up_mbps is 1e-09; wanted a number from 1e-06 to 1e+12",
    "--link=1e-310": "up_mbps of link is 1e-310; wanted 0, inf, or a number",
    "--link=8,24,1e10": "latency_ms is 1e+10; wanted a number from 0 to 1e+09",
    "--link=spread=nan": "spread is nan; wanted a number from 0 to 10",
    "--link=8,24,50,0,1": "link takes up_mbps, down_mbps, latency_ms, spread, and more is given",
    "--dataset=shakespeare": "--model=2nn reads images or numbers, not the characters of "
    "--dataset=shakespeare; wanted --model=char_lstm",
    "--model=word_lstm": "not the images of --dataset=mnist5k; wanted --model=2nn or cnn",
    "--dataset=synthetic": "wanted --model=word_lstm or small_word_lstm",
    "--dataset=synthetic:99 --model=word_lstm": "--num_clients=100 with 99 examples",
    "--dataset=synthetic --model=word_lstm --num_clients=2000000000": "wanted num_examples of",
    "--dataset=shakespeare --model=char_lstm": "--partition=shards divides by label, but the characters",
    "--partition=natural": "--partition=natural divides by owner, but --dataset=mnist5k names none",
    "--partition=natural:writer": "natural takes no arguments, and more is given",
    "--partition=natural:key=writer": "key of natural is set elsewhere; leave it out",
    "--dataset=stored": "--dataset=stored needs --data_dir",
    "--dataset=graphical_model --model=logistic": "--algorithm=dynamic_averaging only",
    "--algorithm=sgd --batch_size=inf": "--batch_size=inf; --algorithm=sgd needs a whole number",
    "--algorithm=sgd --data_placement=host": "reads the data of all clients",
    f"{LEARNERS} --data_placement=host": "reads the data of all clients",
    f"{LEARNERS} --batch_size=inf": "--algorithm=dynamic_averaging needs a whole number",
    f"{LEARNERS} --num_clients=1": "--num_clients=1; wanted at least 2",
    f"{LEARNERS} --num_clients=5 --mesh=clients=2": "cannot share 5 learners evenly",
    f"{LEARNERS} --num_rounds=2147483647": "214748364700 examples to count",
    f"{LEARNERS} --client_fraction=0.5": "--client_fraction is given, but dynamic_averaging does not",
    f"{LEARNERS} --protocol=dynamic:1,2147483647": "wanted at most 2147483647",
    f"{LEARNERS} --protocol=dynamic:nan,1": "--protocol=dynamic:nan,1: delta is nan; wanted a number",
    f"{LEARNERS} --protocol=dynamic:1": "dynamic needs period, a whole number: dynamic:period=...",
    f"{LEARNERS} --protocol=fed_avg:10,1.1": "fraction is 1.1; wanted a number in [0, 1]",
    f"{LEARNERS}:stream=foo": "dynamic_averaging:stream=foo: stream is 'foo'; wanted",
    f"{LEARNERS} --drift=rotation:nan": "--drift=rotation:nan: wanted a finite number of degrees",
    f"{LEARNERS} --drift=labels": "--drift=labels; wanted labels:30,60 (steps) or",
    f"{LEARNERS} --drift=labels:6,3": "--drift=labels:6,3; wanted ascending steps from 1, below 2000",
    f"{LEARNERS} --drift=labels:3,3": "--drift=labels:3,3; wanted ascending steps from 1, below 2000",
    f"{LEARNERS} --drift=labels:0": "--drift=labels:0; wanted ascending steps from 1",
    f"{LEARNERS} --drift=labels:2000": "--drift=labels:2000; wanted ascending steps",
    f"{LEARNERS} --drift=labels:3.5": "at of labels is 3.5; wanted a whole number",
    f"{LEARNERS} --drift=labels:probability=2": "probability is 2.0; wanted a number from 0 to 1",
    f"{LEARNERS} --drift=labels:3 --target_accuracy=0.5": "have no test set, so leave it out",
    f"{LEARNERS} --drift=redraw:3": "wanted redraw for --dataset=graphical_model, and labels or",
    f"{LEARNERS} --drift=labels:3,probability=0.1": "wanted steps or a probability, not both",
    f"{STREAMS} --model=cnn": "--model=cnn reads images, not the numbers of --dataset=graphical_model; "
    "wanted --model=2nn or logistic",
    f"{STREAMS} --drift=rotation": "--drift=rotation; wanted redraw for --dataset=graphical_model",
    f"{STREAMS} --target_accuracy=0.5 --also_evaluate=train": "--target_accuracy=0.5; streams that",
    f"{STREAMS} --num_rounds=100000 --batch_size=100": "makes 10000000000 examples to count",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_bad_flags_are_refused_before_any_data_is_read(script, flags):
    assert REFUSED[flags] in refusal(script, *flags.split())


@pytest.mark.parametrize(
    "flags",
    [
        "--client_lr=0 --algorithm=fed_avg:lr_decay=0 --client_fraction=0",
        "--algorithm=fed_avg:lr_decay=1.5",
        "--algorithm=fed_avg:lr_decay=1e30 --num_rounds=2",
        "--seed=4294967295 --partition=shards:2,seed=4294967295",
        "--checkpoint_seconds=inf --target_accuracy=1",
        "--algorithm=fed_prox:mu=0,stragglers=1,drop_stragglers=true",
        "--algorithm=fed_nova --client_optimizer=sgd:momentum=0.9,nesterov=true",
        "--algorithm=fed_buff:concurrency=10,buffer=10",
        "--algorithm=sgd:steps_per_round=1",
        "--aggregator=error_feedback(top_k(0.01)>>quantize(8))|trimmed_mean:0.1",
        "--aggregator=clip:1.0,adaptive=0.5|gaussian:0.8|mean:uniform",
        "--link=8,24,50 --mesh=clients=2 --also_evaluate=train,clients",
        "--batch_size=10000000",
        "--num_rounds=2147483647 --eval_every=2147483647",
        "--dataset=tfds:emnist/letters --model=cnn",
        "--dataset=shakespeare --model=char_lstm --partition=natural",
        f"{LEARNERS} --drift=labels:1999 --protocol=dynamic:inf,10",
        f"{STREAMS} --drift=redraw:probability=1",
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
    monkeypatch.setattr(common.app, "run", lambda main, flags_parser: main(["train"]))
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
        (("--server_optimizer=adam",), "train.py: --server_optimizer=adam needs --server_lr"),
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
