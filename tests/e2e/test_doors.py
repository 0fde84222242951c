"""The front doors as people use them: what they refuse, and how."""

import gzip
import io
import re
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TRAIN = ("train.py", "--config", "configs/sd3.py")
TINY = ("--train.steps", "2", "--train.batch_size", "4", "--model.depth", "1", "--text.depth", "1")


def door(*words, cwd=ROOT):
    """(exit code, stdout, stderr) of a door, run from the root of the project."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def whole_png() -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8))


def truncated_png(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(whole_png()[: 60 if i == 2 else None])
        (folder / f"{i}.txt").write_text("a square")
    return folder, r"2\.png"


def cut_tar(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            for name, content in ((f"{i}.png", whole_png()), (f"{i}.txt", b"a square")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[:3000])
    return path, r"shard\.tar"


def wrong_magic(tmp_path):
    folder = tmp_path / "idx"
    folder.mkdir()
    for split, number in (("train", 8), ("t10k", 4)):
        images = struct.pack(">IIII", 0x00000803, number, 8, 8) + bytes(number * 64)
        labels = struct.pack(">II", 0x00000801, number) + bytes(number)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\x03" + images[4:]))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return folder, "magic number"


@pytest.mark.parametrize("broken", [truncated_png, cut_tar, wrong_magic])
def test_broken_data_is_named_in_one_sentence(tmp_path, broken):
    data, named = broken(tmp_path)
    code, _, told = door(*TRAIN, "--data.path", data, *TINY, "--workdir", tmp_path / "run")
    assert_refused(code, told, named)


REFUSALS = {
    "unknown config file": ((*TRAIN[:2], "configs/sd33.py"), r"configs/sd33\.py.*configs/sd3\.py"),
    "unknown variant": ((*TRAIN[:2], "configs/sd3.py:nanno"), "nanno.*nano"),
    "misspelt field": ((*TRAIN, "--train.stesp", "5"), r"--train\.stesp.*--train\.steps"),
    "wrong type": ((*TRAIN, "--train.steps", "many"), "--train.steps.*int.*many"),
    "wrong choice": ((*TRAIN, "--optimizer.decay", "cosin"), "cosine"),
    "impossible value": ((*TRAIN, "--train.batch_size", "0"), "train.batch_size"),
    "uneven batch": ((*TRAIN, "--train.batch_size", "3", "--train.accumulate", "2"), "does not split evenly"),
    "too many devices": ((*TRAIN, "--mesh.data", "999"), "mesh.data is 999"),
    "no data at the path": ((*TRAIN, "--data.path", "/no/such/folder"), "/no/such/folder"),
    "missing data path": ((*TRAIN[:2], "configs/sd3.py:medium"), r"data\.path"),
    "absent data path": (
        (*TRAIN[:2], "configs/sd3.py:medium", "--data.path", "/no/such/file.npz"),
        "/no/such/file.npz",
    ),
    "unwritable directory": ((*TRAIN, "--workdir", "/proc/genjax"), "/proc/genjax.*written"),
    "a file as directory": ((*TRAIN, "--workdir", "README.md"), "README.md"),
    "num 0": (("sample.py", "--num", "0"), "--num"),
    "unknown solver": (("sample.py", "--solver", "dpmpp_2n"), "dpmpp_2n.*dpmpp_2m"),
    "steps 0": (("sample.py", "--steps", "0"), "steps"),
    "long prompt": (("sample.py", "--prompt", "seven " * 20), "120 bytes.*32"),
    "no such run": (("sample.py", "--workdir", "runs/never"), "runs/never"),
    "unwritable output": (("sample.py", "--out", "/proc/genjax"), "/proc/genjax"),
    "evaluate too few": (("-m", "genjax.evaluate", "--num", "1"), "--num"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, case):
    words, named = REFUSALS[case]
    extra = ("--workdir", tmp_path / "run") if words[0] == "train.py" and "--workdir" not in words else ()
    code, _, told = door(*words, *extra)
    assert_refused(code, told, named)
    assert not (tmp_path / "run" / "config.json").exists()


def assert_refused(code, told, named):
    lines = told.strip().splitlines()
    assert code == 2, told
    assert len(lines) == 1, told
    assert lines[0].startswith("error: ")
    assert re.search(named, lines[0]), told


def test_a_work_directory_of_another_config_is_refused_and_left_alone(tmp_path):
    run = tmp_path / "run"
    assert door(*TRAIN, *TINY, "--workdir", run)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    code, _, told = door(*TRAIN, *TINY, "--optimizer.learning_rate", "0.5", "--workdir", run)
    assert_refused(code, told, r"another config \(optimizer.learning_rate is 0.002 there and 0.5 here\)")
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_help_lists_every_field_with_type_default_and_meaning():
    code, told, _ = door(*TRAIN, "--help")
    assert code == 0
    for field in (
        "train.steps", "train.batch_size", "train.seed", "optimizer.learning_rate", "checkpoint.every", "model.depth",
        "sampler.guidance", "mesh.all_reduce", "text.max_length", "caption_dropout", "times.mean",
    ):  # fmt: skip
        assert f"--{field} " in told
    assert "Number of joint blocks" in told


def test_the_shipped_model_draws_what_is_asked(tmp_path):
    """On a fresh clone: sevens, by a classifier trained on real digits, and all the files that are promised."""
    from genjax.data import Digits
    from genjax.metrics.classifier import train_classifier

    words = ("--prompt", "a handwritten seven", "--num", "16", "--trajectory", "True")
    code, _, told = door(ROOT / "sample.py", *words, "--out", "out", cwd=tmp_path)
    assert code == 0, told
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "grid.png", "samples.npz", "trajectory.gif", *(f"{i:04d}.png" for i in range(16))
    }  # fmt: skip
    with np.load(out / "samples.npz") as samples:
        images, prompts, seed = samples["images"], samples["prompts"], samples["seed"]
    assert images.shape == (16, 8, 8, 1)
    assert images.dtype == np.uint8
    assert prompts.tolist() == ["a handwritten seven"] * 16
    assert seed == 0
    examples = list(map(Digits().source("test").__getitem__, range(540)))
    classify = train_classifier(np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples]))
    assert (classify(images / 127.5 - 1) == 7).sum() >= 14
