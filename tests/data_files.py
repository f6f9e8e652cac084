"""Where the tests find data files that the project does not ship."""

import os
import pathlib

import pytest

_VARIABLE = "FEDJAX_SIM_DATA"
_BESIDE_PROJECT = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def data_root() -> pathlib.Path | None:
    """The folder of data files: `$FEDJAX_SIM_DATA`, else `../shared/data`; None where absent."""
    root = pathlib.Path(os.environ.get(_VARIABLE, _BESIDE_PROJECT))
    return root if root.is_dir() else None


def needs(relative: str) -> pytest.MarkDecorator:
    """Skips a test where the data root has no such file or folder."""
    root = data_root()
    return pytest.mark.skipif(
        root is None or not (root / relative).exists(),
        reason=f"needs {relative} in ${_VARIABLE} or in ../shared/data",
    )
