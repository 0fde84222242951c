"""The front doors as people use them: what they refuse, and how.

What is refused is asked of `main` in this process; that a refusal is one line on stderr and exit code 2, of each door
as a process.
"""

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

import sample
import train
from genjax import config, evaluate
from genjax.errors import InputError

ROOT = Path(__file__).parents[2]
SD3, TOY, DIGITS, LM = "configs/sd3.py", "configs/gan.py:toy", "configs/gan.py:digits", "configs/lm.py"
TINY = ("--train.steps", "2", "--train.batch_size", "4", "--model.depth", "1", "--condition.encoder.depth", "1")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def assert_refused(main, words, named):
    with pytest.raises(InputError, match=named) as refusal:
        main(list(map(str, words)))
    assert "\n" not in str(refusal.value)


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
        (folder / f"{i}.png").write_bytes(whole_png()[: 60 if i == 3 else None])
        (folder / f"{i}.txt").write_text("a square")
    return folder, r"3\.png"


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
    words = ("--config", SD3, "--data.path", data, *TINY, "--train.data_threads", "0", "--workdir", tmp_path / "run")
    assert_refused(train.main, words, named)


TRAINING = {
    "unknown config file": (("configs/sd33.py",), r"configs/sd33\.py.*configs/sd3\.py"),
    "unknown variant": (("configs/sd3.py:nanno",), "nanno.*nano"),
    "misspelt field": ((SD3, "--train.stesp", "5"), r"--train\.stesp.*--train\.steps"),
    "wrong type": ((SD3, "--train.steps", "many"), "--train.steps.*int.*many"),
    "wrong choice": ((SD3, "--optimizer.decay", "cosin"), "cosine"),
    "unknown precision": ((SD3, "--train.precision", "fp8"), "fp32, bf16, fp16, not 'fp8'"),
    "impossible value": ((SD3, "--train.batch_size", "0"), "train.batch_size"),
    "no checkpoints": ((SD3, "--checkpoint.every", "0"), "checkpoint.every"),
    "uneven batch": ((SD3, "--train.batch_size", "3", "--train.accumulate", "2"), "does not split evenly"),
    "too many devices": ((SD3, "--mesh.data", "999"), "mesh.data is 999"),
    "uneven mesh": ((SD3, "--mesh.fsdp", "3"), "mesh.fsdp x tensor is 3 x 1, and this machine has 4 devices"),
    "a ring of parts": ((SD3, "--mesh.fsdp", "2", "--mesh.all_reduce", "ring"), "take psum"),
    "no heads": ((SD3, "--model.num_heads", "0"), "num_heads.* at least 1"),
    "unknown process": ((SD3, "--process", "VPP"), "--process takes one of .*RectifiedFlow.*, not 'VPP'"),
    "unknown times": ((SD3, "--times", "Moed"), "not 'Moed'; did you mean Mode"),
    "unknown optimiser": ((SD3, "--optimizer", "AdamX"), "not 'AdamX'; did you mean Adam"),
    "no optimiser": ((SD3, "--optimizer", "Scheduled"), "--optimizer takes one of Adam, AdamW"),
    "no run to begin from": ((SD3, "--train.start.path", "/no/run"), "/no/run is not a run directory"),
    "no data at the path": ((SD3, "--data.path", "/no/such/folder"), "/no/such/folder"),
    "missing data path": (("configs/sd3.py:medium",), r"data\.path"),
    "absent data path": (("configs/sd3.py:medium", "--data.path", "/no/such/file.npz"), "/no/such/file.npz"),
    "data of another kind": ((SD3, "--data", "Text"), "--data takes one of Couples, Digits.*, not 'Text'"),
    "unwritable directory": ((SD3, "--workdir", "/proc/genjax"), "/proc/genjax.*written"),
    "a file as directory": ((SD3, "--workdir", "README.md"), "README.md"),
    "a folder of other files": ((SD3, "--workdir", "docs"), "docs holds files but no config.json"),
    "gan: no latent": ((TOY, "--latent", "0"), "latent is the number of coordinates of z, at least 1, not 0"),
    "gan: a generator that never moves": ((TOY, "--generator_every", "0"), "generator_every"),
    "gan: unknown objective": ((TOY, "--objective", "Wassersten"), "did you mean Wasserstein"),
    "gan: unknown penalty": ((TOY, "--penalty", "R11"), "did you mean R1"),
    "gan: pictures of points": ((TOY, "--generator", "DCGANGenerator"), r"draws arrays of shape \(8, 8, 1\)"),
    "gan: points of pictures": ((DIGITS, "--generator", "MLPGenerator"), r"draws arrays of shape \(2,\)"),
    "gan: classes of one player": ((DIGITS, "--critic.num_classes", "3"), "both players have the same classes"),
    "gan: classes of no data": (
        (DIGITS, "--critic.num_classes", "3", "--generator.num_classes", "3"),
        "the data has 10 classes",
    ),
    "lm: too few token ids": ((LM, "--model.vocabulary", "100"), "vocabulary is 100, and the data has 257 token ids"),
    "lm: uneven heads": ((LM, "--model.num_kv_heads", "5"), "is not a multiple of num_kv_heads = 5"),
    "lm: short rows": ((LM, "--data.length", "1"), "data.length is 1"),
    "lm: no text": ((LM, "--data.path", "/no/such"), "/no/such does not exist"),
    "lm: a sampler of too much": ((LM, "--sampler.top_p", "2"), "top_p is 2.0; it is above 0 and at most 1"),
}


@pytest.mark.parametrize("case", TRAINING)
def test_what_cannot_be_trained_is_refused_in_one_sentence(tmp_path, case):
    (spec, *words), named = TRAINING[case]
    workdir = () if "--workdir" in words else ("--workdir", tmp_path / "run")
    assert_refused(train.main, ("--config", spec, *words, *workdir), named)
    assert not list(tmp_path.glob("run/checkpoints/*"))


SAMPLING = {
    "num 0": (SD3, ("--num", "0"), "--num"),
    "unknown solver": (SD3, ("--solver", "dpmpp_2n"), "not 'dpmpp_2n'; did you mean DPMpp2M"),
    "steps 0": (SD3, ("--steps", "0"), "steps"),
    "no number": (SD3, ("--guidance", "nan"), "--guidance takes a finite float"),
    "long prompt": (SD3, ("--prompt", "seven " * 20), "120 bytes.*32"),
    "gan: truncation": (TOY, ("--truncation", "0"), r"--truncation is a limit for \|z\|, above 0, not 0.0"),
    "gan: no samples": (DIGITS, ("--num", "0"), "--num is the number of samples, at least 1"),
    "gan: between points": (TOY, ("--interpolate", "2"), "--interpolate"),
    "gan: between one": (DIGITS, ("--interpolate", "2", "--num", "1"), "--num is at least 2"),
    "gan: a prompt": (DIGITS, ("--prompt", "seven"), "--prompt is not an option"),
    "lm: mass": (LM, ("--top_p", "2"), "top_p is 2.0"),
    "lm: no tokens": (LM, ("--max_tokens", "0"), "--max_tokens are at least 1, not 1 and 0"),
    "lm: no texts": (LM, ("--num", "0"), "--num and --max_tokens are at least 1, not 0"),
    "lm: temperature": (LM, ("--temperature", "-1"), "temperature is -1.0"),
    "lm: no likeliest": (LM, ("--top_k", "0"), "top_k is 0; it is at least 1"),
    "lm: min_p": (LM, ("--min_p", "2"), "min_p is 2.0"),
    "lm: guidance": (LM, ("--guidance", "3"), "--guidance is not an option"),
}
EVALUATION = {
    "too few": (SD3, ("--num", "1"), "--num"),
    "no steps": (SD3, ("--steps", "0"), "steps"),
    "gan: too few points": (TOY, ("--num", "1"), "--num is the number of samples, at least 2"),
    "gan: too few pictures": (DIGITS, ("--num", "1"), "at least 2 for a covariance"),
    "gan: an option of sample.py": (DIGITS, ("--truncation", "1"), "--truncation is not an option"),
    "lm: no rows": (LM, ("--rows", "0"), "--rows is the number of held-out rows, at least 1"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories without weights, by config: what is asked is looked at before weights are read."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for spec in (SD3, TOY, DIGITS, LM):
        task, name = config.load(str(ROOT / spec))
        config.save(task, folder / name / "config.json")
        found[spec] = folder / name
    return found


@pytest.mark.parametrize("case", SAMPLING)
def test_what_cannot_be_sampled_is_refused_in_one_sentence(runs, case):
    spec, words, named = SAMPLING[case]
    assert_refused(sample.main, ("--workdir", runs[spec], *words), named)


@pytest.mark.parametrize("case", EVALUATION)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(runs, case):
    spec, words, named = EVALUATION[case]
    assert_refused(evaluate.main, ("--workdir", runs[spec], *words), named)


@pytest.mark.parametrize("door", [sample, evaluate], ids=lambda door: door.__name__)
def test_where_no_weights_are_is_told_at_every_door(runs, tmp_path, door):
    for spec in runs:
        assert_refused(
            door.main, ("--workdir", runs[spec], "--out", tmp_path / "out"), "has no checkpoint and no model"
        )
    assert not list(tmp_path.iterdir())
    assert_refused(door.main, ("--workdir", tmp_path / "never"), "never is not a run directory")
    assert_refused(door.main, ("--workdir", "sd3-nano", "--out", "/proc/genjax"), "/proc/genjax cannot be written to")
    assert_refused(door.main, ("seven",), "'seven' is not an option")


@pytest.mark.slow
def test_a_work_directory_of_another_config_is_refused_and_left_alone(tmp_path):
    run = tmp_path / "run"
    words = ("--config", SD3, "--workdir", run)
    config.save(config.load(SD3)[0], run / "config.json")
    before = (run / "config.json").read_text()
    changed = r"another config \(optimizer.learning_rate is 0.002 there and 0.5 here\)"
    assert_refused(train.main, (*words, "--optimizer.learning_rate", "0.5"), changed)
    # The learning rate falls along a cosine to the last step: with more steps it would have been another one.
    assert_refused(train.main, (*words, "--train.steps", "4000"), "begin with these weights by --train.start.path")
    assert_refused(train.main, ("--config", LM, "--workdir", run), "give another --workdir")
    assert (run / "config.json").read_text() == before
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_help_lists_every_field_with_type_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--config", SD3, "--help"])
    assert not ended.value.code
    told = capsys.readouterr().out
    for field in (
        "train.steps", "train.batch_size", "train.seed", "optimizer.learning_rate", "checkpoint.every", "model.depth",
        "sampler.guidance", "mesh.all_reduce", "condition.encoder.max_length", "condition.dropout", "times.mean",
    ):  # fmt: skip
        assert f"--{field} " in told
    assert "Number of joint blocks" in told


def door(*words, cwd=ROOT):
    """(exit code, stdout, stderr) of a door, as a process."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--config", SD3, "--train.stesp", "5"),
        ("sample.py", "--num", "0"),
        ("-m", "genjax.evaluate", "--num", "1"),
    ],
    ids=["train", "sample", "evaluate"],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(words):
    code, out, told = door(*words)
    assert code == 2
    (line,) = told.splitlines()
    assert re.match(f"error: .*{words[-2]}", line)
    assert out == ""


@pytest.mark.e2e
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
