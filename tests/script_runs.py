"""Runs of scripts as a user runs them, in another process, and their checks of flags, in this one."""

import contextlib
import importlib
import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags

import fedjax_sim as fs

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"


def train(*flags, cwd, check=True):
    command = [sys.executable, str(SCRIPTS / "train.py"), *flags]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def loaded(script):
    """A script as a module. Its flags are gone afterwards; others may follow."""
    before = {*flags.FLAGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        patch.setattr(sys, "argv", [script])
        try:
            yield importlib.import_module(script)
        finally:
            flags.FLAGS.remove_flag_values({*flags.FLAGS} - before)
            for path in (*SCRIPTS.glob("*.py"), *SCRIPTS.glob("flags/*.py")):
                name = ".".join(path.relative_to(SCRIPTS).with_suffix("").parts)
                sys.modules.pop(name.removesuffix(".__init__"), None)


def check(module, *given):
    """What a script says of flags, all others having their defaults; it may read no data for it."""

    def read(*args, **kwargs):
        pytest.fail("flags are to be checked before any data is read")

    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS([module.__name__, *given])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "open_federated", "synthetic", "random_graphical_model"):
            patch.setattr(fs.data, name, read)
        return module.check()


def refusal(module, *given):
    """The message that flags are refused with."""
    with pytest.raises((ValueError, flags.Error)) as error:
        check(module, *given)
    return str(error.value)
