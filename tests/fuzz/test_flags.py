"""Whatever flags say, scripts accept or refuse it at once; the library takes what they accept."""

import time

import pytest
import toys
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from script_runs import check, loaded

import fedjax_sim as fs

pytestmark = pytest.mark.slow

NUMBERS = (
    "0",
    "-0.0",
    "1",
    "2",
    "3",
    "10",
    "0.5",
    "-1",
    "1.5",
    "1e-60",
    "1e-45",
    "1e30",
    "1e38",
    "1e39",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "infinity",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "1_000",
    "\N{ARABIC-INDIC DIGIT SEVEN}",
    " 7 ",
)
LISTS = ("", ",", "1,2", "1,1", "0.1,0.2", "10,inf", "1,nan", "1:2:3", "1e-300:1:100000", "1e-9:1:3")
WORDS = (
    *(
        "fed_avg",
        "fed_sgd",
        "sgd",
        "dynamic_averaging",
        "adam",
        "yogi",
        "uniform",
        "never",
        "host",
        "device",
    ),
    *("mnist", "qmnist", "shakespeare", "messages", "synthetic", "graphical_model", "stored", "tfds:x"),
    *("cnn", "logistic", "char_lstm", "word_lstm", "iid", "dirichlet", "natural", "role", "bfloat16"),
    *(
        "hedged",
        "continuous",
        "none",
        "labels",
        "rotation",
        "shared",
        "once",
        "bytes",
        "true",
        "x",
        "localhost:1",
    ),
    *("/dev/null", "/dev/null/x", "/", "\0", "w" * 300, "None", "--num_rounds=1", "=", "é" * 200),
)
CALLS = (
    *(
        "fed_avg:lr_decay=0.99",
        "fed_avg:lr_decay=1e30",
        "fed_prox:0.1",
        "fed_prox:-1",
        "scaffold",
        "ifca:2",
    ),
    *("fed_buff:20,5", "sgd:3", "dynamic_averaging:stream=shared", "dirichlet:0.1", "dirichlet:nan"),
    *("shards:2,seed=3", "lognormal:1", "adam:b1=0.8", "sgd:momentum=0.9", "lbfgs", "synthetic:300"),
    *(
        "clip:1|gaussian:0.8|mean:uniform",
        "error_feedback(top_k(0.1)>>quantize(8))",
        "median|clip:1",
        "krum:2",
    ),
    *("dynamic:1,10", "dynamic:inf,2147483647", "fed_avg:period=3,fraction=1", "periodic:0"),
    *(
        "labels:3,6",
        "labels:probability=1",
        "redraw:3",
        "rotation:inf",
        "8,24,50",
        "spread=11",
        "clients=2",
    ),
    *("fed_prox:mu=", "clip:1:2", "x:(", "median|", "a>>b", "f(*x)", "f(**x)", "lambda: 1"),
)
VALUES = st.sampled_from(NUMBERS + LISTS + WORDS + CALLS) | st.text(max_size=20)
MOST_SECONDS = 1.0  # of this process, however busy the machine
# A script is loaded once for all examples of a test; each parses its flags anew.
SETTINGS = settings(
    derandomize=True,
    database=None,
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TASK = toys.task()


@pytest.fixture
def train():
    """scripts/train.py as a module."""
    with loaded("train") as module:
        yield module


@pytest.fixture
def sweep():
    """scripts/sweep.py as a module."""
    with loaded("sweep") as module:
        yield module


@pytest.fixture
def reproduce():
    """scripts/reproduce.py as a module."""
    with loaded("reproduce") as module:
        yield module


def draw_flags(data, script):
    """Values for a few flags of a script, by name."""
    names = sorted(flag.name for flag in flags.FLAGS.get_key_flags_for_module(script))
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    return {name: data.draw(VALUES, label=name) for name in chosen}


def accepted(module, given):
    """What a script makes of flags; None where it refuses them with a message that names one."""
    before, checked, message = time.process_time(), None, ""
    try:
        checked = check(module, *(f"--{name}={value}" for name, value in given.items()))
    except (ValueError, flags.Error) as error:
        message = str(error)
    assert time.process_time() - before < MOST_SECONDS
    assert checked is not None or any(name in message for name in given), message
    return checked


@SETTINGS
@given(st.data())
def test_train_accepts_flags_or_names_one(train, data):
    accepted(train, draw_flags(data, "train"))


@SETTINGS
@given(st.data())
def test_sweep_accepts_flags_or_names_one(sweep, data):
    accepted(sweep, draw_flags(data, "sweep"))


@SETTINGS
@given(st.data())
def test_reproduce_accepts_flags_or_names_one(reproduce, data):
    accepted(reproduce, {"table": "2"} | draw_flags(data, "reproduce"))


# The last values at either end of what each flag may be.
ENDS = {
    "client_fraction": ("0", "1e-300", "1"),
    "local_epochs": ("1", "2147483647"),
    "batch_size": ("1", "2147483647", "inf"),
    "client_lr": ("0", "1.18e-38", "3.4e38"),
    "server_lr": ("0", "1.18e-38", "3.4e38"),
    "num_rounds": ("1", "2", "2147483647"),
    "eval_every": ("1", "2147483647"),
    "target_accuracy": ("1e-300", "1"),
    "seed": ("0", "4294967295"),
    "client_optimizer": ("sgd", "sgd:momentum=1", "adam:b1=0,b2=0"),
    "server_optimizer": ("sgd", "sgd:momentum=0.9", "adam:b2=0.99,eps=1e-3", "yogi"),
    "aggregator": ("mean", "clip:0", "top_k:1e-30", "trimmed_mean:0"),
}
DECAYS = ("0", "1.18e-38", "1", "1.0000001", "3.4e38")


@settings(SETTINGS, max_examples=300)
@given(
    st.sampled_from(["fed_avg", "fed_prox", "scaffold", "fed_sgd"]),
    st.fixed_dictionaries(
        {"lr_decay": st.sampled_from(DECAYS)},
        optional={"weighting": st.sampled_from(["examples", "uniform"])},
    ),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(ends) for name, ends in ENDS.items()}),
)
def test_what_train_accepts_the_library_accepts(train, algorithm, arguments, given):
    if algorithm == "fed_prox":
        arguments |= {"mu": "0", "stragglers": "1", "shuffle": "never"}
    call = f"{algorithm}:{','.join(f'{name}={value}' for name, value in arguments.items())}"
    checked = accepted(train, given | {"algorithm": call})
    if checked is None:  # ends that do not go together
        return
    # As small as clients may be, which is what a script assumes before it has read any data.
    clients = toys.federation((1,) * 10)
    fs.simulation.check_sweep(
        train._algorithm(TASK, clients, checked.width, None),
        clients,
        hparams={},
        seeds=[flags.FLAGS.seed],
        num_rounds=flags.FLAGS.num_rounds,
        client_fraction=flags.FLAGS.client_fraction,
        evaluate=lambda params: {},
        eval_every=flags.FLAGS.eval_every,
        stop_at=flags.FLAGS.target_accuracy,
    )
