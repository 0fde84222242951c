"""Stable Diffusion 3 from weights on disk; that it is diffusers' is in tests/parity/test_sd3_pipeline_diffusers.py."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.core import meta
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import sample
from genjax.diffusion.solvers import DPMpp2M, Euler
from genjax.errors import InputError
from genjax.interop import networks
from genjax.interop.networks import Network
from genjax.models.autoencoder import Autoencoder
from genjax.models.clip_text import CLIPText
from genjax.models.mmdit import MMDiT
from genjax.models.sd3_text import SD3Text
from genjax.models.t5_encoder import T5Encoder
from genjax.tasks import sd3_pipeline
from genjax.tasks.sd3_pipeline import DrawCheckpoint, Pipeline

CLIP = dict(vocabulary=11, positions=8, num_heads=2, end=10)
MODELS = {
    "transformer": MMDiT(channels=16, num_heads=2, head_dim=4, depth=2, pos_embed_max_size=6, pos_embed_base_size=4),
    "vae": Autoencoder(widths=(4, 4), blocks=1, z_channels=16, moments=True, groups=2),
    "text_encoder": CLIPText(**CLIP, width=4, depth=2),
    "text_encoder_2": CLIPText(**CLIP, width=6, depth=2, projection=5, activation="gelu"),
    "text_encoder_3": T5Encoder(vocabulary=6, width=16, depth=1, num_heads=2, head_dim=3, mlp_width=8, buckets=8),
}
SMALL = {"clip_l": MODELS["text_encoder"], "clip_g": MODELS["text_encoder_2"], "t5": MODELS["text_encoder_3"]}
INPUTS = {"transformer": [(1, 4, 4, 16), (1,), (1, 5, 16), (1, 9)], "vae": [(1, 4, 4, 3)]}
LETTERS = {"a": 1, "b": 2, "c": 3, "a</w>": 4, "b</w>": 5, "c</w>": 6, "!": 0, "ab": 7, "!</w>": 8}


def network(part: str) -> Network:
    """Random weights with outputs of order one."""
    model = MODELS[part]
    shapes = INPUTS.get(part, [(1, 8)])
    kind = np.int32 if part.startswith("text") else np.float32
    abstract = jax.eval_shape(model.init, jax.random.key(0), *(jax.ShapeDtypeStruct(s, kind) for s in shapes))
    rng = np.random.default_rng(len(part))

    def random(leaf):
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 4
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    sizes = {name: getattr(model, name) for name in model.__dataclass_fields__ if name not in ("parent", "name")}
    return Network(sizes, jax.tree.map(random, meta.unbox(abstract)["params"]))


def write_tokenizers(folder: Path) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir(parents=True)
        ids = LETTERS | {"<|startoftext|>": 9, "<|endoftext|>": 10}
        (folder / name / "vocab.json").write_text(json.dumps(ids))
        (folder / name / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_2/tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "c"}}))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), ("▁a", -1.0), ("b", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    (folder / "tokenizer_3").mkdir()
    tokenizer.save(str(folder / "tokenizer_3/tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small checkpoint as diffusers lays it down."""
    path = tmp_path_factory.mktemp("checkpoint")
    networks.write(path, {part: network(part) for part in MODELS}, "diffusers")
    (path / "scheduler").mkdir()
    (path / "scheduler/scheduler_config.json").write_text('{"shift": 2.0}')
    write_tokenizers(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline(folder, folder)


ASKED = DrawCheckpoint(prompt="a b", num=2, height=8, width=12, steps=2, guidance=3.0)


def test_what_a_folder_says_of_its_latents_and_its_grid_is_taken(pipeline, folder, tmp_path):
    task, _ = pipeline.task(8, 12)
    assert task.sampler.grid.shift == 2.0 and task.shape == (4, 6, 16)
    assert (task.space.scale, task.space.shift) == (1.5305, 0.0609)  # written for an autoencoder of 16 channels
    assert pipeline.stride == 2
    assert pipeline._pad("tokenizer_2") == LETTERS["c"] and pipeline._pad("tokenizer") == 0  # which names none
    shutil.copytree(folder, tmp_path / "other")
    config = tmp_path / "other/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5, "shift_factor": None}))
    (tmp_path / "other/scheduler/scheduler_config.json").unlink()
    other = Pipeline(tmp_path / "other", folder, precision="bf16")
    task, _ = other.task(8, 12)
    assert (task.space.scale, task.space.shift, task.sampler.grid.shift) == (0.5, 0.0, 3.0)
    assert task.train.precision == "bf16"


@pytest.mark.slow
def test_an_encoder_that_is_not_there_says_nothing_and_that_is_told(pipeline, folder, tmp_path, monkeypatch):
    whole = pipeline.encode_prompts(["a", "b c"])
    told = whole.rows
    assert told["context"].shape == (2, 8 + 256, 16) and told["pooled"].shape == (2, 9) and not whole.said
    assert np.abs(told["context"][0] - told["context"][1]).max() > 0.1
    shutil.copytree(folder, tmp_path / "less")
    shutil.rmtree(tmp_path / "less/text_encoder")
    index = tmp_path / "less/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder": [None, None]}))
    less = Pipeline(tmp_path / "less", folder)
    # one that is not there has the released sizes, which do not fit these
    monkeypatch.setattr(sd3_pipeline, "SD3Text", lambda left_out, **found: SD3Text(left_out=left_out, **SMALL | found))
    alone = less.encode_prompts(["a", "b c"])
    assert alone.said == ["there is no text_encoder, and it says nothing"]
    np.testing.assert_allclose(alone.rows["context"][:, :, 4:], told["context"][:, :, 4:], atol=1e-5)
    assert not alone.rows["context"][:, :8, :4].any() and not alone.rows["pooled"][:, :4].any()


def test_encoders_may_lie_apart_one_of_each(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(networks._Clip, "sizes", lambda self, layout, arrays, config: _told(arrays))
    networks.write(tmp_path / "two.safetensors", {part: network(part) for part in ("transformer", "vae")}, "original")
    (tmp_path / "apart").mkdir()
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        networks.write(tmp_path / f"apart/{part}.safetensors", {part: network(part)}, "original")
    found = Pipeline(tmp_path / "two.safetensors", folder, tmp_path / "apart")
    assert found.parts.keys() == MODELS.keys()
    shutil.copy(tmp_path / "apart/text_encoder_3.safetensors", tmp_path / "apart/t5_again.safetensors")
    with pytest.raises(
        InputError, match=r"apart holds more than one text_encoder_3: --encoders is a file, or a folder"
    ):
        Pipeline(tmp_path / "two.safetensors", folder, tmp_path / "apart")
    with pytest.raises(InputError, match=r"two\.safetensors has no text encoder: .*; --encoders says where they are$"):
        Pipeline(tmp_path / "two.safetensors", folder).encode_prompts(["a"])


@pytest.mark.slow
def test_what_is_not_read_of_a_long_prompt_is_told(pipeline, folder):
    long = " ".join("a" * 10)
    said = pipeline.encode_prompts([long, "b"]).said
    assert said == [
        f"{part} does not read the end of a prompt: 'a a a a'" for part in ("text_encoder", "text_encoder_2")
    ]
    (pictures,) = replace(ASKED, num=1, steps=1, negative=long)(folder)
    assert pictures.said.splitlines()[1:] == said


@pytest.mark.slow
def test_pictures_depend_on_seed_place_and_what_is_asked(folder):
    (first,) = ASKED(folder)
    assert first.images.shape == (2, 8, 12, 3) and np.abs(first.images).max() <= 1
    assert np.abs(first.images[0] - first.images[1]).max() > 0.01
    (alone,) = replace(ASKED, num=1)(folder)
    np.testing.assert_allclose(alone.images[0], first.images[0], atol=1e-4)
    for change in ({"seed": 1}, {"prompt": "c"}, {"negative": "c"}, {"guidance": 1.0}):
        (other,) = replace(ASKED, num=1, **change)(folder)
        assert np.abs(other.images[0] - alone.images[0]).max() > 1e-3, change
    first, other = (replace(ASKED, num=1, steps=4, solver=solver)(folder) for solver in (Euler(), DPMpp2M()))
    assert np.abs(next(first).images - next(other).images).max() > 1e-3


@pytest.mark.slow
def test_a_picture_is_kept_where_its_mask_is_black(folder, tmp_path, pipeline):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 6:] = 255
    for name, array in (("image", pixels), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    asked = replace(ASKED, num=1, height=4, width=4, image=str(tmp_path / "image.png"), strength=1.0)
    Image.fromarray(mask[:4]).save(tmp_path / "half.png")
    for change, says in (
        ({"mask": str(tmp_path / "half.png")}, "--mask is of .4, 12. pixels, and --image of .8, 12."),
        ({"image": None, "mask": str(tmp_path / "mask.png")}, "--mask says what is drawn anew of an --image, and none"),
        ({"strength": 5.0}, "strength is a share of the steps"),
    ):
        with pytest.raises(InputError, match=says):
            replace(asked, **change).check(folder)
    asked.check(folder)
    (anew,) = asked(folder)
    (kept,) = replace(asked, mask=str(tmp_path / "mask.png"))(folder)
    (nothing,) = replace(asked, strength=0.5, mask=None)(folder)
    assert np.abs(anew.images - nothing.images).max() > 0.01
    latent = pipeline.encode(np.float32(pixels)[None] / 127.5 - 1)
    black = replace(asked, mask=str(tmp_path / "black.png"))
    Image.fromarray(0 * mask).save(tmp_path / "black.png")
    (whole,) = black(folder)
    np.testing.assert_allclose(whole.images, pipeline.decode(latent), atol=1e-4)
    assert np.abs(kept.images - whole.images).max() > 0.01


def test_at_the_door_a_folder_and_a_file_with_tokenizers_are_drawn_from(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks._Autoencoder, "sizes", lambda *_: network("vae").sizes)  # groups are in no file
    monkeypatch.setattr(networks._Clip, "sizes", lambda self, layout, arrays, config: _told(arrays))  # nor are heads
    original = networks._MMDiT.sizes
    monkeypatch.setattr(networks._MMDiT, "sizes", lambda *given: original(*given) | {"num_heads": 2, "head_dim": 4})
    networks.write(tmp_path / "all.safetensors", {part: network(part) for part in MODELS}, "original")
    words = shlex.split("--prompt a --height 8 --width 12 --steps 2 --guidance 3 --num 2 --compile_cache False")
    for path, more in ((folder, []), (tmp_path / "all.safetensors", ["--tokenizers", str(folder)])):
        sample.main(["--checkpoint", str(path), *words, *more, "--out", str(tmp_path / "out")])
        assert "2 pictures of 12 x 8: Euler, 2 steps, guidance 3, seed 0" in capsys.readouterr().out
        assert {file.name for file in (tmp_path / "out").iterdir()} >= {"grid.png", "0000.png", "0001.png"}


def _told(arrays):
    width = next(array.shape[1] for name, array in arrays.items() if name.endswith("token_embedding.weight"))
    return network("text_encoder_2" if width == 6 else "text_encoder").sizes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num": 0}, "--num is the number of pictures, at least 1, not 0"),
        ({"steps": 0}, "steps is the number of sampling steps, at least 1, not 0"),
        ({"guidance": float("nan")}, "--guidance is a finite number, not nan"),
        ({"guidance": 1.0, "negative": "b"}, "--negative is what guidance leads away from, and --guidance 1 is none"),
        ({"height": 9}, "height and width are multiples of 2, not 9 and 12"),
        ({"width": 0}, "height and width are multiples of 2, not 8 and 0"),
        ({"image": "none.png"}, "--image is a PNG, JPEG or WebP file, and there is none at none.png"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_weights_are_read(tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        replace(ASKED, **change).check(tmp_path)


def test_sides_weights_and_tokenizers_that_are_wanting_are_refused(pipeline, folder, tmp_path):
    for sides in ((8, 10), (0, 8), (8, 28)):
        with pytest.raises(InputError, match=r"height and width are multiples of 4 up to 24, not"):
            pipeline.task(*sides)
    networks.write(tmp_path / "vae.safetensors", {"vae": network("vae")}, "original")
    with pytest.raises(InputError, match=r"vae\.safetensors is a file, and holds no tokenizers: --tokenizers is a fol"):
        ASKED.check(tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match=r"vae\.safetensors has no transformer; it has vae$"):
        Pipeline(tmp_path / "vae.safetensors", folder)
    with pytest.raises(InputError, match=r"^there is no tokenizer in .*nowhere"):
        Pipeline(folder, tmp_path / "nowhere").encode_prompts(["a"])
    with pytest.raises(InputError, match="--checkpoint is a file or folder of weights, and goes without --workdir"):
        sample.main(["--checkpoint", str(folder), "--workdir", "emoji"])
    with pytest.raises(InputError, match="--checkpoint is a file or folder of weights"):
        sample.main(["--checkpoint", "None"])
