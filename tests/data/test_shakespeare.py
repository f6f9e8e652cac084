"""The Complete Works by role: on small texts in the same layout, and on the real one."""

import itertools

import numpy as np
import pytest
from data_files import data_root, needs
from shakespeare_corpus import END, NOTICE, SONNETS, START, speech, text, work, write

from fedjax_sim.data import federate, iid, load, natural

PADDING = 257
COUNTING = [f"line {i}" for i in range(10)]
# A second role, for a play of one role is dropped; too short to be a client itself.
OTHER = speech("OTHER", "Ay.")
KING = OTHER + speech("KING", "a", "b", "c")
NO_AUTHOR = END.replace("by William", "")


def lines(dataset):
    """What each role says, as the examples hold it, newlines included."""
    spoken = {}
    columns = dataset.keys["role"], dataset.examples["x"], dataset.examples["y"]
    for role, x, y in zip(*columns, strict=True):
        symbols = np.array([x[0], *y[y != PADDING]], np.uint8)
        spoken.setdefault(str(role), []).append(symbols.tobytes().decode())
    return spoken


def joined(folder, *works):
    """What each role says in train and test together, without newlines."""
    write(folder, text(*works))
    train, test = map(lines, load("shakespeare", folder))
    assert list(train) == list(test)
    return {role: "".join(train[role] + test[role]).removesuffix("\n").split("\n") for role in train}


class TestRules:
    def test_continuations_and_directions_are_spoken_and_other_lines_end_nothing(self, tmp_path):
        play = (
            "  KING OF SPAIN\n    before anyone speaks\n"
            + speech("KING", "one", "two.", "  three, deeper.")
            + "\nSCENE II. Spain\n   three spaces\n\n  O'BRIEN. no such name\n"
            + "  LORD: nor this\n FOOL. one space\n    four\n      Exit FOOL\n"
            + speech("FOOL", "[Aside]  a", "b. C. d", "e")
            + speech("KING", "five. And six.")
        )
        assert joined(tmp_path, work("PLAY", play)) == {
            "PLAY_KING": ["one", "two.", "  three, deeper.", "four", "  Exit FOOL", "five. And six."],
            "PLAY_FOOL": ["[Aside]  a", "b. C. d", "e"],
        }

    def test_names_are_letters_and_spaces_in_the_case_given(self, tmp_path):
        play = speech("SIR Toby", *"abc") + speech("SIR TOBY", *"def") + speech("Q", *"ghi")
        assert joined(tmp_path, work("PLAY", play)) == {
            "PLAY_SIR Toby": ["a", "b", "c"],
            "PLAY_SIR TOBY": ["d", "e", "f"],
            "PLAY_Q": ["g", "h", "i"],
        }

    def test_roles_below_three_lines_and_plays_below_two_roles_are_dropped(self, tmp_path):
        works = (
            work("ONE ROLE", speech("ALONE", *COUNTING)),
            work("PLAY", speech("TWO", "a", "b") + speech("THREE", "a", "b", "c")),
            work("POEM", "    no roles\n"),
        )
        assert list(joined(tmp_path, *works)) == ["PLAY_THREE"]

    def test_the_same_name_in_two_plays_is_two_roles_and_a_play_ends_a_speech(self, tmp_path):
        assert joined(tmp_path, work("FIRST", KING), work("SECOND", "    stray\n" + KING)) == {
            "FIRST_KING": ["a", "b", "c"],
            "SECOND_KING": ["a", "b", "c"],
        }

    @pytest.mark.parametrize("gap", range(1, 7))
    def test_the_title_is_two_to_seven_lines_above_the_author(self, tmp_path, gap):
        play = work("THE TRAGEDY, OR SO", KING, gap)
        assert list(joined(tmp_path, play)) == ["THE TRAGEDY, OR SO_KING"]

    def test_the_comedy_of_errors_is_moved_right_from_its_second_title_on(self, tmp_path):
        title = "THE COMEDY OF ERRORS"
        act = "ACT I. SCENE 1\n\nA hall\n\nDUKE. one\n  two\n    three\n<Exit\n  four\nABBESS. Ay.\n"
        play = work(title, f"DUKE, of Ephesus\n{NOTICE}{title}\n\n{act}{NOTICE}\n{NOTICE}")
        # Of the notices, two are above the second title and three below.
        assert joined(tmp_path, play) == {
            f"{title}_DUKE": ["one", "two", "  three", "four"],
            f"{title}_WITH PERMISSION": [" ELECTRONIC COPIES"] * 3,
            f"{title}_COMMERCIALLY": [" PROHIBITED"] * 3,
        }
        others = play.replace(title, "ERRORS"), work("PLAY", KING)
        assert list(joined(tmp_path, *others)) == ["PLAY_KING"]

    def test_what_stands_before_the_plays_and_after_the_end_is_skipped(self, tmp_path):
        after = END + speech("KING", "d") + work("LICENCE", KING)
        write(tmp_path, text(work("PLAY", KING), end=after))
        train, test = map(lines, load("shakespeare", tmp_path))
        assert (train, test) == ({"PLAY_KING": ["a\n", "b\n"]}, {"PLAY_KING": ["c\n"]})

    @pytest.mark.parametrize(("total", "tested"), [(3, 1), (9, 1), (10, 2), (14, 2), (15, 3), (101, 20)])
    def test_the_last_fifth_rounded_down_but_one_at_least_is_for_testing(self, tmp_path, total, tested):
        spoken = [f"line {i}\n" for i in range(total)]
        write(tmp_path, text(work("PLAY", OTHER + speech("KING", *map(str.strip, spoken)))))
        train, test = map(lines, load("shakespeare", tmp_path))
        assert train["PLAY_KING"] == spoken[:-tested]
        assert test["PLAY_KING"] == spoken[-tested:]


class TestExamples:
    def rows(self, folder, *spoken):
        write(folder, text(work("PLAY", OTHER + speech("KING", *spoken, "the test line"))))
        train, test = load("shakespeare", folder)
        assert (train.name, test.name) == ("shakespeare/train", "shakespeare/test")
        for dataset in (train, test):
            assert dataset.num_classes == 258
            assert dataset.examples["x"].dtype == np.uint16
            assert dataset.examples["y"].dtype == np.int32
        return train.examples["x"], train.examples["y"]

    def test_each_character_is_read_and_the_next_predicted(self, tmp_path):
        x, y = self.rows(tmp_path, "abc", "é", "")
        assert x.shape == y.shape == (3, 80)
        assert x[0].tolist() == [*b"abc"] + [PADDING] * 77
        assert y[0].tolist() == [*b"bc\n"] + [PADDING] * 77
        assert x[1, :3].tolist() == [0xC3, 0xA9, PADDING]  # a character is a byte
        assert y[1, :3].tolist() == [0xA9, 10, PADDING]
        assert (x[2] == PADDING).all()  # a newline that follows nothing is not predicted
        assert (y[2] == PADDING).all()

    @pytest.mark.parametrize("length", [79, 80, 81, 82, 200])
    def test_eighty_predictions_at_most(self, tmp_path, length):
        line = ("0123456789" * 20)[:length]
        x, y = self.rows(tmp_path, line, "second")
        padding = [PADDING] * 80
        assert x[0].tolist() == [*line.encode(), *padding][:80]
        assert y[0].tolist() == [*line.encode(), 10, *padding][1:81]

    def test_partitions(self, tmp_path):
        play = OTHER + speech("KING", *COUNTING) + speech("FOOL", *"abc") + speech("KING", "more")
        write(tmp_path, text(work("PLAY", play)))
        train, test = load("shakespeare", tmp_path)
        by_role = federate(train, natural("role"))
        assert by_role.client_ids.tolist() == ["PLAY_FOOL", "PLAY_KING"]
        assert by_role.sizes.tolist() == [2, 9]
        assert bytes(by_role.examples["x"][2:, 5].astype(np.uint8)) == b"012345678"
        assert federate(test, natural("role")).client_ids.tolist() == ["PLAY_FOOL", "PLAY_KING"]
        assert federate(train, iid(num_clients=2)).sizes.tolist() == [6, 5]


class TestFiles:
    content = text(work("PLAY", KING))

    @pytest.mark.parametrize("name", ["pg100.txt", "pg100.txt.gz", "sub/pg100.txt", "sub/pg100.txt.gz"])
    def test_gzipped_or_not_and_in_a_subfolder(self, tmp_path, name):
        (tmp_path / "sub").mkdir()
        write(tmp_path, self.content, name)
        assert lines(load("shakespeare", tmp_path)[1]) == {"PLAY_KING": ["c\n"]}

    def test_plain_newlines_and_no_mark(self, tmp_path):
        (tmp_path / "pg100.txt").write_text(self.content, newline="\n")
        assert lines(load("shakespeare", tmp_path)[1]) == {"PLAY_KING": ["c\n"]}

    def test_absent(self, tmp_path):
        wanted = r"^pg100\.txt\.gz is neither in data_dir .* Nor is pg100\.txt there"
        with pytest.raises(FileNotFoundError, match=wanted):
            load("shakespeare", tmp_path)
        with pytest.raises(ValueError, match=r"data_dir is None; .* holds pg100\.txt\.gz"):
            load("shakespeare")

    @pytest.mark.parametrize("kept", [5, 50, -1])
    def test_damaged(self, tmp_path, kept):
        path = write(tmp_path, self.content)
        path.write_bytes(path.read_bytes()[:kept])
        wanted = r"pg100\.txt\.gz is not a whole \.gz file \(.*\): download or pack it again"
        with pytest.raises(ValueError, match=wanted):
            load("shakespeare", tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("<html>not found</html>", "no line with 'END OF THIS PROJECT .*another edition"),
            (START + SONNETS + KING, "no line with 'END OF THIS PROJECT .*cut short"),
            (START + NO_AUTHOR, "0 lines with 'by William Shakespeare' before its end"),
            (START + SONNETS + NO_AUTHOR, "1 lines with 'by William Shakespeare'"),
            (text(work("PLAY", speech("ALONE", *COUNTING))), "no work in which two roles speak"),
            (text(work("PLAY", OTHER + speech("KING", "a", "b"))), "no work .* one of them 3 lines"),
            (content.replace("  ", ""), "no work in which .*with their indentation"),
        ],
    )
    def test_another_text(self, tmp_path, content, message):
        write(tmp_path, content)
        with pytest.raises(ValueError, match=rf"pg100\.txt\.gz has {message}"):
            load("shakespeare", tmp_path)


@pytest.fixture(scope="module")
def real():
    return load("shakespeare", data_root())


@needs("shakespeare/pg100.txt.gz")
class TestRealText:
    def test_clients(self, real):
        train, test = (federate(dataset, natural("role")) for dataset in real)
        assert train.num_clients == 1146
        assert train.client_ids.tolist() == test.client_ids.tolist()
        assert len({role.split("_")[0] for role in train.client_ids}) == 36
        assert (train.sizes.min(), np.median(train.sizes), train.sizes.max()) == (2, 24, 1248)
        assert test.sizes.min() == 1
        sizes = federate(real[0], iid(num_clients=1146)).sizes
        assert (sizes.min(), sizes.max()) == (74, 75)

    def test_lines_and_characters_are_the_papers(self, real):
        train, test = (list(itertools.chain(*lines(dataset).values())) for dataset in real)
        assert (len(train), len(test)) == (85_113, 20_832)
        assert sum(map(len, train)) == 3_564_579
        # The longest line, of 81 characters, is cut before its newline, which the paper counts.
        assert [len(line) for line in test if not line.endswith("\n")] == [81]
        assert sum(map(len, test)) + 1 == 870_014
        assert max(map(len, train)) == 72
        assert len(set("".join(train + test)) - {"\n"}) == 77

    def test_a_role(self, real):
        hamlet = lines(real[0])["THE TRAGEDY OF HAMLET, PRINCE OF DENMARK_Ham"]
        assert hamlet[0] == "[aside] A little more than kin, and less than kind!\n"
        assert "To be, or not to be- that is the question:\n" in hamlet
