"""Laws of the command line: what is given is set, what is misspelt or mistyped is refused in one sentence."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from genjax import config as C
from genjax.config.tree import leaves
from genjax.errors import InputError
from tests.config.conftest import HERE, refused
from tests.config.room.densities import Beta2P, Cosine
from tests.config.room.system import Density, Digits, Folder, LogitNormal, Net, Player, System, Train


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
        ("--train x", "--train is chosen by the config file; here one sets --train.seed, "),
        ("--data x", "--data takes one of Digits, Folder, not 'x'"),
        ("--sealed x", "--sealed cannot be set on the command line, only in the config file"),
        ("--rival x", "--rival takes one of Player, None, not 'x'"),
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
        "--sealed {fixed} Not for the command line. (fixed to: None)",
        "--rival {Player,None} Another player. (default: None)",
    ):
        assert part in text
    assert "model.name" not in text and "parent" not in text


def test_help_of_another_variant_shows_its_defaults(file, capsys):
    with pytest.raises(SystemExit):
        C.parse_with_config(["--help", "--config", f"{file}:medium"], Door())
    assert "(default: 6)" in capsys.readouterr().out


# ---- kinds


def test_a_kind_is_chosen_by_name_and_its_fields_are_set_wherever_they_stand(cli):
    given = ["--times.a", "2", "--times", "beta-2p", "--times.inner.std=3", "--times.inner", "LogitNormal"]
    for words in (given, [*given[4:], *given[:4]]):
        assert cli(*words)[1].times == Beta2P(2.0, LogitNormal(std=3.0))
    assert cli("--data", "folder", "--data.root=x")[1].data == Folder("x")
    assert cli("--rival=player", "--rival.rate", "3")[1].rival == Player(3.0)
    assert cli("--rival", "player", "--players.0.rate", "3")[1].rival == Player()
    assert cli("--times", "tests.config.room.densities.Beta2P")[1].times == Beta2P()


def test_the_kind_that_is_there_keeps_its_fields_and_another_has_its_defaults(file):
    file.write_text(CONFIG_FILE.replace("return System()", "return System(times=LogitNormal(5.0), rival=Player(5.0))"))
    file.write_text(file.read_text().replace("import Net", "import LogitNormal, Net, Player"))
    cli = lambda *words: C.parse_with_config(["--config", str(file), *words], Door())[1]  # noqa: E731
    assert cli("--times", "logit_normal", "--times.std", "2").times == LogitNormal(5.0, 2.0)
    assert cli("--times", "Beta2P", "--times.inner", "LogitNormal").times == Beta2P()
    assert cli("--rival", "None").rival is None


def test_a_field_may_take_a_number_or_a_kind(cli, file):
    assert cli("--curve", "2")[1].curve == 2.0
    assert cli("--curve", "cosine", "--curve.period", "3")[1].curve == Cosine(3)
    file.write_text(
        "from tests.config.room.densities import Cosine\n" + CONFIG_FILE.replace("()", "(curve=Cosine())", 2)
    )
    file.write_text(file.read_text().replace("nano(curve=Cosine())", "nano()"))
    assert cli()[1].curve == Cosine()
    assert cli("--curve", "0.5")[1].curve == 0.5
    assert refused(cli, "--curve", "0.5", "--curve.period", "3").startswith("--curve.period is not a field of this")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--times LogitNormall", "--times takes one of Beta2P, Tabulated, Learnt, LogitNormal, not 'LogitNormall' ("),
        ("--times LogitNormall", "; did you mean LogitNormal?"),
        ("--times", "--times needs a value: one of Beta2P, "),
        ("--times LogitNormal x", "not 'LogitNormal x'"),
        ("--times.a 3", "--times.a is not a field of this config, whose times is LogitNormal; --times Beta2P has it"),
        ("--times Beta2P --times.std 3", ", whose times is Beta2P; --times LogitNormal has it"),
        ("--rival.rate 3", "--rival.rate is not a field of this config, whose rival is None; --rival Player has it"),
        ("--data Folder", "--data.root is missing: tests.config.room.system.Folder needs it and has no default for it"),
        ("--times Tabulated --times.path a b", "--times.path takes a string, not 'a b'"),
        ("--times tests.config.room.densities.Nothing", "Nothing is none: it has no log_prob"),
        ("--times tests.config.room.densities.Nobody", "there is no such type"),
        ("--times my_package.Kind", "; name its package with --allow my_package to import it"),
        ("--curve x", "--curve takes a float or one of Cosine, Net, not 'x'"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused_in_one_sentence(cli, words, sentence):
    assert sentence in refused(cli, *words.split())


def test_help_lists_the_kinds_and_the_fields_of_the_one_chosen(cli, capsys):
    def told(*words):
        with pytest.raises(SystemExit):
            cli(*words, "--help")
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    text = told()
    assert "--times {Beta2P,Tabulated,Learnt,LogitNormal} Density of the times. (default: LogitNormal)" in text
    assert "--data {Digits,Folder} What it learns from. (default: Digits)" in text
    assert "--last {Beta2P,Tabulated,Learnt,LogitNormal} A distribution over times. (default: LogitNormal)" in text
    assert "--curve {Cosine,Net,...} A number, or a curve. (default: 1.0)" in text
    assert "--times.mean" in text and "--times.a " not in text
    text = told("--times", "beta2p", "--rival", "player", "--curve", "cosine", "--data", "folder")
    for part in (
        "(default: Beta2P)",
        "--times.a FLOAT Its first parameter. (default: 1.0)",
        "--times.inner {Beta2P,Tabulated,Learnt,LogitNormal} A density inside of it. (default: LogitNormal)",
        "--rival.rate FLOAT Learning rate of the player. (default: 0.001)",
        "--curve.period INT (default: 10)",
        "--data.root STR Where the folder lies. (required)",
    ):
        assert part in text
    assert "--times.mean" not in text and "--data.path" not in text


# ---- two groups


@dataclasses.dataclass(frozen=True)
class Asks:
    """Draw samples."""

    workdir: str = "newest"
    """Run directory."""
    allow: tuple[str, ...] = ()
    """Packages that may be imported."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a run can be asked."""

    num: int = 16
    """Number of samples."""
    times: Density | None = None
    """Density of the times."""
    hidden: int = dataclasses.field(default=0, init=False)
    """Nobody's business."""


def request_of(options):
    if options.workdir == "never":
        raise InputError("there is no run at never")
    return Request(num=len(options.workdir))


def test_a_second_group_of_options_follows_from_the_first():
    parse = lambda *words: C.parse_with(words, Asks(), request_of)  # noqa: E731
    assert parse() == (Asks(), Request(6))
    assert parse("--times.mean=2", "--times", "LogitNormal", "--workdir", "a") == (
        Asks("a"),
        Request(1, LogitNormal(2.0)),
    )
    assert parse("--num", "3")[1] == Request(3)
    assert parse("--times", "tests.config.room.densities.Beta2P")[1].times == Beta2P()
    assert refused(parse, "--nmu", "3") == "--nmu is not an option; did you mean --num?"
    assert refused(parse, "--wrokdir", "3") == "--wrokdir is not an option; did you mean --workdir?"
    assert refused(parse, "--hidden", "3").startswith("--hidden is not an option")
    assert refused(parse, "x") == "'x' is not an option: options are written --name value"
    assert refused(parse, "--workdir", "never", "--num", "3") == "there is no run at never"


def test_the_option_allow_admits_dotted_paths_to_kinds():
    kind = dataclasses.make_dataclass("Elsewhere", [("held", Density, LogitNormal)], frozen=True)
    kind.__module__ = "genjax.elsewhere"  # of a class made here Python 3.12 says that it is of the tests
    second = lambda options: kind(held=None)  # noqa: E731
    words = ["--held", "tests.config.room.densities.Beta2P"]
    assert "only types of genjax are accepted" in refused(C.parse_with, words, Asks(), second)
    options, request = C.parse_with([*words, "--allow", "tests"], Asks(), second)
    assert request.held == Beta2P()
    assert refused(C.parse_with, ["--allow", "../x"], Asks(), request_of) == (
        "--allow takes names of packages, such as my_package, not '../x'"
    )


def test_one_help_tells_both_groups_and_the_first_alone_where_there_is_no_second(capsys):
    with pytest.raises(SystemExit):
        C.parse_with(["--workdir", "abc", "--help", "--times", "LogitNormal"], Asks(), request_of)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in ("Draw samples.", "--workdir STR", "--num INT Number of samples. (default: 3)", "--times.mean FLOAT"):
        assert part in text
    assert "hidden" not in text
    assert refused(C.parse_with, ["--help", "--workdir", "never"], Asks(), request_of) == "there is no run at never"
    assert "--workdir STR" in capsys.readouterr().out


def test_bad_input_ends_a_program_with_one_line_and_code_2():
    program = (
        "from genjax import config; from genjax.errors import InputError\n"
        "def main(argv): raise InputError(f'no {argv[0]}')\n"
        "config.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program, "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no x\n")
