"""Laws of the command line: what is given is set, what is misspelt or mistyped is refused in one sentence."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from genjax import config as C
from genjax.config.tree import leaves
from tests.config.conftest import HERE, Digits, Net, Player, System, Train, refused


@dataclasses.dataclass(frozen=True)
class Door:
    """Train a system."""

    config: str = "here.py"
    """FILE[:VARIANT] of the config."""
    workdir: str | None = None
    """Directory of the run."""
    dry_run: bool = False
    """Plan only."""


CONFIG_FILE = f"""
from {HERE} import Net, System

def nano():
    return System()

def medium():
    return System(model=Net(depth=6))

VARIANTS = {{"nano": nano, "medium": medium}}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "sd3.py"
    path.write_text(CONFIG_FILE)
    return path


@pytest.fixture
def cli(file):
    return lambda *words: C.parse_with_config(["--config", str(file), *words], Door())


# ---- config files


def test_a_config_file_gives_its_first_variant_or_the_one_named(file):
    config, name = C.load(str(file))
    assert (config.model.depth, name) == (2, "sd3-nano")
    config, name = C.load(f"{file}:medium")
    assert (config.model.depth, name) == (6, "sd3-medium")


def test_an_unknown_file_or_variant_is_refused_with_what_there_is(file):
    assert refused(C.load, str(file.with_name("sd4.py"))).endswith(f"(there are {file}); did you mean {file}?")
    assert refused(C.load, str(file.with_name("sd3"))).endswith(f"did you mean {file}?")
    assert refused(C.load, f"{file}:meduim").endswith(
        "has no variant 'meduim' (it has nano, medium); did you mean medium?"
    )
    file.write_text("x = 1")
    assert "defines no VARIANTS" in refused(C.load, str(file))


# ---- command line


def test_options_and_overrides_are_read_in_every_spelling(cli):
    options, config, name = cli(
        *["--workdir", "runs/x", "--train.batch-size", "3", "--train.steps=7", "--train.warm", "True"],
        *["--train.betas", "0.5", "-1e-3", "--model.kernel", "1", "2", "--players.0.rate", "1", "--train.clip", "-2"],
        *["--data.path=--odd", "--data.mixture.extra-set", "3", "--train.schedule", "constant", "--dry-run"],
    )
    assert (options.workdir, options.dry_run, name) == ("runs/x", True, "sd3-nano")
    assert config.train == Train(steps=7, batch_size=3, warm=True, betas=(0.5, -1e-3), clip=-2.0, schedule="constant")
    assert config.model == Net(depth=2, kernel=(1, 2)) and config.players[0] == Player(1.0)
    assert config.data == Digits("--odd", {"train": 1.0, "extra-set": 3.0})
    assert cli("--train.clip", "None", "--train.betas", "--data.path", "-x y")[1].train == Train(betas=())


def test_nothing_given_changes_nothing(cli):
    assert C.differences(cli()[1], System()) == []
    assert C.parse([], Door()) == Door()


def test_a_door_without_a_config_reads_its_own_options():
    assert C.parse(["--workdir=x"], Door()).workdir == "x"
    assert refused(C.parse, ["--wrokdir=x"], Door()) == "--wrokdir is not an option; did you mean --workdir?"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--train.stesp 3", "--train.stesp is not a field of this config; did you mean --train.steps?"),
        ("--steps 3", "--steps is not an option; did you mean --train.steps?"),
        ("--zzzzzz 3", "--zzzzzz is not an option; --help lists what there is"),
        ("--model.name x", "--model.name is not a field of this config"),
        ("--train.steps many", "--train.steps takes an int, not 'many'"),
        ("--train.steps 3.0", "--train.steps takes an int, not '3.0'"),
        ("--workdir x --train.steps many --seed 3", "--seed is not an option; did you mean --train.seed?"),
        ("--workdir x --train.steps many --train.seed 3", "--train.steps takes an int, not 'many'"),
        ("--train.steps 3 4", "--train.steps takes an int, not '3 4'"),
        ("--train.steps", "--train.steps needs a value: an int"),
        ("--train.clip x", "--train.clip takes a float or None, not 'x'"),
        ("--train.clip inf", "--train.clip takes a finite float, not inf"),
        ("--train.warm true", "--train.warm takes True or False, not 'true'; did you mean True?"),
        ("--train.schedule cosin", "--train.schedule takes one of cosine, constant, not 'cosin'; did you mean cosine?"),
        ("--train.schedule x", "--train.schedule takes one of cosine, constant, not 'x'"),
        ("--model.kernel 1", "--model.kernel takes an int and an int, not '1'"),
        ("--train.steps 3 --train.steps=4", "--train.steps is given twice"),
        ("--data digits", "--data is chosen by the config file; here one sets --data.path, "),
        ("--rival x", "--rival cannot be set on the command line, only in the config file"),
        ("--times.std -1", "LogitNormal takes a positive std, not -1.0"),
    ],
)
def test_a_command_line_that_does_not_fit_is_refused_in_one_sentence(cli, capsys, words, sentence):
    assert refused(cli, *words.split()).startswith(sentence)
    assert capsys.readouterr() == ("", "")


def test_words_before_any_option_are_refused():
    assert "'configs/sd3.py' is not an option" in refused(C.parse_with_config, ["configs/sd3.py"], Door())


def test_a_door_and_a_config_may_not_share_a_name(file):
    @dataclasses.dataclass(frozen=True)
    class Clash(Door):
        anything: int = 0

    with pytest.raises(TypeError, match="anything"):
        C.parse_with_config(["--config", str(file)], Clash())


def test_help_lists_every_leaf_with_type_default_and_meaning(cli, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as caught:
        cli("--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert caught.value.code in (0, None)
    for name in (*leaves(System()), *leaves(Door())):
        assert f" --{name.replace('-', '_')} " in text
    for part in (
        "Train a system.",
        "--config STR FILE[:VARIANT] of the config. (default: here.py)",
        "The network. (Net)",
        "--model.depth INT Number of layers. (default: 2)",
        "--train.seed INT Seed of the random numbers. (default: 0)",
        "--train.clip {None}|FLOAT Largest norm of the gradient. (default: None)",
        "--train.warm {True,False} Whether the rate rises at the start. (default: False)",
        "--train.schedule {cosine,constant} Shape of the learning rate. (default: cosine)",
        "--rival {fixed} Another player. (fixed to: None)",
    ):
        assert part in text
    assert "model.name" not in text and "parent" not in text


def test_help_of_another_variant_shows_its_defaults(file, capsys):
    with pytest.raises(SystemExit):
        C.parse_with_config(["--help", "--config", f"{file}:medium"], Door())
    assert "(default: 6)" in capsys.readouterr().out


def test_bad_input_ends_a_program_with_one_line_and_code_2():
    program = (
        "from genjax import config; from genjax.errors import InputError\n"
        "def main(argv): raise InputError(f'no {argv[0]}')\n"
        "config.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program, "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no x\n")
