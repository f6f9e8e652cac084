"""Small files of messages by author."""

import gzip
import json
import lzma


def packed(path, content):
    """Writes `content` as the name of `path` says."""
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content.encode()))
    return path


def lines(said):
    return "".join(json.dumps({"author": a, "messages": m, "more": 1}) + "\n" for a, m in said.items())


def write(folder, said):
    return packed(folder / "m.jsonl", lines(said))


def twice(folder, *texts):
    """Two authors of the same messages, one to train and one to test on."""
    return write(folder, {"ada": texts, "bob": texts})
