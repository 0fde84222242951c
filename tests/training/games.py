"""Small systems with one player and with two, whose gradients are known: what the laws of the training step run on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from genjax.runs.parts import Parts
from genjax.runs.source import Source
from genjax.training.optimizer import SGD, AdamW
from genjax.training.players import Player
from genjax.training.task import Sums, Task, Train

ROWS = 8


@dataclass(frozen=True)
class Rows:
    """Eight rows of a regression."""

    def source(self, split):
        return [{"index": i} for i in range(ROWS)]


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Squared error of a linear model on noised inputs, weighted by row; it remembers the mean of its inputs."""

    data: Any = Rows()
    train: Train = Train(batch_size=ROWS, steps=1000)
    optimizer: Any = AdamW(learning_rate=1e-2, warmup_steps=0, clip_norm=None)

    def init(self, key):
        return Parts({"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.1)}, {"offset": jnp.float32(0.2)},
                     {"mean": jnp.zeros(3), "steps": jnp.float32(0)})  # fmt: skip

    def prepare(self, example, rng):
        return {name: rows[example["index"]] for name, rows in batch().items()}

    def totals(self, batch):
        return {"weight": batch["weight"].sum()}

    def loss(self, parts, batch, keys, totals):
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        guess = (batch["x"] + 0.1 * noise) @ parts.trained["w"] + parts.trained["b"] + parts.fixed["offset"]
        error = (batch["weight"] * (guess - batch["y"]) ** 2).sum()
        return Sums({"loss": error / totals["weight"]}, {"error": (error, batch["weight"].sum())},
                    {"x": batch["x"].sum(0), "rows": jnp.float32(len(guess))})  # fmt: skip

    def advance(self, parts, statistics):
        mean = 0.9 * parts.variables["mean"] + 0.1 * statistics["x"] / statistics["rows"]
        return {"mean": mean, "steps": parts.variables["steps"] + 1}

    def validate(self, parts):
        return {"validation_loss": float(jnp.square(parts.trained["w"]).sum())}

    def request(self, door):
        return NoPreview()


@dataclass(frozen=True, kw_only=True)
class SecondStage(Regression):
    """A regression on what the weights of a first one leave over, which hold still."""

    first: Source = Source(allow=("tests",))

    def init(self, key):
        parts = super().init(key)
        return parts._replace(fixed={"first": parts.trained, **parts.fixed})

    def sources(self):
        return {"first": self.first}

    def loss(self, parts, batch, keys, totals):
        first = parts.fixed["first"]
        left = batch["y"] - batch["x"] @ first["w"] - first["b"]
        return super().loss(parts, batch | {"y": left}, keys, totals)


@dataclass(frozen=True)
class NoPreview:
    def check(self, task):
        pass

    def __call__(self, task, parts):
        return iter(())


@dataclass(frozen=True, kw_only=True)
class Game(Task):
    """A critic w looks for the direction in which a generator's shift differs from the data; it is on a leash."""

    data: Any = Rows()
    train: Train = Train(batch_size=ROWS, steps=20)
    every: int = 1
    optimizer: Any = SGD(learning_rate=0.05, warmup_steps=0, clip_norm=None)
    critic_optimizer: Any = AdamW(learning_rate=1e-2, warmup_steps=0)
    forward_passes: ClassVar[list] = []

    def init(self, key):
        return Parts({"critic": {"w": jnp.array([0.1, 0.2, -0.3])}, "generator": {"shift": jnp.ones(3)}})

    prepare = Regression.prepare

    def players(self) -> Mapping[str, Player]:
        return {"critic": Player(self.critic_optimizer), "generator": Player(self.optimizer, self.every)}

    def loss(self, parts, batch, keys, totals):
        self.forward_passes.append(1)
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        fake = jnp.tanh(noise) + parts.trained["generator"]["shift"]
        w = parts.trained["critic"]["w"]
        real_score, fake_score = jnp.sin(batch["x"] @ w), jnp.sin(fake @ w)
        leash = len(noise) * jnp.square(w).sum()
        critic = (fake_score - real_score).sum() + leash
        return Sums({"critic": critic / totals["rows"], "generator": -fake_score.sum() / totals["rows"]},
                    {"gap": ((real_score - fake_score).sum(), totals["rows"] * 0 + len(noise))})  # fmt: skip

    def validate(self, parts):
        return {}

    def request(self, door):
        return NoPreview()


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "y": rng.normal(size=ROWS).astype(np.float32),
        "weight": rng.uniform(0.5, 2, ROWS).astype(np.float32),
    }
