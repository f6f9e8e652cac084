"""Small files that would fill the memory: limits hold, and peaks stay near what a file unpacks to."""

import gzip
import json
import lzma
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import shakespeare_corpus as corpus
from message_corpus import lines, packed

from fedjax_sim.data import (
    MAX_UNPACKED_BYTES,
    federate,
    from_arrays,
    load,
    messages,
    natural,
    read_messages,
    save_federated,
)
from fedjax_sim.data.sources.cifar import read_cifar10
from fedjax_sim.data.sources.idx import read_idx
from fedjax_sim.data.sources.shakespeare import read_shakespeare

MiB = 2**20
SIZE = 24 * MiB


def peak_bytes(action):
    """The most memory that was held at any moment of an action, whatever its outcome."""
    tracemalloc.start()
    try:
        action()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def read_all(folder, limit):
    """What reads one file of each kind, by the file's name."""
    limits = {"max_unpacked_bytes": limit}
    return {
        "m.jsonl": lambda path: read_messages(path, **limits),
        "m.jsonl.xz": lambda path: read_messages(path, **limits),
        "m.jsonl.gz": lambda path: messages(path, **limits),
        "m.json.xz": lambda path: read_messages(path, **limits),
        "pg100.txt": lambda path: read_shakespeare(path, "s", **limits),
        "pg100.txt.gz": lambda path: load("shakespeare", folder, **limits),
        "digits.gz": lambda path: read_idx(path, "uint8", (SIZE - 16,), **limits),
        "test_batch.bin": lambda path: read_cifar10([path], path, "c", **limits),
    }


@pytest.mark.parametrize("name", read_all(None, 1))
def test_no_more_is_read_than_the_limit(tmp_path, name):
    header = bytes([0, 0, 8, 1, *(SIZE - 16).to_bytes(4, "big")]) if name == "digits.gz" else b""
    content = header + b" " * (SIZE - len(header))
    pack = {"gz": gzip.compress, "xz": lzma.compress}.get(name.rpartition(".")[2], bytes)
    path = tmp_path / name
    path.write_bytes(pack(content))
    del content
    wanted = rf"{name} has more to read than expected; wanted at most max_unpacked_bytes, 1,048,576: if"

    def read():
        with pytest.raises(ValueError, match=wanted):
            read_all(tmp_path, MiB)[name](path)

    room = 16 if path.suffix == ".xz" else 8  # xz has a dictionary of 8 MiB
    known = SIZE if name == "digits.gz" else 0  # the length is, and given its room at once
    assert peak_bytes(read) < room * MiB + known


@pytest.mark.parametrize("limit", [0, -1, 2.0**20, True, None, "1"])
def test_a_limit_is_a_positive_integer(tmp_path, limit):
    path = packed(tmp_path / "m.jsonl", lines({"ada": ["a"]}))
    with pytest.raises(ValueError, match=r"max_unpacked_bytes is .*; wanted an integer of at least 1"):
        read_messages(path, max_unpacked_bytes=limit)


def test_a_limit_that_is_just_large_enough(tmp_path):
    content = lines({"ada": ["a"]})
    path = packed(tmp_path / "m.jsonl.xz", content)
    assert read_messages(path, max_unpacked_bytes=len(content)) == {"ada": ["a"]}
    with pytest.raises(ValueError, match="wanted at most max_unpacked_bytes"):
        read_messages(path, max_unpacked_bytes=len(content) - 1)


@pytest.mark.slow
def test_a_line_of_3_gigabytes_in_a_small_archive(tmp_path):
    path = tmp_path / "m.jsonl.xz"
    with path.open("wb") as file:  # an archive may be several, one after the other
        file.write(lzma.compress(b'{"author": "a", "messages": ["'))
        piece = lzma.compress(b"a" * 2**25)
        file.writelines([piece] * 90)
    assert path.stat().st_size < 600_000

    def read():
        with pytest.raises(ValueError, match=r"m\.jsonl\.xz has more to read .* 1,073,741,824: if"):
            messages(path)

    assert peak_bytes(read) < 1.5 * MAX_UNPACKED_BYTES


_READ = """
import pathlib, resource, sys
from fedjax_sim.data import read_messages
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
try:
    read_messages(sys.argv[1])
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, to limit the memory")
def test_an_archive_that_wants_more_memory_than_there_is(tmp_path):
    content = bytearray(lzma.compress(lines({"ada": ["a"]}).encode()))
    header = content[12:24]  # of the first block: its size, flags, filter, properties, and their CRC32
    assert header[:4] == bytes([2, 0, 0x21, 1])
    header[4] = 40  # a dictionary of 4 GiB
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    content[12:24] = header
    path = tmp_path / "m.jsonl.xz"
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", _READ, path], capture_output=True, text=True, timeout=120
    )
    assert "m.jsonl.xz takes more memory to unpack than there is" in done.stdout, done.stderr


class TestLongNames:
    """NumPy's strings would take 4 bytes times the longest name for every row."""

    def test_of_an_author(self, tmp_path):
        said = {"a" * 20_000: ["w"]} | {f"{i}": ["w"] * 20 for i in range(100)}
        path = packed(tmp_path / "m.jsonl", lines(said))
        found = []
        peak = peak_bytes(lambda: found.append(messages(path, vocabulary_size=5)))
        assert peak < 40 * path.stat().st_size
        assert "a" * 20_000 in {*found[0].train.keys["author"], *found[0].test.keys["author"]}
        for dataset in (found[0].train, found[0].test):
            assert peak_bytes(lambda d=dataset: federate(d, natural("author"))) < 2 * MiB

    def test_of_a_role(self, tmp_path):
        play = corpus.speech("K" * 20_000, *"abc") + corpus.speech("KING", *["line"] * 1_000)
        path = corpus.write(tmp_path, corpus.text(corpus.work("PLAY", play)), "pg100.txt")
        assert peak_bytes(lambda: read_shakespeare(path, "s")) < 4 * MiB

    def test_of_a_play(self, tmp_path):
        play = "".join(corpus.speech("K" * i, *"abc") for i in range(1, 100))
        corpus.write(tmp_path, corpus.text(corpus.work("T" * 20_000, play)), "pg100.txt")
        wanted = r"pg100\.txt has a title of 20000 bytes, b'TTT.*; wanted at most 200"
        with pytest.raises(ValueError, match=wanted):
            load("shakespeare", tmp_path)

    def test_are_not_stored(self, tmp_path):
        dataset = from_arrays(np.zeros((2, 1)), [0, 0], keys={"a": np.array(["b", "a" * 999], object)})
        with pytest.raises(ValueError, match=r"client id 'aaa.* has 999 characters; wanted at most 256"):
            save_federated(federate(dataset, natural("a")), tmp_path)


class TestManySmallThings:
    def test_lines_of_a_text(self, tmp_path):
        path = tmp_path / "pg100.txt.gz"
        path.write_bytes(
            gzip.compress(b"\n" * (8 * MiB) + corpus.END.replace("by William", "").encode())
        )

        def read():
            with pytest.raises(ValueError, match="has 0 lines with 'by William Shakespeare'"):
                load("shakespeare", tmp_path)

        assert peak_bytes(read) < 5 * 8 * MiB

    def test_words_of_one_message_beyond_the_limit_of_words(self, tmp_path):
        path = packed(tmp_path / "m.jsonl.xz", lines({"ada": ["ab " * MiB], "bob": ["ab"]}))
        assert peak_bytes(lambda: messages(path, vocabulary_size=5)) < 8 * 3 * MiB

    @pytest.mark.parametrize(("length", "made"), [(10**9, "12,000,000,000"), (100, "1,200")])
    def test_rows_of_messages(self, tmp_path, length, made):
        path = packed(tmp_path / "m.jsonl", lines({"ada": ["a"], "bob": ["a"]}))
        limits = {} if length == 10**9 else {"max_unpacked_bytes": 1_000}
        wanted = rf"m\.jsonl: its examples would take {made} bytes; wanted at most max_unpacked_bytes"
        with pytest.raises(ValueError, match=wanted):
            messages(path, vocabulary_size=5, length=length, **limits)

    def test_rows_of_a_text(self, tmp_path):
        play = corpus.speech("A", *["b"] * 1_000) + corpus.speech("B", "c")
        path = corpus.write(tmp_path, corpus.text(corpus.work("PLAY", play)), "pg100.txt")
        size = path.stat().st_size
        wanted = rf"pg100\.txt: its examples would take 480,000 bytes; .* {size:,}: if this is the right"
        with pytest.raises(ValueError, match=wanted):
            read_shakespeare(path, "s", max_unpacked_bytes=size)
        assert len(read_shakespeare(path, "s", max_unpacked_bytes=480_000)[0]) == 800

    def test_keys_of_a_json_object(self, tmp_path):
        users = [str(i) for i in range(20_000)]
        data = {user: {"x": []} for user in users}
        content = json.dumps({"users": users, "num_samples": [0] * 20_000, "user_data": data})
        path = packed(tmp_path / "m.json.xz", content)
        assert peak_bytes(lambda: read_messages(path)) < 40 * len(content)
