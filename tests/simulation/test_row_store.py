"""The file of clients' rows: what was written last, and snapshots that later writes leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from fedjax_sim.core.types import ABSENT
from fedjax_sim.simulation import row_store
from fedjax_sim.simulation.checkpoint import KEEP, Checkpoint, Checkpoints, StructureError
from fedjax_sim.simulation.row_store import RowStore

LIKE = {
    "a": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "b": jax.ShapeDtypeStruct((), jnp.bool_),
    "c": jax.ShapeDtypeStruct((5,), jnp.bfloat16),
    "none": jax.ShapeDtypeStruct((0,), jnp.int32),
}
ROW_BYTES = 24 + 1 + 10
N = 12


def rows(rng, count):
    def draw(leaf):
        return rng.integers(-3, 3, (count, *leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(draw, LIKE)


def assert_holds(store, known):
    """The store has these clients' rows and no others."""
    everybody = np.arange(N)
    assert store.has(everybody).tolist() == [k in known for k in range(N)]
    assert store.clients.tolist() == sorted(known)
    for k, row in known.items():
        read = jax.tree.map(lambda leaf: leaf[0], store.read(np.array([k])))
        toys.assert_same(read, row)


def write(store, known, rng, ids):
    new = rows(rng, len(ids))
    store.write(ids, new)
    for i, k in enumerate(ids):
        known[int(k)] = jax.tree.map(lambda leaf, i=i: leaf[i], new)


def test_each_snapshot_that_is_kept_is_found_again_whatever_was_written_since(tmp_path):
    """Runs are killed at random moments and go on from one of the newest snapshots."""
    rng, path = np.random.default_rng(0), tmp_path / "rows"
    store, known, kept = RowStore(LIKE, N, path), {}, []
    for _ in range(300):
        what = rng.choice(["write", "write", "write", "forget", "snapshot", "snapshot", "killed"])
        if what == "forget":
            client = int(rng.integers(N))
            store.forget(np.array([client]))
            known.pop(client, None)
        elif what == "write":
            write(store, known, rng, rng.choice(N, rng.integers(1, 5), replace=False))
        elif what == "snapshot":
            kept = [*kept, (store.snapshot(), dict(known))][-KEEP:]
        elif kept:
            back = rng.integers(len(kept))
            kept = kept[: back + 1]
            store, known = RowStore(LIKE, N, path), dict(kept[-1][1])
            for index, then in kept:
                store.check(index)
                store.restore(index)
                assert_holds(store, then)
        assert_holds(store, known)


def test_slots_are_used_again_also_by_runs_that_were_killed(tmp_path):
    path, rng = tmp_path / "rows", np.random.default_rng(0)
    store, index = RowStore(LIKE, N, path), None
    for snapshots in (3 * KEEP, 1, 1, 1, 2, 1):
        store.restore(index)
        for _ in range(snapshots):
            store.write(np.arange(N), rows(rng, N))
            store.write(np.arange(N), rows(rng, N))  # into the same slots
            index = store.snapshot()
        store.write(np.arange(N), rows(rng, N))  # lost
        store = RowStore(LIKE, N, path)
    assert path.stat().st_size <= (KEEP + 1) * N * ROW_BYTES


def test_only_rows_that_were_written_take_room(tmp_path):
    path, rng = tmp_path / "rows", np.random.default_rng(0)
    store = RowStore(LIKE, 10**6, path)
    assert store.row_bytes == ROW_BYTES
    for ids in ([5, 999_999], [5, 7]):
        store.write(np.array(ids), rows(rng, 2))
    store.snapshot()
    assert path.stat().st_size == 3 * ROW_BYTES
    store.update(np.array([5, 7]), store.read(np.array([5, 7])))  # nothing new
    assert path.stat().st_size == 3 * ROW_BYTES
    store.update(np.array([5, 7]), rows(rng, 2))
    store.snapshot()
    assert path.stat().st_size == 5 * ROW_BYTES


def test_absent_clients_write_and_read_nothing():
    store, rng = RowStore(LIKE, N), np.random.default_rng(0)
    ids, new = np.array([3, ABSENT, 11]), rows(rng, 3)
    store.write(ids, new)
    assert store.clients.tolist() == [3, 11]
    assert store.has(ids).tolist() == [True, False, True]
    read = store.read(ids)
    toys.assert_same(read, jax.tree.map(lambda leaf: np.where(_rows([1, 0, 1], leaf), leaf, 0), new))


def _rows(chosen, leaf):
    return np.array(chosen, bool).reshape(-1, *(1,) * (leaf.ndim - 1))


def test_a_file_that_shrinks_or_changes_is_noticed(tmp_path):
    path = tmp_path / "rows"
    store = RowStore(LIKE, N, path)
    store.write(np.arange(4), rows(np.random.default_rng(0), 4))
    index = store.snapshot()
    content = bytearray(path.read_bytes())
    content[2 * ROW_BYTES] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"row of client 2 in {path} is not what was written"):
        RowStore(LIKE, N, path).check(index)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="rows shrank while it was in use"):
        store.read(np.arange(4))


@pytest.mark.parametrize(("like", "count"), [(LIKE | {"b": LIKE["c"]}, N), (LIKE, N + 1)])
def test_checkpoints_of_other_rows_or_another_number_of_clients_are_refused(tmp_path, like, count):
    store = RowStore(LIKE, N, tmp_path / "rows")
    store.write(np.arange(4), rows(np.random.default_rng(0), 4))
    checkpoints = Checkpoints(tmp_path / "checkpoints", store)
    checkpoints.save(Checkpoint(1, store.snapshot(), []))
    checkpoints.close()
    other = RowStore(like, count, tmp_path / "others")
    checkpoints = Checkpoints(tmp_path / "checkpoints", other)
    with pytest.raises(StructureError, match="it belongs to another model or optimizer"):
        checkpoints.restore(other.empty_index())
    checkpoints.close()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def write(self, part):
        raise OSError(28, "No space left on device")

    store = RowStore(LIKE, N, tmp_path / "rows")
    monkeypatch.setattr(store, "_file", type("Full", (), {"seek": lambda *_: 0, "write": write})())
    with pytest.raises(OSError, match=r"the disk of .*rows is full: .* bytes are free"):
        store.write(np.arange(2), rows(np.random.default_rng(0), 2))


def test_room_for_a_file_counts_what_it_has_already(tmp_path):
    path = tmp_path / "new" / "rows"
    free = row_store.free_bytes(path)
    assert free > 0
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse
    assert row_store.free_bytes(path) > 10**12
