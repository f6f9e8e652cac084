"""Which devices a fresh process gets: asked in processes of their own, since JAX starts only once."""

import os
import subprocess
import sys
import warnings

import jax
import pytest

import fedjax_sim as fs
from fedjax_sim.runtime import devices

ASK = "import fedjax_sim as fs, jax; print(jax.device_count())"
PROGRAMS = {
    "alone": (ASK, {}),
    "flag": (ASK, {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}),
    "environment": (ASK, {"JAX_NUM_CPU_DEVICES": "3"}),
    "config": (f"import jax; jax.config.update('jax_num_cpu_devices', 3); {ASK}", {}),
    "late": (
        "import jax; print(jax.device_count());" + ASK + "; import warnings\n"
        "fs.runtime.devices.available_cores = lambda: 4\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    print(fs.runtime.default_layout().num_devices)\n"
        "print([str(w.message) for w in caught], [w.filename for w in caught])",
        {},
    ),
}


@pytest.fixture(scope="module")
def answers():
    """What each program prints; they run side by side."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", program],
            env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (program, environment) in PROGRAMS.items()
    }
    finished = {name: process.communicate(timeout=120) for name, process in running.items()}
    for name, process in running.items():
        assert process.returncode == 0, finished[name][1]
    return {name: output.split("\n") for name, (output, _) in finished.items()}


def test_a_fresh_process_has_a_device_for_each_core(answers):
    assert answers["alone"][0] == str(fs.runtime.available_cores())


@pytest.mark.parametrize("name", ["flag", "environment", "config"])
def test_a_number_of_devices_that_the_user_chose_stays(answers, name):
    assert answers[name][0] == "3"


def test_asking_too_late_changes_nothing_and_the_layout_says_what_to_do(answers):
    before, after, used, caught, *_ = answers["late"]
    assert before == after == used == "1"
    assert "one CPU device for 4 cores" in caught
    assert "import fedjax_sim before the first use of JAX" in caught
    assert "'<string>'" in caught  # the caller's own line


def test_the_default_layout_takes_all_devices_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout = fs.runtime.default_layout()
    assert layout.mesh.axis_names == ("runs", "clients")
    assert list(layout.mesh.devices.flat) == jax.local_devices()
    assert layout.num_devices == 2
    assert layout.lanes == 1
    assert fs.runtime.default_layout(lanes=5).lanes == 5
    with pytest.raises(ValueError, match="lanes is 0"):
        fs.runtime.default_layout(lanes=0)


def test_one_device_on_one_core_is_no_reason_to_warn(monkeypatch):
    only = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: only)
    monkeypatch.setattr(devices, "available_cores", lambda: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fs.runtime.default_layout().num_devices == 1
    monkeypatch.setattr(devices, "available_cores", lambda: 2)
    with warnings.catch_warnings():  # the tests have chosen their devices
        warnings.simplefilter("error")
        fs.runtime.default_layout()
    monkeypatch.setattr(devices, "_devices_chosen", lambda: False)
    with pytest.warns(UserWarning, match="one CPU device for 2 cores"):
        fs.runtime.default_layout()


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert fs.runtime.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert fs.runtime.available_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert fs.runtime.available_cores() == 1
