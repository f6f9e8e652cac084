"""Values of flags that name a function: the library's names and types, and nothing evaluated."""

import importlib
import inspect
import math
import re

import numpy as np
import optax
import pytest
from script_runs import check, loaded

import fedjax_sim as fs


@pytest.fixture(scope="module")
def script():
    """scripts/train.py as a module."""
    with loaded("train") as module:
        yield module


@pytest.fixture
def calls(script):
    return importlib.import_module("flags.calls")


def sample(norm: float, *, count: int | None = 3, word: str = "x", yes: bool = False) -> int:
    """A function of every kind of argument."""


def steps(*at: int, share: float = 0.0) -> int:
    """A function of any number of arguments."""


@pytest.fixture
def known(calls):
    return calls.Calls("sample", {"sample": sample, "steps": steps})


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("sample:1", "sample", {"norm": 1.0}),
        (" sample : 1.5 , yes=true", "sample", {"norm": 1.5, "yes": True}),
        ("sample:-1e-3,4", "sample", {"norm": -0.001, "count": 4}),
        ("sample(2, word=uniform)", "sample", {"norm": 2.0, "word": "uniform"}),
        ("sample:norm=inf,count=none", "sample", {"norm": math.inf, "count": None}),
        ("steps", "steps", {}),
        ("steps:", "steps", {}),
        ("steps:at=3", "steps", {"at": [3]}),
        ("steps:3,6,9,share=0.5", "steps", {"at": [3, 6, 9], "share": 0.5}),
    ],
)
def test_a_value_is_a_function_and_its_arguments(known, text, name, arguments):
    call = known.read(text)
    assert (call.name, call.arguments) == (name, arguments)
    assert [type(value) for value in call.arguments.values()] == [type(v) for v in arguments.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smaple:1", "unknown sample 'smaple'; did you mean 'sample'? Known: sample, steps."),
        ("sample", "sample needs norm, a number: sample:norm=..."),
        ("sample:1,norm=2", "sample is given norm twice; wanted it once"),
        ("sample:1,2,x,true,5", "sample takes norm, count, word, yes, and more is given"),
        ("sample:1,wrod=x", "unknown argument of sample 'wrod'; did you mean 'word'?"),
        ("sample:true", "norm of sample is true; wanted a number"),
        ("sample:True", "norm of sample is True; wanted a number"),
        ("sample:1,2.0", "count of sample is 2.0; wanted a whole number or none"),
        ("sample:1,word=3", "word of sample is 3; wanted a word"),
        ("sample:1,yes=1", "yes of sample is 1; wanted true or false"),
        ("sample:1e39", "norm of sample is 1e+39; wanted 0, inf, or a number from 1.18e-38 to 3.4e+38"),
        ("sample:1e-39", "norm of sample is 1e-39; wanted 0, inf, or a number"),
        (f"sample:{'9' * 400}", "wanted 0, inf, or a number"),
        (f"sample:{'9' * 5000}", "cannot be read"),
        ("sample:" + "(" * 900, "cannot be read"),
        ("sample:1;2", "'sample:1;2' cannot be read; wanted name:value,name=value"),
        ("sample:\0", "cannot be read"),
        ("sample:**x", "wanted arguments of sample as name=value"),
        ("sample:*x", "norm of sample is *x; wanted a number"),
        ("sample:open('x')", "norm of sample is open('x'); wanted a number"),
        ("sample.__class__(1)", "wanted a sample such as sample:norm=..."),
        ("1 + 1", "wanted a sample such as sample:norm=..."),
        ("", "'' cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_cure(known, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        known.read(text)


def test_brackets_keep_a_chain_together(calls):
    assert calls.split("a(b|c)|d:1,[2|3]|e", "|") == ["a(b|c)", "d:1,[2|3]", "e"]


def test_every_algorithm_protocol_partition_stage_and_codec_is_known(script):
    training, workload = script.training, script.workload
    averaging = script.averaging
    factories = {name for name in fs.algorithms.__all__ if hasattr(fs, name)}
    assert training._ALGORITHMS.functions.keys() == factories
    lower = {name for name in fs.protocols.__all__ if inspect.isfunction(getattr(fs.protocols, name))}
    assert averaging._PROTOCOLS.functions.keys() == lower
    partitions = {"iid", "shards", "dirichlet", "lognormal", "natural", "label_subsets"}
    assert partitions <= workload._PARTITIONS.functions.keys()
    stages = {name for name in (*fs.aggregation.__all__, *fs.compression.__all__) if name.islower()}
    no_values = {"aggregate", "hadamard_transform", "keep_updates", "num_bytes"}
    assert training._STAGES.functions.keys() == stages - no_values


def test_an_optimizer_has_the_arguments_given(script):
    training = script.training
    check(script)
    assert training._optimizer(training._CLIENT_OPTIMIZER) is optax.sgd
    check(script, "--client_optimizer=adam:b1=0.8,nesterov=true")
    make = training._optimizer(training._CLIENT_OPTIMIZER)
    assert make.func is optax.adam
    assert make.keywords == {"b1": 0.8, "nesterov": True}
    known = training._OPTIMIZERS.functions
    assert {"adam", "adamw", "nadam", "rmsprop", "yogi", "lion"} <= known.keys()
    assert not any(name.startswith(("_", "scale_by")) for name in known)


def test_an_aggregator_is_the_librarys(script):
    a, c = fs.aggregation, fs.compression
    for text, wanted in {
        "clip:1.0,adaptive=0.5 | gaussian:0.8 | mean:uniform": fs.aggregate(
            a.clip(1.0, adaptive=0.5), a.gaussian(0.8), end=a.mean("uniform")
        ),
        "top_k:0.01 | quantize:8": fs.aggregate(c.top_k(0.01) >> c.quantize(8)),
        "error_feedback:top_k(0.01) >> quantize(8) | krum:2": fs.aggregate(
            a.error_feedback(c.top_k(0.01) >> c.quantize(8)), end=a.krum(num_byzantine=2)
        ),
        "median": fs.aggregate(end=a.median()),
    }.items():
        made = script.training._aggregator(text)
        assert (made.settings, made.hparams) == (wanted.settings, wanted.hparams)


def test_a_partition_draws_by_the_runs_seed_unless_it_has_its_own(script):
    check(script, "--partition=shards:3,seed=5")
    digits = fs.data.from_arrays(np.zeros((600, 1)), np.arange(600) % 10)

    def rows(seed):
        return fs.data.shards(num_clients=100, shards_per_client=3, seed=seed)(digits).rows.tolist()

    assert script.workload._partition(0)(digits).rows.tolist() == rows(5)
    check(script, "--partition=shards:3")
    assert script.workload._partition(1)(digits).rows.tolist() == rows(1) != rows(5)


@pytest.mark.parametrize("dataset", ["qmnist", "shakespeare", "messages"])
def test_natural_clients_need_no_key(script, dataset):
    owner = {"qmnist": "writer", "shakespeare": "role", "messages": "author"}[dataset]
    models = {"qmnist": "2nn", "shakespeare": "char_lstm", "messages": "word_lstm"}
    flags = (f"--dataset={dataset}", f"--model={models[dataset]}", "--partition=natural")
    check(script, *flags)
    owned = fs.data.from_arrays([[0.0], [1.0], [2.0]], [0, 1, 0], keys={owner: ["b", "a", "b"]})
    assert script.workload._partition(0)(owned).client_ids.tolist() == ["a", "b"]
