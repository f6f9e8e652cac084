"""Compiled programs kept in a folder, for later processes."""

import hashlib
import os
import pathlib
import platform
import re
import stat

import jax
from jax.experimental.compilation_cache import compilation_cache

_MAX_BYTES = 2 * 1024**3
_LEAST_SECONDS = 0.1  # of compiling; what takes less is not worth a file
_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def keep_programs(
    folder: str | os.PathLike | None = None, *, max_bytes: int = _MAX_BYTES
) -> pathlib.Path:
    """Keeps compiled programs in a folder, so that later processes load them instead of compiling.

    JAX looks programs up by their content, its version, the devices and the compiler's flags. If
    JAX_COMPILATION_CACHE_DIR is set, that folder stays, unless another one is given.

    Args:
      folder: folder of this user; by default `fedjax_sim` in the user's cache folder (XDG_CACHE_HOME, or
        `~/.cache`), with a subfolder for each kind of processor, whose programs another may not run.
      max_bytes: most that the folder may hold; programs that were not used for longest go first.

    Returns:
      The folder.

    Raises:
      ValueError: others may write to the folder, and so could plant programs that run as you.
      OSError: the folder cannot be made.
    """
    chosen = jax.config.jax_compilation_cache_dir
    if folder is None and chosen:
        return pathlib.Path(chosen)
    path = _default_folder() if folder is None else pathlib.Path(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = path.stat()
    strange = hasattr(os, "getuid") and about.st_uid != os.getuid()
    if strange or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"{path} belongs to another user, or others may write to it and plant programs that run as "
            "you; wanted a folder of your own, after `chmod go-w`"
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", max_bytes)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    compilation_cache.reset_cache()  # JAX may have compiled something and found no folder
    return path


def _default_folder() -> pathlib.Path:
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return caches / "fedjax_sim" / f"programs-{_processor()}"


def _processor() -> str:
    """Identifies the instructions that this processor has."""
    try:
        found = re.search(r"^(flags|Features)\s*:.*$", _CPU_INFO.read_text(), re.MULTILINE)
    except OSError:  # another system than Linux
        found = None
    told = f"{platform.machine()} {found[0] if found else platform.processor()}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]
