"""Weights of other projects at the command line: what is told, what is written, what is refused."""

import jax
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.interop import networks
from genjax.interop.__main__ import main
from tests.interop.test_networks import MODELS, sizes_of, target, weights


def test_from_layout_to_layout_and_back_is_the_same_file(tmp_path, capsys):
    networks.write(tmp_path / "first.safetensors", weights(), "original")
    way = ["genjax", "diffusers", "genjax", "original"]
    source = tmp_path / "first.safetensors"
    for i, layout in enumerate(way):
        goal = target(tmp_path, layout, f"step{i}")
        main(["convert", str(source), str(goal), "--layout", layout])
        source = goal
    assert source.read_bytes() == (tmp_path / "first.safetensors").read_bytes()
    assert "transformer, vae, text_encoder, text_encoder_2, text_encoder_3 in" in capsys.readouterr().out


def test_inspection_tells_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    networks.write(tmp_path / "all.safetensors", weights(np.float16), "original")
    main(["inspect", str(tmp_path / "all.safetensors")])
    told = capsys.readouterr().out
    for part, (model, _) in MODELS.items():
        count = sum(leaf.size for leaf in jax.tree.leaves(weights()[part].params))
        if part == "transformer":
            count += model.pos_embed_max_size**2 * 64  # stored there, computed here
        assert f"{count:,}" in told
        (line,) = [line for line in told.splitlines() if line.startswith(f"{part}: ")]
        for name, value in sizes_of(model).items():
            if name not in ("groups", "epsilon", "max_distance"):  # not in weights
                assert f"{name}={value}" in line
    assert "float16" in told and "original" in told


def test_a_file_of_ours_is_inspected_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    networks.write(tmp_path / "own.safetensors", {"vae": weights()["vae"]}, "genjax")
    main(["inspect", str(tmp_path / "own.safetensors")])
    told = capsys.readouterr().out
    assert "genjax" in told and "vae: image_channels=3" in told and "groups=32" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "takes inspect PATH, or convert SOURCE TARGET"),
        (["inspect"], "takes inspect PATH"),
        (["inspect", "a", "b"], "takes inspect PATH"),
        (["inspect", "a", "--layout", "original"], "takes inspect PATH"),
        (["inspect", "nowhere"], "there is no file or folder nowhere"),
        (["convert", "a"], "takes inspect PATH, or convert"),
        (["convert", "nowhere", "b.safetensors", "--layout", "original"], "there is no file or folder nowhere"),
        (["convert", "a", "b", "--layout", "genjax"], "b should end in .safetensors"),
        (["convert", "a", "b", "--layout", "ckpt"], "layout"),
        (["convert", "a", ".", "--layout", "diffusers"], "exists already"),
    ],
)
def test_bad_words_are_refused_in_one_sentence(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        main(words)
