"""Files of messages by author, in each format."""

import json

import pytest
from message_corpus import lines, packed

from fedjax_sim.data import messages, read_messages

SAID = {"ada": ["Hello, you!", "bye"], "bob": [], "eve": ["hm\nhm"]}
DATA = {user: {"x": x, "y": [0] * len(x)} for user, x in SAID.items()}
LEAF = {"users": ["ada", "bob", "eve"], "num_samples": [2, 0, 1], "user_data": DATA}


class TestFormats:
    @pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz", "m.jsonl.xz", "m.txt", "m.txt.xz"])
    def test_json_lines(self, tmp_path, name):
        got = read_messages(packed(tmp_path / name, lines(SAID)))
        assert list(got.items()) == list(SAID.items())

    def test_marks_carriage_returns_and_no_last_newline(self, tmp_path):
        content = "\ufeff" + lines(SAID).replace("\n", "\r\n").rstrip()
        assert read_messages(packed(tmp_path / "m.jsonl", content)) == SAID

    def test_what_is_ignored_may_be_nan(self, tmp_path):
        path = packed(tmp_path / "m.jsonl", '{"author": "a", "messages": ["b"], "score": NaN}')
        assert read_messages(path) == {"a": ["b"]}

    def test_an_author_of_several_lines_is_one(self, tmp_path):
        content = lines({"ada": ["1"]}) + lines(SAID) + lines({"bob": ["2"]})
        got = read_messages(packed(tmp_path / "m.jsonl", content))
        assert got == SAID | {"ada": ["1", *SAID["ada"]], "bob": ["2"]}
        assert list(got) == ["ada", "bob", "eve"]

    @pytest.mark.parametrize("name", ["m.json", "m.json.gz", "m.json.xz"])
    @pytest.mark.parametrize("indent", [None, 2])
    def test_leaf(self, tmp_path, name, indent):
        got = read_messages(packed(tmp_path / name, json.dumps(LEAF, indent=indent)))
        assert list(got.items()) == list(SAID.items())

    def test_leaf_lists_of_words(self, tmp_path):
        data = {"ada": {"x": [["hello", "you"], "bye", []]}}
        content = {"users": ["ada"], "num_samples": [3], "user_data": data}
        got = read_messages(packed(tmp_path / "m.json", json.dumps(content)))
        assert got == {"ada": ["hello you", "bye", ""]}


class TestDamage:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("", "is empty"),
            ("  ", "is empty"),
            ("{", r"is not JSON in UTF-8 \(Expecting"),
            ("[" * 100_000, r"is not JSON in UTF-8 \("),
            ("[1]", "holds a list"),
            ('{"messages": []}', r"has keys \['messages'\], without 'author'"),
            ('{"author": "a"}', r"has keys \['author'\], without 'messages'"),
            (json.dumps(LEAF), r"has keys .*, without 'author', as in LEAF's .* must end in \.json"),
            ('{"author": 1, "messages": []}', "has an author that is a int"),
            ('{"author": "a", "messages": "b"}', "has messages that are a str"),
            ('{"author": "a", "messages": ["", null]}', "has a message that is a NoneType"),
            (
                '{"author": "a", "messages": [], "author": "b"}',
                r"is not JSON in UTF-8 \(the key 'author' occurs twice in one object",
            ),
            (
                '{"author": "a", "messages": [], "more": {"b": 1, "b": 1}}',
                "is not .* key 'b' occurs twice",
            ),
        ],
        ids=range(13),
    )
    def test_a_wrong_line_is_named(self, tmp_path, line, message):
        path = packed(tmp_path / "m.jsonl", f"{lines(SAID)}{line}\n")
        with pytest.raises(ValueError, match=rf'm\.jsonl, line 4 {message}.*; wanted {{"author"'):
            read_messages(path)

    def test_another_encoding(self, tmp_path):
        path = tmp_path / "m.jsonl"
        path.write_bytes(b'{"author": "a", "messages": ["\xe9"]}\n')
        with pytest.raises(ValueError, match=r"line 1 is not JSON in UTF-8 \('utf-8' codec can't"):
            read_messages(path)

    @pytest.mark.parametrize("name", ["m.jsonl.gz", "m.jsonl.xz", "m.json.gz", "m.json.xz"])
    @pytest.mark.parametrize("kept", [10, -1, None])
    def test_archives(self, tmp_path, name, kept):
        path = packed(tmp_path / name, lines(SAID))
        path.write_bytes(path.read_bytes()[:kept] if kept else b"<html>not found</html>")
        with pytest.raises(ValueError, match=r"m\.json.* is not a whole \.[gx]z file \(.*\): download"):
            read_messages(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_samples": [2, 0]}, "has 3 users and 2 num_samples; user 'eve' is the first without"),
            ({"num_samples": [2, 0, 1, 0]}, r"has 3 users and 4 num_samples\."),
            ({"num_samples": [2, 0, True]}, "user 'eve' has True in num_samples and 1 messages"),
            ({"num_samples": [2, 0, 1.0]}, r"user 'eve' has 1\.0 in num_samples and 1 messages"),
            ({"num_samples": [2, 0, 7]}, "user 'eve' has 7 in num_samples and 1 messages in x"),
            ({"users": ["ada", "bob", "ada"]}, "has user 'ada'; wanted strings, each once"),
            ({"users": ["ada", "bob", 3]}, "has user 3; wanted strings"),
            ({"users": ["ada", "bob", "fay"]}, "has no list 'x' in user_data of user 'fay'"),
            ({"users": ["ada", "bob"], "num_samples": [2, 0]}, "has user_data of 'eve', who is not"),
            ({"users": None}, "has no list 'users'; wanted an object with users, num_samples"),
            ({"user_data": []}, "has no dict 'user_data'"),
            ({"user_data": DATA | {"eve": {"x": [5]}}}, r"x\[0\] of user 'eve' holds a int"),
            (
                {"user_data": DATA | {"eve": {"x": [[["<BOS>", "hm"]]]}}},
                r"x\[0\] of user 'eve' holds a list; .* get_json\.py .*, not its preprocess\.py",
            ),
        ],
        ids=range(13),
    )
    def test_leaf(self, tmp_path, change, message):
        path = packed(tmp_path / "m.json", json.dumps(LEAF | change))
        with pytest.raises(ValueError, match=rf"m\.json:? {message}"):
            read_messages(path)

    def test_a_user_twice(self, tmp_path):
        content = json.dumps(LEAF).replace('"eve": {', '"ada": {')
        path = packed(tmp_path / "m.json", content)
        with pytest.raises(ValueError, match=r"m\.json is not JSON .*the key 'ada' occurs twice in one"):
            read_messages(path)

    def test_json_lines_under_leafs_name(self, tmp_path):
        path = packed(tmp_path / "m.json", lines(SAID))
        wanted = r"Extra data: line 2 .*; files of JSON lines must end in \.jsonl"
        with pytest.raises(ValueError, match=wanted):
            read_messages(path)


class TestFinding:
    def test_a_file_a_folder_or_a_subfolder_of_it(self, tmp_path):
        (tmp_path / "sub").mkdir()
        path = packed(tmp_path / "sub" / "m.jsonl.xz", lines(SAID))
        (tmp_path / "sub" / "README.md").touch()
        found = [messages(p, vocabulary_size=5) for p in (path, tmp_path / "sub", str(tmp_path))]
        assert [f.symbols for f in found] == [found[0].symbols] * 3

    def test_refuses_to_guess(self, tmp_path):
        for name in ("a.jsonl", "b.json.gz"):
            packed(tmp_path / name, "")
        wanted = r"holds several files of messages: .*a\.jsonl, .*b\.json\.gz; give"
        with pytest.raises(ValueError, match=wanted):
            messages(tmp_path)

    @pytest.mark.parametrize("where", ["", "nowhere", "nowhere.jsonl"])
    def test_absent(self, tmp_path, where):
        with pytest.raises(FileNotFoundError, match=r"is neither a file nor a .*\.jsonl\.xz, \.json,"):
            messages(tmp_path / where)
        with pytest.raises(FileNotFoundError):
            read_messages(tmp_path / "nowhere.jsonl")
