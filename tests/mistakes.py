"""Changes the library on purpose, one mistake at a time, and says which of them no test sees.

    python tests/mistakes.py --list
    python tests/mistakes.py                        # all of them, some minutes on one core
    python tests/mistakes.py --only queues ledger   # those whose names contain one of these
    python tests/mistakes.py --json survivors.json

The mistakes are in `mistakes.toml`. Each is made in a temporary copy of package and tests, never in the
working tree, and the tests named there run until the first failure. A mistake survives if they all pass:
then a test is missing, or no result can differ, which the list has to explain.

The exit status is 1 if a mistake survives that the list does not explain, or an explained one is caught.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
PACKAGE = "fedjax_sim"
COPIED = (PACKAGE, "tests", "setup.cfg", "pyproject.toml")
_LIMIT = 900  # seconds for the tests of one mistake


def load():
    """The mistakes of the list."""
    return tomllib.loads((TESTS / "mistakes.toml").read_text())["mistake"]


def changed(mistake, source):
    """The text of a file with the mistake in it.

    Raises:
      ValueError: the old text does not occur there exactly once, or the new text is the same.
    """
    name, old, new = mistake["name"], mistake["old"], mistake["new"]
    count = source.count(old)
    if count != 1:
        raise ValueError(
            f"{name}: {old!r} occurs {count} times in {mistake['file']}; wanted once: change "
            "tests/mistakes.toml along with the library"
        )
    if old == new:
        raise ValueError(f"{name} changes nothing")
    return source.replace(old, new)


def run_tests(copy, home, name, tests):
    """Runs tests on a copy until the first failure; `(exit status, first failed test)`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", ""]
    # The tests' own cache of programs lies beside this, so that all runs share it.
    command += [f"--basetemp={home / 'runs' / name}", "--tb=no", *(f"tests/{test}" for test in tests)]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_LIMIT
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end within {_LIMIT} s"
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) and not failed:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode, failed.group(1) if failed else None


def copied(directory):
    """A copy of the package and of what tests it."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, directory / name)
    return directory


def check(home, mistake):
    """Makes one mistake in a copy and runs its tests."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=home) as directory:
        copy = copied(pathlib.Path(directory))
        path = copy / PACKAGE / mistake["file"]
        path.write_text(changed(mistake, path.read_text()))
        status, failed = run_tests(copy, home, mistake["name"], mistake["tests"])
    return {
        "name": mistake["name"],
        "file": mistake["file"],
        "caught_by": failed if status else None,
        "equivalent": mistake.get("equivalent"),
        "seconds": round(time.perf_counter() - started, 1),
    }


def verdict(found):
    """What is to be said of one mistake, and whether all is well."""
    caught, explained = found["caught_by"], found["equivalent"]
    if caught:
        told = f"caught by {caught}" + (", though it should change nothing" if explained else "")
        return told, not explained
    return (f"changes nothing: {explained}", True) if explained else ("SURVIVES", False)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="only says which mistakes there are")
    parser.add_argument("--only", nargs="+", metavar="PART", help="those whose names contain a PART")
    parser.add_argument(
        "--passed", action="store_true", help="the tests are known to pass without any mistake"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at a time; 1")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="writes what was found here")
    asked = parser.parse_args(arguments)

    chosen = [m for m in load() if not asked.only or any(part in m["name"] for part in asked.only)]
    if not chosen:
        parser.error(f"no mistake has a name with {' or '.join(asked.only)}")
    for mistake in chosen:  # all of them, before any runs
        changed(mistake, (ROOT / PACKAGE / mistake["file"]).read_text())
    if asked.list:
        for mistake in chosen:
            print(f"{mistake['name']:45} {mistake['file']:32} {' '.join(mistake['tests'])}")
        return 0

    results = []
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(asked.jobs) as pool:
        home = pathlib.Path(directory)
        (home / "runs").mkdir()
        if not asked.passed:
            tests = sorted({test for mistake in chosen for test in mistake["tests"]})
            (home / "unchanged").mkdir()
            status, failed = run_tests(copied(home / "unchanged"), home, "unchanged", tests)
            if status:
                raise RuntimeError(f"without any mistake {failed} fails already")
        for done in as_completed([pool.submit(check, home, mistake) for mistake in chosen]):
            found = done.result()
            results.append(found)
            print(f"{found['name']:45} {found['seconds']:6.1f} s  {verdict(found)[0]}", flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(results, indent=2) + "\n")
    bad = [found["name"] for found in results if not verdict(found)[1]]
    caught = sum(found["caught_by"] is not None for found in results)
    print(f"{caught} of {len(results)} caught; to look at: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
