"""Laws of packed text."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from genjax.data import Loader
from genjax.data.text import Text
from genjax.errors import InputError

DOCUMENTS = [("word " * (1 + i * i % 7) + str(i)).encode() for i in range(30)]


@pytest.fixture
def folder(tmp_path):
    for i, data in enumerate(DOCUMENTS):
        path = tmp_path / "texts" / f"part{i % 3}" / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "texts"


@pytest.fixture(scope="module")
def library():
    return Text(length=512)


def rows(data: Text, split: str) -> list:
    source = data.source(split)
    return [source[i] for i in range(len(source))]


def targets(rows) -> list[np.ndarray]:
    """What each row predicts: tokens that follow a token of the same document."""
    found = []
    for row in rows:
        segments = row["segments"]
        found.append(row["tokens"][1:][(segments[1:] == segments[:-1]) & (segments[1:] >= 0)])
    return found


@pytest.mark.parametrize("length", [2, 3, 7, 64, 100_000])
def test_every_byte_and_every_end_of_a_split_is_predicted_exactly_once(folder, length):
    data = Text(str(folder), length=length)
    predicted = {split: Counter(np.concatenate(targets(rows(data, split))).tolist()) for split in ("train", "test")}
    together = predicted["train"] + predicted["test"]
    assert together == Counter(b"".join(DOCUMENTS)) + Counter({256: len(DOCUMENTS)})
    assert predicted["test"] - Counter({256: len(DOCUMENTS)}) == Counter(data.held_out_bytes())


def test_rows_in_order_are_the_documents_between_their_borders(folder):
    data = Text(str(folder), length=7)
    stream = np.concatenate([row["tokens"][bool(i) :] for i, row in enumerate(rows(data, "test"))])
    texts = data.tokenizer.decode(stream).encode()
    assert texts == data.held_out_bytes()
    documents = data._splits["test"]
    joined = np.concatenate([data.tokenizer.document(text) for text in documents])
    np.testing.assert_array_equal(stream[: len(joined)], joined)
    assert (stream[len(joined) :] == 256).all()


def test_segments_change_exactly_where_a_document_begins(folder):
    for row in rows(Text(str(folder), length=32), "train"):
        real = row["segments"] >= 0
        tokens, segments = row["tokens"][real], row["segments"][real]
        assert segments[0] == 0
        begins = (tokens[1:] == 256) & (tokens[:-1] == 256)  # one ends, the next begins
        np.testing.assert_array_equal(np.diff(segments), begins)


def test_only_the_last_row_is_padded_and_all_rows_have_one_shape(folder):
    *whole, last = rows(Text(str(folder), length=32), "train")
    assert all((row["segments"] >= 0).all() for row in whole)
    assert {(array.shape, array.dtype.name) for row in [*whole, last] for array in row.values()} == {((32,), "int32")}


def test_more_data_moves_no_document_to_the_other_split(folder, tmp_path):
    lines = [json.dumps({"text": f"document {i}"}) for i in range(200)]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(lines[:100]))
    few = {split: set(texts) for split, texts in Text(str(path))._splits.items()}
    path.write_text("\n".join(reversed(lines)))
    many = {split: set(texts) for split, texts in Text(str(path))._splits.items()}
    assert few["train"] < many["train"] and few["test"] < many["test"]
    assert 10 <= len(many["test"]) <= 30  # a binomial of 200 at 0.1


def test_equal_documents_are_in_one_split(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"text": str(i % 10)}) for i in range(100)))
    splits = Text(str(path))._splits
    assert not set(splits["train"]) & set(splits["test"])
    assert len(splits["train"]) + len(splits["test"]) == 100


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    path = tmp_path / "novel"
    path.write_bytes(bytes(range(200)))
    data = Text(str(path), test_fraction=0.25)
    assert data._splits == {"train": [bytes(range(150))], "test": [bytes(range(150, 200))]}


def test_hidden_files_and_other_suffixes_are_no_documents(folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.txt").write_text("hidden")
    (folder / "a.bin").write_bytes(b"binary")
    (folder / "empty.txt").write_bytes(b"")
    assert sum(map(len, Text(str(folder))._splits.values())) == len(DOCUMENTS)
    more = Text(str(folder), suffixes=(".txt", ".bin"))._splits
    assert b"binary" in more["train"] + more["test"]


def test_the_standard_library_is_there_without_a_download(library):
    held_out, train = library.held_out_bytes(), library._splits["train"]
    assert 3e6 < sum(map(len, train)) < 3e7
    assert 0.05 < len(held_out) / (len(held_out) + sum(map(len, train))) < 0.25
    assert b"def " in held_out and not set(library._splits["test"]) & set(train)
    row = library.source("train")[1000]
    assert row["tokens"].max() <= 256 and "\n" in library.tokenizer.decode(row["tokens"])


@pytest.mark.slow
def test_the_split_is_the_same_in_every_process(library):
    program = "import hashlib; from genjax.data.text import Text; "
    program += "print(hashlib.sha256(Text().held_out_bytes()).hexdigest(), end='')"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found == hashlib.sha256(library.held_out_bytes()).hexdigest()


def test_the_loader_stacks_rows_into_batches(folder):
    loader = Loader(
        Text(str(folder), length=16).source("train"), batch_size=4, seed=0, transform=lambda row, rng: row, threads=0
    )
    batch = next(loader)
    assert batch["tokens"].shape == batch["segments"].shape == (4, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": 3}', 'line 1: expected a JSON object with a string under "text"'),
        ('{"text": "a"}\n["text"]', 'line 2: expected a JSON object with a string under "text"'),
        ('{"text": "a"}\n\n{"text": ', "line 3: not valid JSON"),
        (b'{"text": "\xff"}', "line 1: not UTF-8 text"),
        ('{"text": "alone"}', "has 1 documents with text in them; at least two are needed"),
        ("", "has 0 documents"),
    ],
)
def test_a_line_that_is_no_document_is_refused_by_number(tmp_path, content, message):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"lines\.jsonl.* {message}"):
        Text(str(path)).source("train")


def test_what_cannot_be_read_or_split_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "one").write_bytes(b"1")
    for path, message in [
        ("nowhere", "does not exist; it must name a text file"),
        ("folder", r"has no file that ends in \.txt, \.md"),
        ("one", "has 1 bytes; at least two are needed"),
    ]:
        with pytest.raises(InputError, match=message):
            Text(str(tmp_path / path)).source("test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"length": 1}, "^length is 1"), ({"test_fraction": 0.0}, r"^test_fraction is 0\.0")],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Text(**fields)
