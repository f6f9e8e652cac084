"""Programs kept in a folder: found by a second process, refused where others may write."""

import os
import subprocess
import sys

import jax
import pytest

from fedjax_sim.runtime import keep_programs, program_cache

PROGRAM = """
import sys, jax, jax.numpy as jnp
jnp.zeros(3)  # something compiled before
import fedjax_sim as fs
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
print(fs.runtime.keep_programs())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))[0, 0], sum(hits))
"""


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment = clean | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    (folder, value, none), (again, same, found) = outputs
    assert folder == again
    assert folder.startswith(f"{tmp_path}/fedjax_sim/programs-")
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert value == same
    assert int(none) == 0 < int(found)


def test_a_folder_that_the_user_chose_stays():
    chosen = jax.config.jax_compilation_cache_dir
    assert chosen  # by the tests' own settings
    assert str(keep_programs()) == chosen == jax.config.jax_compilation_cache_dir


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no users by number")
def test_a_folder_in_which_others_may_write_is_refused(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ValueError, match=r"shared belongs to another user, .*chmod go-w"):
        keep_programs(shared)
    assert jax.config.jax_compilation_cache_dir == before


def test_another_processor_has_another_folder(monkeypatch, tmp_path):
    ours = program_cache._default_folder()
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu sse avx512f\n")
    monkeypatch.setattr(program_cache, "_CPU_INFO", info)
    theirs = program_cache._default_folder()
    assert theirs.parent == ours.parent
    assert theirs != ours
    info.write_text("processor : 0\nmodel : another\nflags\t\t: fpu sse avx512f\n")
    assert program_cache._default_folder() == theirs
