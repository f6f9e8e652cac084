"""Federations from tables: data frames, and splits of Hugging Face's library datasets."""

import numpy as np
import pandas
import pytest

import fedjax_sim as fs


def frame(**changes):
    columns = {
        "user": ["b", "a", "b", "c"],
        "height": [1.0, 2.0, 3.0, 4.0],
        "age": [10, 20, 30, 40],
        "pet": ["dog", "cat", "cat", "dog"],
    }
    return pandas.DataFrame(columns | changes)


def test_a_frame_becomes_clients():
    data = fs.data.from_frame(frame(), client="user", label="pet")
    assert data.client_ids.tolist() == ["a", "b", "c"]
    assert data.examples["x"].tolist() == [[2, 20], [1, 10], [3, 30], [4, 40]]
    assert (data.label_names, data.examples["y"].tolist()) == (("cat", "dog"), [0, 1, 0, 1])
    ages = fs.data.from_frame(frame(user=[3, 1, 3, 2]), client="user", label="age", features=["height"])
    assert ages.client_ids.tolist() == [1, 2, 3]
    assert ages.examples["x"].tolist() == [[2], [4], [1], [3]]
    assert ages.examples["y"].tolist() == [20, 40, 10, 30]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"client": "id"}, r"the frame lacks the column 'id'; its columns are \['user'"),
        ({}, {"label": "age"}, "column 'pet' holds .*; wanted numbers, in rows of one shape: enc"),
        ({}, {"features": []}, "the frame has no column of features"),
        (
            {"user": ["a", "b", None, "c"]},
            {},
            "column 'user' lacks 1 of 4 values, the first in row 2; wanted a value in each row",
        ),
        ({"user": [1.0, 2.0, 3.0, 4.0]}, {}, "a client's id is 1.0; wanted integers of 64 bits alone"),
        (
            {"height": [1, 2, float("nan"), 4]},
            {},
            "column 'height' lacks 1 of 4 values.* in row 2; want",
        ),
        (
            {"pet": ["dog", None, "cat", "dog"]},
            {},
            "column 'pet' lacks 1 of 4 values, the first in row 1",
        ),
        ({"pet": [1.0, None, 2.0, 1.0]}, {}, "column 'pet' lacks 1 of 4 values"),
        (
            {"age": pandas.array([1, pandas.NA, 3, pandas.NA], "Int64")},
            {"label": "height", "features": ["age"]},
            "column 'age' lacks 2 of 4 values, the first in row 1",
        ),
        ({"height": [1, 2, float("inf"), 4]}, {}, "'x' holds inf at row 2, row 1 of client 'b'"),
        ({"age": [1, 2, 3, 2**24 + 1]}, {}, r"column 'age' holds integers beyond 2\*\*24"),
        ({}, {"features": "age"}, "features is 'age'; wanted a table with named columns"),
    ],
)
def test_a_bad_frame_is_refused(changes, settings, message):
    with pytest.raises(ValueError, match=message):
        fs.data.from_frame(frame(**changes), **({"client": "user", "label": "pet"} | settings))


class Labels:
    def __init__(self, *names):
        self.names = list(names)


class Split:
    """Stands in for a `datasets.Dataset`: the part of its interface that is used."""

    def __init__(self, columns, **labels):
        self.columns, self.column_names = columns, list(columns)
        self.features = {column: labels.get(column, object()) for column in columns}

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def with_format(self, name):
        assert name == "numpy"
        return {column: np.asarray(values) for column, values in self.columns.items()}


def real(columns, **labels):
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_dict(columns)
    for column, label in labels.items():
        split = split.cast_column(column, datasets.ClassLabel(names=label.names))
    return split


SPOKEN = {
    "speaker": ["bo", "al", "bo", "cy"],
    "sound": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
    "loudness": [0.5, 1.5, 2.5, 3.5],
    "label": [1, 0, 2, 1],
}
WORDS = Labels("yes", "no", "stop", "go")


@pytest.mark.parametrize("make", [Split, real])
class TestHuggingFace:
    def test_a_column_of_rows_becomes_x_as_it_is(self, make):
        split = make(SPOKEN, label=WORDS)
        data = fs.data.from_huggingface(split, client="speaker", features="sound")
        assert data.client_ids.tolist() == ["al", "bo", "cy"]
        assert data.sizes.tolist() == [1, 2, 1]
        assert data.examples["x"].tolist() == [[3, 4, 5], [0, 1, 2], [6, 7, 8], [9, 10, 11]]
        assert data.examples["x"].dtype == np.int32
        assert data.examples["y"].tolist() == [0, 1, 2, 1]
        assert (data.label_names, data.num_classes) == (("yes", "no", "stop", "go"), 4)
        assert data.name == "huggingface"

    def test_columns_of_numbers_are_stacked(self, make):
        columns = {name: SPOKEN[name] for name in ("speaker", "loudness", "label")} | {
            "age": [4, 3, 2, 1]
        }
        data = fs.data.from_huggingface(make(columns), client="speaker", name="spoken")
        assert data.examples["x"].tolist() == [[1.5, 3], [0.5, 4], [2.5, 2], [3.5, 1]]
        assert (data.label_names, data.num_classes, data.name) == (None, 3, "spoken")
        one = fs.data.from_huggingface(make(columns), client="speaker", features=["age"])
        assert one.examples["x"].tolist() == [[3], [4], [2], [1]]

    def test_the_only_other_column_is_x(self, make):
        columns = {name: SPOKEN[name] for name in ("speaker", "sound", "label")}
        data = fs.data.from_huggingface(make(columns), client="speaker")
        assert data.examples["x"].shape == (4, 3)

    def test_clients_may_be_class_labels_and_labels_strings(self, make):
        columns = SPOKEN | {"who": [1, 0, 1, 1], "word": ["no", "yes", "stop", "no"]}
        split = make(columns, who=Labels("zoe", "ann"))
        settings = {"client": "who", "label": "word", "features": ["loudness"]}
        data = fs.data.from_huggingface(split, **settings)
        assert data.client_ids.tolist() == ["ann", "zoe"]
        assert data.examples["x"].tolist() == [[0.5], [2.5], [3.5], [1.5]]
        assert (data.label_names, data.examples["y"].tolist()) == (("no", "stop", "yes"), [0, 1, 0, 2])

    @pytest.mark.parametrize(
        ("changes", "settings", "message"),
        [
            (
                {},
                {"client": "user"},
                r"the dataset lacks the column 'user'; its columns are \['speaker'",
            ),
            ({}, {"features": []}, "the dataset has no column of features"),
            ({}, {}, r"column 'sound' has rows of shape \(3,\); wanted single numbers"),
            (
                {},
                {"features": "speaker"},
                "column 'speaker' holds .*; wanted numbers, in rows of one shape",
            ),
            ({"speaker": ["a", "b", None, "c"]}, {"features": "sound"}, "column 'speaker' lacks 1 of 4"),
            (
                {"label": [1, -1, 0, 0]},
                {"features": "sound"},
                "'y' holds -1 at row 0, row 0 of client 'al'",
            ),
            (
                {"loudness": [1.0, None, 2.0, 3.0]},
                {"features": "loudness"},
                "'loudness' lacks 1 of 4 values",
            ),
        ],
    )
    def test_a_bad_split_is_refused(self, make, changes, settings, message):
        if make is Split and changes.get("loudness"):
            changes = {"loudness": [1.0, np.nan, 2.0, 3.0]}  # as the library has it
        with pytest.raises(ValueError, match=f"^huggingface: .*{message}"):
            fs.data.from_huggingface(make(SPOKEN | changes), **({"client": "speaker"} | settings))

    def test_a_client_without_a_label_is_refused(self, make):
        split = make(SPOKEN | {"who": [0, -1, 0, 0]}, who=Labels("zoe"))
        with pytest.raises(ValueError, match="column 'who' lacks 1 of 4 values, the first in row 1"):
            fs.data.from_huggingface(split, client="who", features="sound")

    def test_what_is_no_split_is_refused(self, make):
        split = make(SPOKEN)
        with pytest.raises(
            ValueError, match=r"has the splits \['train', 'test'\]; .* dataset\['train'\]"
        ):
            fs.data.from_huggingface({"train": split, "test": split}, client="speaker")
        with pytest.raises(ValueError, match=r"got a generator; .* without streaming=True"):
            fs.data.from_huggingface((row for row in ()), client="speaker")
        with pytest.raises(ValueError, match="the dataset has no rows"):
            fs.data.from_huggingface(make({name: [] for name in SPOKEN}), client="speaker")


def test_images_and_chosen_rows_of_the_library_are_read():
    datasets = pytest.importorskip("datasets")
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "who": datasets.Value("int64"), "label": datasets.Value("int64")}
    )
    from PIL import Image

    columns = {"image": list(map(Image.fromarray, images)), "who": [7, 3, 7, 3], "label": [0, 1, 1, 0]}
    split = datasets.Dataset.from_dict(columns, features)
    data = fs.data.from_huggingface(split.select([3, 2, 0]), client="who")
    assert data.client_ids.tolist() == [3, 7]
    np.testing.assert_array_equal(data.examples["x"], images[[3, 2, 0]])
    assert data.examples["x"].dtype == np.uint8
    streamed = split.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"got a IterableDataset; wanted a datasets.Dataset"):
        fs.data.from_huggingface(streamed, client="who")
    columns["image"][1] = Image.fromarray(images[0, :3])
    ragged = datasets.Dataset.from_dict(columns, features)
    with pytest.raises(ValueError, match=r"column 'image' .*rows of one shape"):
        fs.data.from_huggingface(ragged, client="who")
