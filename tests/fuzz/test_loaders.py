"""Files that were damaged anywhere: a loader makes something valid of them, or its error names them."""

import gzip
import json
import lzma

import numpy as np
import pytest
import shakespeare_corpus as corpus
from damage import altered, bounded, damaged, json_values, result_of
from hypothesis import given
from hypothesis import strategies as st
from message_corpus import lines

from fedjax_sim.data import federate, from_leaf, messages, natural, read_messages
from fedjax_sim.data.sources.cifar import read_cifar10
from fedjax_sim.data.sources.idx import read_idx
from fedjax_sim.data.sources.shakespeare import read_shakespeare

pytestmark = pytest.mark.slow

LIMIT = 2**20
PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}

SAID = {"ada": ["Hello, you!", "bye"], "bob": [], "eve": ["hm hm"], "fay": ["you, hm"]}
USER_DATA = {user: {"x": x, "y": [0] * len(x)} for user, x in SAID.items()}
LEAF = {"users": list(SAID), "num_samples": [len(x) for x in SAID.values()], "user_data": USER_DATA}
NUMBERS = {"ada": {"x": [[0.5, 1], [2, 3]], "y": [1, 0]}, "bob": {"x": [], "y": []}}
LEAF_NUMBERS = {"users": ["ada", "bob"], "num_samples": [2, 0], "user_data": NUMBERS}

PLAYS = corpus.text(
    corpus.work("PLAY", corpus.speech("KING", *"abcdef") + corpus.speech("LORD", "a", "b", "c")),
    corpus.work("THE COMEDY OF ERRORS", "THE COMEDY OF ERRORS\nDUKE. a\n  b\n  c\nLORD. a\n  b\n  c\n"),
)
TOKENS = (b"\n", b"\r\n", b"  KING. ", b"    ", b"by William Shakespeare", b"\n\n\n\n\n\n\n\n\n\n")
TOKENS += (b"END OF THIS PROJECT GUTENBERG", b"THE COMEDY OF ERRORS", b"\xef\xbb\xbf", b"\0", b"\xff")

PIXELS = np.arange(12, dtype=np.uint8).reshape(4, 3)
IDX = bytes([0, 0, 8, 2, 0, 0, 0, 4, 0, 0, 0, 3]) + PIXELS.tobytes()
CIFAR = b"".join(bytes([label]) + bytes(3072) for label in (0, 9, 3))


def assert_valid(dataset):
    x, y = dataset.examples["x"], dataset.examples["y"]
    assert len(x) == len(y) > 0
    assert 0 <= y.min() <= y.max() < dataset.num_classes
    assert all(len(key) == len(x) for key in dataset.keys.values())
    for name in dataset.keys:
        data = federate(dataset, natural(name))
        data.check()
        assert data.client_ids.tolist() == sorted(set(dataset.keys[name].tolist()))


def assert_messages_read(path):
    """What is said are texts, and words can be made of it or the error says why not."""
    said = result_of(lambda: read_messages(path, max_unpacked_bytes=LIMIT), path)
    if said is not None:
        assert all(isinstance(author, str) for author in said)
        assert all(isinstance(text, str) for texts in said.values() for text in texts)
    settings = {"vocabulary_size": 5, "length": 3, "max_unpacked_bytes": LIMIT}
    found = result_of(lambda: messages(path, **settings), path)
    if found is not None:
        assert said is not None
        assert_valid(found.train)
        assert_valid(found.test)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


kinds_of_packing = st.sampled_from(list(PACKED))


class TestMessages:
    LINES = lines(SAID).encode()
    WHOLE = json.dumps(LEAF).encode()
    JSON_TOKENS = (b"[", b'{"a":', b'"', b"NaN", b"1e999", b"\\ud800", b"\n", b"\xef\xbb\xbf", b"null")

    @given(content=damaged(LINES, JSON_TOKENS), packing=kinds_of_packing)
    @bounded
    def test_damaged_lines(self, tmp_path, content, packing):
        assert_messages_read(write(tmp_path, f"m.jsonl{packing}", PACKED[packing](content)))

    @given(content=damaged(WHOLE, JSON_TOKENS), packing=kinds_of_packing)
    @bounded
    def test_damaged_leaf(self, tmp_path, content, packing):
        assert_messages_read(write(tmp_path, f"m.json{packing}", PACKED[packing](content)))

    @given(value=altered(LEAF))
    @bounded
    def test_altered_leaf(self, tmp_path, value):
        assert_messages_read(write(tmp_path, "m.json", json.dumps(value).encode()))

    @given(
        values=st.lists(altered({"author": "ada", "messages": ["a b", "c"]}) | json_values, max_size=3)
    )
    @bounded
    def test_altered_lines(self, tmp_path, values):
        good = [{"author": author, "messages": ["a"]} for author in ("x", "y")]
        content = "".join(json.dumps(value) + "\n" for value in good + values)
        assert_messages_read(write(tmp_path, "m.jsonl", content.encode()))

    @given(content=st.binary(max_size=200), name=st.sampled_from(["m.json", "m.jsonl"]))
    @bounded
    def test_anything(self, tmp_path, content, name):
        assert_messages_read(write(tmp_path, name, content))

    @given(content=damaged(gzip.compress(LINES, mtime=0)))
    @bounded
    def test_damaged_gzip(self, tmp_path, content):
        assert_messages_read(write(tmp_path, "m.jsonl.gz", content))

    @given(content=damaged(lzma.compress(LINES)))
    @bounded
    def test_damaged_xz(self, tmp_path, content):
        assert_messages_read(write(tmp_path, "m.jsonl.xz", content))


class TestShakespeare:
    def read(self, path):
        found = result_of(lambda: read_shakespeare(path, "s", max_unpacked_bytes=LIMIT), path)
        for dataset in found or ():
            assert_valid(dataset)
        return found

    @given(content=damaged(PLAYS.encode(), TOKENS), packing=st.sampled_from(["", ".gz"]))
    @bounded
    def test_damaged_text(self, tmp_path, content, packing):
        self.read(write(tmp_path, f"pg100.txt{packing}", PACKED[packing](content)))

    @given(parts=st.lists(st.sampled_from([*TOKENS, b"a", b" "]), max_size=60).map(b"".join))
    @bounded
    def test_parts_of_a_text(self, tmp_path, parts):
        self.read(write(tmp_path, "pg100.txt", parts))

    @given(content=damaged(gzip.compress(PLAYS.encode(), mtime=0)))
    @bounded
    def test_damaged_gzip(self, tmp_path, content):
        self.read(write(tmp_path, "pg100.txt.gz", content))


class TestLeaf:
    def read(self, path):
        data = result_of(lambda: from_leaf(path, max_unpacked_bytes=LIMIT), path)
        if data is not None:
            data.check()
            assert data.examples["x"].dtype in (np.float32, np.int32)

    @given(content=damaged(json.dumps(LEAF_NUMBERS).encode(), TestMessages.JSON_TOKENS))
    @bounded
    def test_damaged(self, tmp_path, content):
        self.read(write(tmp_path, "f.json", content))

    @given(value=altered(LEAF_NUMBERS))
    @bounded
    def test_altered(self, tmp_path, value):
        self.read(write(tmp_path, "f.json", json.dumps(value).encode()))


class TestImages:
    @given(content=damaged(IDX).map(gzip.compress) | damaged(gzip.compress(IDX, mtime=0)))
    @bounded
    def test_idx(self, tmp_path, content):
        path = write(tmp_path, "a.gz", content)
        read = result_of(lambda: read_idx(path, "uint8", (4, 3), max_unpacked_bytes=LIMIT), path)
        if read is not None:
            assert (read.dtype, read.shape) == (np.uint8, (4, 3))
        free = result_of(lambda: read_idx(path, "uint8", (None, 3), max_unpacked_bytes=LIMIT), path)
        if free is not None:
            assert (free.dtype, free.shape[1:]) == (np.uint8, (3,))

    @given(content=damaged(CIFAR))
    @bounded
    def test_cifar(self, tmp_path, content):
        path = write(tmp_path, "test_batch.bin", content)
        for dataset in result_of(lambda: read_cifar10([path, path], path, "c"), path) or ():
            assert_valid(dataset)
            assert dataset.examples["x"].shape[1:] == (32, 32, 3)


def test_what_is_damaged_was_valid(tmp_path):
    train, _ = read_shakespeare(write(tmp_path, "pg100.txt", PLAYS.encode()), "s")
    assert len(set(train.keys["role"])) == 4
    for name, content in {"m.jsonl": TestMessages.LINES, "m.json": TestMessages.WHOLE}.items():
        assert read_messages(write(tmp_path, name, content)) == SAID
    np.testing.assert_array_equal(
        read_idx(write(tmp_path, "a.gz", gzip.compress(IDX)), "uint8", (4, 3)), PIXELS
    )
    path = write(tmp_path, "test_batch.bin", CIFAR)
    assert read_cifar10([path], path, "c")[0].examples["y"].tolist() == [0, 9, 3]
