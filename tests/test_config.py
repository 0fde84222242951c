"""Laws of configs: what is saved comes back, what is misspelt or mistyped is refused in one sentence."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genjax import config as C
from genjax.config.tree import leaves
from genjax.errors import InputError

HERE = (f"{__name__}.", "genjax.")


class Net(nn.Module):
    """A network."""

    depth: int
    """Number of layers."""
    width: int = 8
    """Channels of a layer."""
    kernel: tuple[int, int] = (3, 3)
    """Height and width of the kernels."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


@dataclasses.dataclass(frozen=True)
class Base:
    seed: int = 0
    """Seed of the random numbers."""


class Density(Protocol):
    def log_prob(self, t): ...


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(n), n normal."""

    mean: float = 0
    """Mean of n."""
    std: float = 1.0
    """Standard deviation of n."""

    def __post_init__(self):
        if self.std <= 0:
            raise InputError(f"LogitNormal takes a positive std, not {self.std}")

    def log_prob(self, t):
        return t


@dataclasses.dataclass(frozen=True)
class Player:
    rate: float = 1e-3
    """Learning rate of the player."""


@dataclasses.dataclass(frozen=True)
class Digits:
    path: str = "digits"
    """Where the pictures lie."""
    mixture: dict[str, float] = dataclasses.field(default_factory=lambda: {"train": 1.0, "extra-set": 0.5})
    """Weight of each part."""


@dataclasses.dataclass(frozen=True)
class Folder:
    root: str
    """Where the folder lies."""


@dataclasses.dataclass(frozen=True)
class Train(Base):
    steps: int = 3
    """Number of updates."""
    batch_size: int = 4
    """Rows of a batch."""
    clip: float | None = None
    """Largest norm of the gradient."""
    warm: bool = False
    """Whether the rate rises
    at the start."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay rates of the moments."""


@dataclasses.dataclass(frozen=True)
class System:
    """A small system."""

    model: nn.Module = Net(depth=2)
    """The network."""
    times: Density = LogitNormal()
    """Density of the times."""
    data: Digits | Folder = dataclasses.field(default_factory=Digits)
    """What it learns from."""
    players: tuple[Player, ...] = (Player(), Player(2e-3))
    """Who plays."""
    rival: Player | None = None
    """Another player."""
    train: Train = Train()
    """How it learns."""
    anything: Any = 1
    """Anything."""


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
from {__name__} import Net, System

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


def refused(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def through_json(config):
    return C.from_dict(json.loads(json.dumps(C.to_dict(config), allow_nan=False)), allow=HERE)


# ---- JSON


finite = st.floats(allow_nan=False, allow_infinity=False)
trains = st.builds(
    Train,
    steps=st.integers(),
    clip=st.none() | finite,
    warm=st.booleans(),
    schedule=st.sampled_from(["cosine", "constant"]),
    betas=st.lists(finite).map(tuple),
)
keys = st.text().filter(lambda key: key != "type")
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=5,
)
systems = st.builds(
    System,
    model=st.builds(Net, depth=st.integers(), kernel=st.tuples(st.integers(), st.integers())),
    times=st.builds(LogitNormal, mean=finite, std=st.floats(0.1, 9)),
    data=st.builds(Digits, path=st.text(), mixture=st.dictionaries(keys, finite)) | st.builds(Folder, root=st.text()),
    players=st.lists(st.builds(Player, rate=finite)).map(tuple),
    rival=st.none() | st.builds(Player, rate=finite),
    train=trains,
    anything=plain | trains,
)


@given(systems)
def test_a_config_comes_back_from_json(config):
    again = through_json(config)
    assert C.to_dict(again) == C.to_dict(config)
    assert C.differences(again, config) == []
    assert (again.train, again.data, again.players, again.anything) == (
        config.train,
        config.data,
        config.players,
        config.anything,
    )


def test_a_rebuilt_network_is_the_same_network(tmp_path):
    C.save(System(), tmp_path / "run" / "config.json", allow=HERE)
    again = C.read(tmp_path / "run" / "config.json", allow=HERE)
    assert again.model == Net(depth=2) and hash(again.model) == hash(Net(depth=2))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_parent_and_name_of_a_linen_module_are_not_part_of_it():
    assert C.to_dict(Net(depth=2, name="x")) == C.to_dict(Net(depth=2))
    assert C.to_dict(Net(depth=2)) == {"type": f"{__name__}.Net", "depth": 2, "width": 8, "kernel": [3, 3]}


def test_an_int_is_a_float_but_a_float_is_no_int_and_a_bool_is_no_number():
    data = C.to_dict(System())
    data["times"]["mean"] = 2
    assert isinstance(C.from_dict(data, allow=HERE).times.mean, float)
    for value in (2.0, True, "2", None, [2]):
        data["train"]["steps"] = value
        assert refused(C.from_dict, data, allow=HERE).startswith("train.steps takes an int, not ")


def test_only_dataclasses_of_accepted_modules_are_built():
    for name in (f"{__name__}.Train", "subprocess.Popen", "os.system", 3):
        assert "only types of genjax are accepted" in refused(C.from_dict, {"type": name})
    for name in ("genjax.errors.InputError", "genjax.config.tree.dataclasses", "genjax.config.tree.Value"):
        assert "it is not a dataclass of an accepted module" in refused(C.from_dict, {"type": name})
    for name in ("genjax.errors.Nothing", "genjax.nowhere.Nothing", "genjax."):
        assert "there is no such type" in refused(C.from_dict, {"type": name})
    assert "with a 'type'" in refused(C.from_dict, {})
    inner = C.to_dict(System()) | {"model": {"type": "os.system"}}
    assert refused(C.from_dict, inner, allow=HERE).startswith("model cannot be of type 'os.system'")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("train.stesp", 3, f"train.stesp is not a field of {__name__}.Train; did you mean steps?"),
        ("train.zzz", 3, f"train.zzz is not a field of {__name__}.Train; it has seed, steps, batch_size, "),
        ("train.schedule", "cosin", "train.schedule takes one of cosine, constant, not 'cosin'; did you mean cosine?"),
        ("train.clip", "big", "train.clip takes a float or None, not 'big'"),
        ("train.clip", float("inf"), "train.clip takes a finite float, not inf"),
        ("train.betas", [0.9, "x"], "train.betas.1 takes a float, not 'x'"),
        ("train.betas", 0.9, "train.betas takes any number of values (a float each), not 0.9"),
        ("model.kernel", [1, 2, 3], "model.kernel takes an int and an int, not (1, 2, 3)"),
        ("data.mixture", {"a": "b"}, "data.mixture.a takes a float, not 'b'"),
        ("data", 3, "data takes a Digits or a Folder, not 3"),
        ("data", C.to_dict(Player()), "data takes a Digits or a Folder, not a Player"),
        ("times.std", -1, "LogitNormal takes a positive std, not -1.0"),
    ],
)
def test_a_recorded_field_that_does_not_fit_is_refused(path, value, sentence):
    data = C.to_dict(System())
    *nodes, last = path.split(".")
    functools.reduce(lambda node, key: node[key], nodes, data)[last] = value
    assert refused(C.from_dict, data, allow=HERE).startswith(sentence)


def test_a_missing_field_takes_its_default_or_is_refused():
    name = f"{__name__}.Net"
    assert C.from_dict({"type": name, "depth": 1}, allow=HERE) == Net(depth=1)
    assert refused(C.from_dict, {"type": name}, allow=HERE) == (
        f"depth is missing: {name} needs it and has no default for it"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), jnp.float32, [1], {1: 2}, {"type": 1}, len])
def test_what_json_cannot_hold_is_refused(value):
    assert refused(C.to_dict, System(anything=value)).startswith("anything cannot be recorded: ")


def test_what_cannot_be_read_is_not_saved(tmp_path):
    assert "only types of genjax" in refused(C.save, System(), tmp_path / "config.json")
    assert "train.steps takes an int" in refused(
        C.save, System(train=Train(steps="3")), tmp_path / "c.json", allow=HERE
    )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_file_is_named(tmp_path):
    path = tmp_path / "config.json"
    assert str(path) in refused(C.read, path)
    for text in ("", '{"type": "gen', "[]", "\xff", '{"type": "os.system"}'):
        path.write_bytes(text.encode("latin-1"))
        assert str(path) in refused(C.read, path)


def test_differences_name_each_leaf_that_differs_and_each_type():
    a, b = System(), System(train=Train(steps=5, betas=(0.9,)), data=Folder("x"), players=(Player(), Player(1.0)))
    assert C.differences(a, b) == [
        ("data", f"{__name__}.Digits", f"{__name__}.Folder"),
        ("players.1.rate", 2e-3, 1.0),
        ("train.steps", 3, 5),
        ("train.betas", [0.9, 0.95], [0.9]),
    ]
    assert C.differences(a, Train()) == [("type", f"{__name__}.System", f"{__name__}.Train")]


# ---- override


def test_override_replaces_values_and_whole_parts():
    changes = {"train.clip": 1, "players.1.rate": 5.0, "data.mixture.extra-set": 2, "model": Net(depth=9)}
    new = C.override(System(), changes)
    assert C.differences(System(), new) == [
        ("model.depth", 2, 9),
        ("data.mixture.extra-set", 0.5, 2.0),
        ("players.1.rate", 2e-3, 5.0),
        ("train.clip", None, 1.0),
    ]
    assert new.times is System().times


def test_a_list_becomes_a_tuple_and_anything_else_that_does_not_fit_is_refused():
    assert C.override(System(), {"train.betas": [1, 0.5]}).train.betas == (1.0, 0.5)
    assert refused(C.override, System(), {"train.steps": jnp.ones((3, 3))}).startswith(
        "train.steps takes an int, not a"
    )


def test_a_door_and_a_config_may_not_share_a_name(file):
    @dataclasses.dataclass(frozen=True)
    class Clash(Door):
        anything: int = 0

    with pytest.raises(TypeError, match="anything"):
        C.parse_with_config(["--config", str(file)], Clash())


def test_override_refuses_unknown_names_and_wrong_types():
    assert refused(C.override, System(), {"train.stesp": 3}).endswith("; did you mean train.steps?")
    assert refused(C.override, System(), {"steps": 3}).endswith("; did you mean train.steps?")
    assert refused(C.override, System(), {"train": Player()}) == "train takes a Train, not a Player"
    assert refused(C.override, System(), {"times.std": 0}) == "LogitNormal takes a positive std, not 0.0"


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
