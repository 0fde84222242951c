import pytest

from genjax.data.captions import DIGIT_NAMES, TEMPLATES, captions_for, parse_captions
from genjax.errors import InputError


def test_every_caption_of_a_digit_names_it_and_fits_in_24_bytes():
    for name in DIGIT_NAMES:
        for caption in captions_for(name):
            assert name in caption and len(caption.encode()) <= 24


def test_the_first_caption_is_the_handwritten_one():
    assert captions_for("seven")[0] == "a handwritten seven"
    assert len(captions_for("seven")) == len(set(captions_for("seven"))) == len(TEMPLATES)


def test_a_name_is_put_in_as_it_is():
    assert captions_for("{0.__class__}", ("a {name}",)) == ("a {0.__class__}",)


@pytest.mark.parametrize(
    ("name", "data", "captions"),
    [
        ("x.txt", b"a cat\n\n two cats \n", ("a cat", "two cats")),
        ("x.TXT", "\ufeffétude".encode(), ("étude",)),
        ("x.json", b'{"caption": "a cat", "text": "other"}', ("a cat",)),
        ("x.json", b'{"text": ["a", "b"]}', ("a", "b")),
    ],
)
def test_captions_are_the_lines_of_a_text_or_a_field_of_a_record(name, data, captions):
    assert parse_captions(data, name) == captions


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.txt", b"\n \n"),
        ("x.txt", b"\xff\xfe"),
        ("x.json", b"{"),
        ("x.json", b"[" * 100_000),
        ("x.json", b'["a"]'),
        ("x.json", b'{"caption": 3}'),
        ("x.json", b'{"caption": ""}'),
        ("x.json", b'{"caption": []}'),
        ("x.json", b"{}"),
    ],
)
def test_a_file_without_a_caption_is_refused_by_name(name, data):
    with pytest.raises(InputError, match=rf"^here/{name}: .*\.$"):
        parse_captions(data, f"here/{name}")
