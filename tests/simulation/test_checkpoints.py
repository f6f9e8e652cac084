"""Checkpoints by themselves: whatever of one is not what was saved, an older one takes its place."""

import json
import shutil

import numpy as np
import pytest

from fedjax_sim.simulation.checkpoint import Checkpoint, Checkpoints, StructureError


def leaves(value):
    return {"00000": np.full((2, 3), value, np.float32), "00001": np.array([1, 2], np.int32)}


def saved(home, *rounds):
    """A folder with checkpoints of these rounds, whose numbers are their round's."""
    home.mkdir(exist_ok=True)
    checkpoints = Checkpoints(home / "checkpoints")
    for r in rounds:
        checkpoints.save(Checkpoint(r, leaves(r), [{"round": r, "loss": 0.25}]))
    checkpoints.close()
    return home / "checkpoints"


def restored(home, like=None):
    checkpoints = Checkpoints(home / "checkpoints")
    found = checkpoints.restore(leaves(0) if like is None else like)
    checkpoints.close()
    return found


def swap_state(newest):
    """Another run's state, whole by itself."""
    other = saved(newest.parent.parent / "other", 9)
    shutil.rmtree(newest / "state")
    shutil.copytree(other / "9" / "state", newest / "state")


def edit_rows(newest):
    path = newest / "meta" / "metadata"
    text = path.read_text()
    assert json.loads(text)["rows"] == [{"round": 2, "loss": 0.25}]
    path.write_text(text.replace("0.25", "0.75"))


def test_the_newest_is_restored_with_its_rows(tmp_path):
    saved(tmp_path, 1, 2)
    found = restored(tmp_path)
    assert (found.round, found.rows) == (2, [{"round": 2, "loss": 0.25}])
    for name, leaf in leaves(2).items():
        np.testing.assert_array_equal(found.leaves[name], leaf)


@pytest.mark.parametrize(("damage", "what"), [(swap_state, "state"), (edit_rows, "rows")])
def test_what_does_not_match_its_digest_is_moved_aside(tmp_path, caplog, damage, what):
    """Also where a kill came between a checkpoint and the digests of its files."""
    newest = saved(tmp_path, 1, 2) / "2"
    (digests,) = tmp_path.glob("checkpoints_digests/2.json")
    digests.unlink()
    damage(newest)
    found = restored(tmp_path)
    assert found.round == 1
    assert (found.leaves["00000"] == 1).all()
    assert f"round 2 is damaged (its {what} do" in caplog.text
    assert (tmp_path / "checkpoints_unreadable" / "2").is_dir()


@pytest.mark.parametrize("pattern", ["state/d/*", "meta/metadata", "_CHECKPOINT_METADATA"])
def test_a_damaged_file_is_named_and_orbax_says_nothing(tmp_path, caplog, capfd, pattern):
    """Orbax printed a traceback for each array that it gave up reading."""
    newest = saved(tmp_path, 1, 2) / "2"
    path = next(newest.glob(pattern))
    path.write_bytes(path.read_bytes()[:5])
    assert restored(tmp_path).round == 1
    assert f"its file {path.relative_to(newest)} differs from what was written" in caplog.text
    assert capfd.readouterr().err.count("\n") <= 1


def test_arrays_of_another_run_are_refused_and_stay(tmp_path):
    saved(tmp_path, 1)
    like = leaves(0) | {"00001": np.zeros(3, np.int32)}
    with pytest.raises(StructureError, match=r"int32\[2\].*int32\[3\]"):
        restored(tmp_path, like)
    assert restored(tmp_path).round == 1
