"""Laws of language models: what the loss counts, and texts that are functions of seed, place and prompt."""

import math
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from genjax import config
from genjax.data import Digits, Text
from genjax.errors import InputError
from genjax.language.decoding import TokenSampler
from genjax.models.decoder import Decoder
from genjax.tasks.language_model import LanguageModel, held_out_nats
from genjax.training.task import Train

BORDER = 256


def test_data_of_another_kind_is_refused_by_name_before_anything_is_written(tmp_path):
    words = ["--config", "configs/lm.py", "--data", "Digits", "--workdir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"^--data takes one of Text, not 'Digits'$"):
        train.main(words)
    with pytest.raises(InputError, match="data takes a Texts, not a Digits"):
        config.override(LanguageModel(), {"data": Digits()})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"text {i}: " + "über alles " * (i + 2), encoding="utf-8")
    return LanguageModel(
        model=Decoder(vocabulary=257, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32),
        data=Text(path=str(folder), length=24, test_fraction=0.3),
        sampler=TokenSampler(temperature=1.0),
        train=Train(batch_size=4),
    )


@pytest.fixture(scope="module")
def parts(task):
    parts = jax.jit(task.init)(jax.random.key(0))
    return jax.tree.map(lambda leaf: 3 * leaf, parts)


def rows(task, number):
    source, rng = task.data.source("train"), np.random.default_rng(0)
    prepared = [task.prepare(source[i], rng) for i in range(number)]
    return {name: np.stack([row[name] for row in prepared]) for name in prepared[0]}


def test_a_fresh_network_knows_nothing(task):
    batch = rows(task, 4)
    sums = jax.jit(lambda key: task.loss(task.init(key), batch, None, task.totals(batch)))(jax.random.key(0))
    assert float(sums.losses["loss"]) == pytest.approx(math.log(257), rel=0.02)


@pytest.mark.slow
def test_every_predicted_token_weighs_the_same_wherever_it_stands(task, parts):
    """A row of little text is not worth as much as a full one: shares of rows add up to the mean over tokens."""
    batch = rows(task, 4)
    batch["segments"][0, 5:] = -1
    totals, loss = task.totals(batch), jax.jit(task.loss)
    whole = float(loss(parts, batch, None, totals).losses["loss"])
    shares = [
        float(loss(parts, {k: v[i : i + 1] for k, v in batch.items()}, None, totals).losses["loss"]) for i in range(4)
    ]
    losses, counts = jax.jit(task.token_losses)(parts, batch)
    assert whole == pytest.approx(sum(shares), rel=1e-5)
    assert whole == pytest.approx(float(losses[np.asarray(counts)].mean()), rel=1e-5)
    assert float(totals["tokens"]) == counts.sum()


def test_held_out_nats_do_not_depend_on_the_batch(task, parts):
    available = len(task.data.source("test"))
    whole = held_out_nats(task, parts, available)
    for batch_size in (1, 3, 100):
        found = held_out_nats(task, parts, available, batch_size=batch_size)
        assert (found.tokens, found.rows) == (whole.tokens, available)
        assert found.nats == pytest.approx(whole.nats, rel=1e-5)


def test_all_held_out_bytes_and_ends_are_predicted_exactly_once(task, parts):
    found = held_out_nats(task, parts, len(task.data.source("test")))
    documents = sum(1 for each in task.data._splits["test"])
    assert found.tokens == len(task.data.held_out_bytes()) + documents


@pytest.mark.slow
def test_a_text_is_a_function_of_its_seed_and_prompt(task, parts):
    def texts(prompts, **options):
        given = dict(tokens=12, seed=3) | options
        return [text.whole() for text in task.texts(parts.trained, prompts, **given)]

    assert texts(["te", "te"])[1] == texts(["te"], seed=4)[0]
    assert texts(["te"]) == texts(["te"], chunk=5)
    assert texts(["te"]) != texts(["te"], seed=9)
    assert texts(["te"])[0].startswith("te")


@pytest.mark.slow
def test_a_text_that_was_cut_short_goes_on_as_if_it_had_not_been(task, parts):
    """The key of a token is that of its place, so that what has come is as good a prompt as any."""

    def write(prompt, **options):
        return np.concatenate(list(task.write(parts.trained, [prompt], seed=3, **options)), axis=1)[0]

    whole = write(b"te", tokens=12)
    begun = write(b"te", tokens=5)
    np.testing.assert_array_equal(begun, whole[:5])
    assert BORDER not in begun
    np.testing.assert_array_equal(write(b"te" + bytes(begun.tolist()), tokens=7), whole[5:])


def test_what_is_streamed_does_not_wait_for_the_rest(task, parts, monkeypatch):
    write, made = LanguageModel.write, []

    def counted(self, *args, **options):
        for piece in write(self, *args, **options):
            made.append(piece.shape[1])
            yield piece

    monkeypatch.setattr(LanguageModel, "write", counted)
    (text,) = task.texts(parts.trained, ["te"], tokens=12, seed=3, chunk=5)
    begun = next(text.stream())
    assert made == [5]
    assert text.whole().startswith("te" + begun)
    assert made == [5, 5, 2]


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_rows_beside_it(task, parts):
    together = np.concatenate(list(task.write(parts.trained, ["te", "a longer one"], tokens=10, seed=0)), axis=1)
    alone = np.concatenate(list(task.write(parts.trained, ["te"], tokens=10, seed=0)), axis=1)
    np.testing.assert_array_equal(together[:1], alone)


def test_a_character_that_comes_in_pieces_is_shown_whole(task, monkeypatch):
    ids = np.frombuffer("aü→b".encode(), np.uint8).astype(np.int32)
    pieces = [ids[i : i + 1][None] for i in range(len(ids))] + [np.array([[BORDER, 97]])]
    monkeypatch.setattr(LanguageModel, "write", lambda self, *args, **options: iter(pieces))
    (text,) = task.texts({}, ["x"], seed=0, tokens=9)
    assert [piece for piece in text.stream() if piece] == ["a", "ü", "→", "b"]  # and nothing after the end


@pytest.mark.slow
def test_the_door_asks_for_what_the_config_says_unless_told_otherwise(task, parts):
    warm = replace(task, sampler=TokenSampler(temperature=0.5, top_k=7))
    request = warm.request("sample")
    assert (request.temperature, request.top_k) == (0.5, 7)
    (text,) = replace(request, prompt="te", max_tokens=4, temperature=0.0)(task, parts)
    (greedy,) = task.write(parts.trained, ["te"], tokens=4, seed=0, sampler=TokenSampler(temperature=0))
    assert text.whole().encode() == b"te" + bytes(greedy[0][greedy[0] < 256].tolist()) or "\ufffd" in text.whole()


def test_the_evaluation_stands_beside_compressors(task, parts):
    (figures,) = task.request("evaluate")(task, parts)
    assert figures.values["gzip_bits_per_byte"] > 0
    assert figures.values["xz_bits_per_byte"] > 0
    nats = held_out_nats(task, parts, len(task.data.source("test"))).nats
    assert figures.values["bits_per_byte"] == pytest.approx(nats / math.log(2) / figures.values["bytes"], rel=1e-6)


@dataclass(frozen=True)
class Torn(Text):
    """A text of which some rows cannot be read, as on a disk that is going."""

    def source(self, split):
        whole = super().source(split)

        def read(row):
            if row in (0, 5):
                raise InputError(f"row {row} cannot be read")
            return whole.read(row)

        return replace(whole, read=read, on_bad="skip")


@pytest.mark.slow
def test_rows_that_cannot_be_read_count_in_no_figure(task, parts):
    """The bits of those that can be are not told as those of all bytes."""
    torn = replace(task, data=Torn(**{field.name: getattr(task.data, field.name) for field in fields(Text)}))
    kept = [row for i, row in enumerate(task.fixed_rows("test")) if i not in (0, 5)]
    losses, counts = task.token_losses(parts, {name: np.stack([row[name] for row in kept]) for name in kept[0]})
    nats, tokens = float(losses.sum()), int(counts.sum())
    (figures,) = torn.request("evaluate")(torn, parts)
    assert (figures.values["rows"], figures.values["tokens"]) == (len(kept), tokens)
    assert figures.values["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert not [name for name in figures.values if name.endswith("bits_per_byte")]


@pytest.mark.parametrize(
    ("door", "wrong", "said"),
    [
        ("sample", {"num": 0}, "--num and --max_tokens"),
        ("sample", {"max_tokens": 0}, "--num and --max_tokens"),
        ("sample", {"temperature": -1.0}, "temperature"),
        ("sample", {"top_p": 0.0}, "top_p"),
        ("evaluate", {"rows": 0}, "--rows"),
    ],
)
def test_what_cannot_be_done_is_refused(task, door, wrong, said):
    with pytest.raises(InputError, match=said):
        replace(task.request(door), **wrong).check(task)


def test_a_vocabulary_that_is_too_small_is_refused(task):
    with pytest.raises(InputError, match="model.vocabulary is 100, and the data has 257 token ids"):
        replace(task, model=task.model.clone(vocabulary=100)).check()


@pytest.mark.slow
def test_logits_are_float32_in_every_precision(task, parts):
    exact, _ = jax.jit(task.token_losses)(parts, rows(task, 2))
    for precision in ("bf16", "fp16"):
        losses, _ = jax.jit(replace(task, train=Train(precision=precision)).token_losses)(parts, rows(task, 2))
        assert losses.dtype == jnp.float32
        np.testing.assert_allclose(losses, exact, atol=0.1 * float(exact.max()))
