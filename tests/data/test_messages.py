"""Next words by author: on small corpora, and on a real one."""

import numpy as np
import pytest
from data_files import data_root, needs
from message_corpus import twice, write

from fedjax_sim.data import federate, load, messages, natural, read_messages

PADDING, UNKNOWN, BEGIN, END = range(4)


def spelled(found, dataset):
    """(author, what is read, what is to be predicted) of each row, in words; padding is a dot."""
    symbols = np.array((".", *found.symbols[1:]))
    columns = dataset.keys["author"], *(symbols[dataset.examples[name]] for name in "xy")
    return [(str(a), " ".join(x), " ".join(y)) for a, x, y in zip(*columns, strict=True)]


class TestVocabulary:
    def test_words_and_marks_in_lower_case_by_frequency_then_alphabet(self, tmp_path):
        texts = ["It's b_2 B_2", "ÉTÉ\u2019s!! 'a' a-A"]
        found = messages(twice(tmp_path, *texts), vocabulary_size=4 + 7)
        assert found.symbols[:4] == ("<padding>", "<unknown>", "<begin>", "<end>")
        assert found.symbols[4:] == ("a", "!", "'", "b_2", "-", "it's", "été\u2019s")
        assert [y for _, _, y in spelled(found, found.test)] == [
            "it's b_2 b_2 <end> . . . . . .",
            "été\u2019s ! ! ' a ' a - a <end>",
        ]

    @pytest.mark.parametrize(("size", "words"), [(5, "b"), (6, "b a"), (7, "b a c"), (8, "b a c d")])
    def test_ties_at_the_edge_go_to_the_first_in_the_alphabet(self, tmp_path, size, words):
        found = messages(twice(tmp_path, "d c b", "b a", "a b"), vocabulary_size=size)
        assert found.symbols[4:] == tuple(words.split())
        known = found.train.examples["y"] != UNKNOWN
        assert known[0].tolist() == [word in words for word in "dcb"] + [True] * 7

    def test_is_of_the_training_authors_within_their_limit(self, tmp_path):
        said = {author: [f"{author} both", "late late late"] for author in ("ada", "bob")}
        path = write(tmp_path, said)
        found = messages(path, vocabulary_size=6, most_words=2)
        (trained,) = set(found.train.keys["author"])
        assert found.symbols[4:] == tuple(sorted([trained, "both"]))
        assert spelled(found, found.test)[0][2].startswith("<unknown> both <end>")
        with pytest.raises(ValueError, match=r"vocabulary_size is 7, .* use 2 distinct words"):
            messages(path, vocabulary_size=7, most_words=2)


class TestRows:
    def test_pieces_of_each_message_stand_alone(self, tmp_path):
        texts = ["a b", "a b c", "", "a b c d e f"]
        found = messages(twice(tmp_path, *texts), vocabulary_size=10, length=3)
        for dataset in (found.train, found.test):
            x, y = dataset.examples["x"], dataset.examples["y"]
            assert (x.dtype, y.dtype, dataset.num_classes) == (np.uint16, np.int32, 10)
            assert x[:3].tolist() == [[BEGIN, 4, 5], [BEGIN, 4, 5], [6, PADDING, PADDING]]
            assert y[:3].tolist() == [[4, 5, END], [4, 5, 6], [END, PADDING, PADDING]]
            assert [row[1:] for row in spelled(found, dataset)[3:]] == [
                ("<begin> a b", "a b c"),
                ("c d e", "d e f"),
                ("f . .", "<end> . ."),
            ]

    @pytest.mark.parametrize("words", [8, 9, 10, 19, 20])
    def test_ten_predictions_to_a_row(self, tmp_path, words):
        found = messages(twice(tmp_path, " ".join(["w"] * words)), vocabulary_size=5)
        predicted = [4] * words + [END]
        rows = -(-len(predicted) // 10)
        padding = [PADDING] * (10 * rows - len(predicted))
        expected = np.reshape([[BEGIN, *predicted[:-1], *padding], predicted + padding], (2, rows, 10))
        np.testing.assert_array_equal(found.train.examples["x"], expected[0])
        np.testing.assert_array_equal(found.train.examples["y"], expected[1])

    @pytest.mark.parametrize(
        ("most_words", "predicted"),
        [
            (1, ["a . ."]),
            (2, ["a b <end>"]),
            (3, ["a b <end>", "b . ."]),
            (5, ["a b <end>", "b a b", "<end> . ."]),
            (6, ["a b <end>", "b a b", "<end> . .", "a <end> ."]),
            (7, ["a b <end>", "b a b", "<end> . .", "a <end> ."]),
        ],
    )
    def test_an_authors_first_words_and_no_end_where_they_are_cut(self, tmp_path, most_words, predicted):
        path, size = twice(tmp_path, "a b", " ", "b a b", "a"), 5 if most_words == 1 else 6
        found = messages(path, vocabulary_size=size, length=3, most_words=most_words)
        for dataset in (found.train, found.test):
            assert [y for _, _, y in spelled(found, dataset)] == predicted

    def test_many_symbols_are_stored_in_32_bits(self, tmp_path):
        path = twice(tmp_path, " ".join(f"w{i}" for i in range(2**16)))
        for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.int32)):
            train = messages(path, vocabulary_size=size, most_words=10**6).train
            assert train.examples["x"].dtype == dtype
            assert train.examples["x"].max() == train.examples["y"].max() == size - 1


class TestAuthors:
    @property
    def said(self):
        return {f"author {i:02}": [f"{i} b c"] * (30 - i) for i in range(30)}

    def authors(self, folder, **options):
        found = messages(write(folder, self.said), vocabulary_size=7, **options)
        return found, *(set(d.keys["author"].tolist()) for d in (found.train, found.test))

    @pytest.mark.parametrize(("share", "tested"), [(0.1, 3), (0.25, 8), (0.01, 1), (0.99, 29)])
    def test_nobody_is_in_both(self, tmp_path, share, tested):
        _, train, test = self.authors(tmp_path, test_share=share)
        assert len(test) == tested
        assert train | test == set(self.said)
        assert not train & test

    def test_the_seed_decides(self, tmp_path):
        tested = [tuple(sorted(self.authors(tmp_path, **s)[2])) for s in ({}, {"seed": 0}, {"seed": 1})]
        assert tested[0] == tested[1] == ("author 02", "author 11", "author 26")
        assert tested[2] != tested[0]

    def test_are_clients(self, tmp_path):
        found, train, _ = self.authors(tmp_path)
        clients = federate(found.train, natural("author"))
        assert clients.client_ids.tolist() == sorted(train)
        assert clients.sizes.tolist() == [len(self.said[author]) for author in sorted(train)]
        assert list(dict.fromkeys(found.train.keys["author"])) == sorted(train)  # as in the file

    def test_without_words_are_dropped_and_counted(self, tmp_path):
        said = {"nobody": [], "silent": ["", " \n"], "ada": ["a"], "bob": [" a"]}
        found = messages(write(tmp_path, said), vocabulary_size=5)
        assert found.authors_dropped == 2
        assert {*found.train.keys["author"], *found.test.keys["author"]} == {"ada", "bob"}

    def test_that_differ_by_nuls_are_several(self, tmp_path):
        said = {"a" + "\0" * i: ["w"] for i in range(6)}
        found = messages(write(tmp_path, said), vocabulary_size=5, test_share=0.5)
        clients = [federate(dataset, natural("author")) for dataset in (found.train, found.test)]
        ids = [c.client_ids.tolist() for c in clients]
        assert [c.sizes.tolist() for c in clients] == [[1] * 3] * 2
        assert sorted(ids[0] + ids[1]) == sorted(said)

    @pytest.mark.parametrize("said", [{}, {"ada": []}, {"ada": ["", " "], "bob": []}, {"ada": ["a"]}])
    def test_two_are_needed(self, tmp_path, said):
        have = sum("a" in texts for texts in said.values())
        wanted = rf"m\.jsonl: of {len(said)} authors, {have} have a word; wanted at least two"
        with pytest.raises(ValueError, match=wanted):
            messages(write(tmp_path, said))


def test_load_has_the_defaults(tmp_path):
    words = [f"w{i}" for i in range(9_996)]
    # Odd words in the first message of an author and even ones in the second: the limit cuts after 2.
    said = {
        a: [" ".join(words[i % 2 :: 2]), " ".join(words[1 - i % 2 :: 2])] for i, a in enumerate("abcd")
    }
    train, test = load("messages", write(tmp_path, said))
    assert (train.name, test.name) == ("messages/train", "messages/test")
    assert (train.num_classes, test.num_classes) == (10_000, 10_000)
    rows = -(-(4_998 + 1) // 10)
    assert (len(train), len(test)) == (3 * (rows + 1), rows + 1)  # two words of the second message


def test_load_needs_a_place():
    with pytest.raises(ValueError, match=r"data_dir is None; give the file of messages, or a folder"):
        load("messages")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "vocabulary_size is 10000, including 4 .* use 2 distinct words; wanted 5 to 6"),
        ({"vocabulary_size": 7}, "vocabulary_size is 7, .* use 2 distinct words; wanted 5 to 6"),
        ({"vocabulary_size": 4}, "vocabulary_size is 4, including 4 .* wanted 5 to 6"),
        ({"vocabulary_size": 0}, "vocabulary_size is 0; wanted a whole number"),
        ({"length": 0}, "length is 0; wanted"),
        ({"most_words": 2.5}, "most_words is 2.5; wanted"),
        ({"test_share": 0}, "test_share is 0; wanted a share"),
        ({"test_share": 1.0}, "test_share is 1.0; wanted a share"),
        ({"test_share": float("nan")}, "test_share is nan; wanted a share"),
        ({"seed": -1}, "seed is -1; wanted an integer"),
    ],
)
def test_refuses(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        messages(twice(tmp_path, "a b"), **options)


@pytest.fixture(scope="module")
def real():
    return messages(data_root() / "ubuntu_irc")


@needs("ubuntu_irc")
class TestRealCorpus:
    def test_authors_and_messages(self):
        said = read_messages(next((data_root() / "ubuntu_irc").glob("*.jsonl.xz")))
        assert len(said) == 17_526
        assert sum(map(len, said.values())) == 221_056

    def test_rows(self, real):
        authors = [np.unique(d.keys["author"]) for d in (real.train, real.test)]
        assert [len(a) for a in authors] == [15_773, 1_752]
        assert not np.intersect1d(*authors).size
        assert real.authors_dropped == 1
        assert (len(real.train), len(real.test)) == (349_924, 37_096)
        assert real.symbols[4:10] == (".", ",", ":", "i", "the", "to")

    def test_nearly_all_words_are_known(self, real):
        for dataset, words, known in ((real.train, 2_436_326, 0.961), (real.test, 260_056, 0.951)):
            y = dataset.examples["y"]
            assert ((y != PADDING) & (y != END)).sum() == words
            assert 1 - (y == UNKNOWN).sum() / words == pytest.approx(known, abs=5e-4)
