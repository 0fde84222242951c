"""One training step of the nano SD3 system, genjax against torch: the whole of it, as people train it.

    python benchmarks/train_step.py                 --batch-size 64 --rounds 20

Ours is `genjax.training.update.make_update` of `configs/sd3.py`: text encoder, times and noise, forward, backward,
clipping, AdamW with its schedule, the average of the parameters. torch does the same, eager and by torch.compile, each
in the fastest of its own ways that we found: fused AdamW (on a CPU it beats the foreach and the plain one), foreach
clipping and average, gradients set to None. All start from the same weights; with the times and the noise that ours
drew, the first losses are checked to agree before any time is taken. The second table says where the time goes. Measure
on an idle machine: other load does not hit the thread pools alike.
"""

import copy
import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sd3_networks as sd3
import side_by_side as sbs
import torch
import tyro

from genjax.data import Loader
from genjax.keys import row_keys
from genjax.nn.attention import attention
from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.tasks.text_to_image import TextToImage
from genjax.training.ema import ema_decay, update_ema
from genjax.training.state import TrainState, initial_state
from genjax.training.update import make_update


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    batch_size: int = 64
    rounds: int = 20
    """Turns that each side takes, of 5 steps each."""
    first_losses: int = 5
    """How many losses are checked to agree."""


class Ours:
    """The step of genjax and its pieces; every method returns when the device is done."""

    def __init__(self, task: TextToImage, trained: dict, batch: dict):
        mesh = task.mesh.build()
        state = initial_state(task, jax.random.key(0))
        state = state._replace(parts=state.parts._replace(trained=trained), ema=jax.tree.map(np.copy, trained))
        self.state: TrainState = jax.device_put(state, replicated(mesh))
        self.batch = shard_batch(batch, mesh)
        self.update = make_update(task, mesh)
        self.told = None

        optimizer = task.optimizer.build(task.train.steps)

        def loss(trained, batch):
            keys = row_keys(0, jnp.arange(task.train.batch_size))
            return task.loss(state.parts._replace(trained=trained), batch, keys, task.totals(batch)).losses["loss"]

        def optimise(trained, moments, ema, updates, gradient):
            steps, moments = optimizer.update(gradient, moments, trained)
            trained = optax.apply_updates(trained, steps)
            return trained, moments, update_ema(ema, trained, ema_decay(updates, task.train.ema_decay)), updates + 1

        self.loss, self.gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
        self.optimise = jax.jit(optimise, donate_argnums=(0, 1, 2))
        self.trained = jax.device_put(jax.tree.map(np.copy, trained))
        _, self.of_loss = self.gradient(self.trained, self.batch)
        copies = jax.tree.map(jnp.copy, (self.trained, optimizer.init(self.trained), self.trained))
        self.moving = (*copies, jnp.zeros((), jnp.int32))
        heads = (task.model.num_heads, task.model.head_dim)
        tokens = sd3.TEXT_TOKENS + sd3.IMAGE[0] * sd3.IMAGE[1] // task.model.patch_size**2
        self.qkv = jax.random.normal(jax.random.key(0), (3, task.train.batch_size, tokens, *heads))
        self.attention_gradient = jax.jit(jax.grad(lambda qkv: attention(*qkv).sum()))
        self.depth = task.model.depth

    def step(self) -> float:
        self.state, told = jax.block_until_ready(self.update(self.state, self.batch))
        return float(told.means["loss"][0])

    def forward(self):
        jax.block_until_ready(self.loss(self.trained, self.batch))

    def forward_and_backward(self):
        jax.block_until_ready(self.gradient(self.trained, self.batch))

    def optimiser(self):
        self.moving = jax.block_until_ready(self.optimise(*self.moving, self.of_loss))

    def attentions(self):
        for _ in range(self.depth):
            jax.block_until_ready(self.attention_gradient(self.qkv))


class Theirs:
    """The same in torch."""

    def __init__(self, task: TextToImage, network, text, batch: dict, *, compiled: bool):
        self.task = task
        self.network, self.text = copy.deepcopy(network), copy.deepcopy(text)
        named = [*self.network.named_parameters(), *self.text.named_parameters()]
        self.parameters = [parameter for _, parameter in named]
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        matrices = [parameter for name, parameter in named if parameter.ndim > 1 and name != "positions"]
        vectors = [parameter for name, parameter in named if parameter.ndim == 1 or name == "positions"]
        decay = task.optimizer.weight_decay
        self.adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(task.optimizer.b1, task.optimizer.b2),
            eps=task.optimizer.eps,
            fused=True,
        )
        self.rates = np.asarray(task.optimizer.schedule(task.train.steps)(np.arange(task.train.steps))).tolist()
        self.images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous()
        self.tokens = torch.from_numpy(batch["tokens"])
        self.empty = torch.from_numpy(task.tokenize([""]))
        self.updates = 0
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _draws(self) -> tuple[torch.Tensor, ...]:
        rows = len(self.images)
        t = torch.sigmoid(self.task.times.mean + self.task.times.std * torch.randn(rows))
        return t, torch.randn_like(self.images), torch.rand(rows) < self.task.caption_dropout

    def _loss(self, t, eps, dropped) -> torch.Tensor:
        context, pooled = self.text(torch.where(dropped[:, None], self.empty, self.tokens))
        along = t[:, None, None, None]
        x_t = (1 - along) * self.images + along * eps
        velocity = sd3.run_reference(self.network, x_t, t, context, pooled)
        return (velocity - (eps - self.images)).square().mean()

    def forward(self, draws: tuple | None = None) -> torch.Tensor:
        return self.loss(*(draws or self._draws()))

    def forward_and_backward(self, draws: tuple | None = None) -> torch.Tensor:
        self.adamw.zero_grad(set_to_none=True)
        value = self.forward(draws)
        value.backward()
        return value

    def optimiser(self):
        for group in self.adamw.param_groups:
            group["lr"] = self.rates[min(self.updates, len(self.rates) - 1)]
        torch.nn.utils.clip_grad_norm_(self.parameters, self.task.optimizer.clip_norm, foreach=True)
        self.adamw.step()
        decay = min(self.task.train.ema_decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - decay)
        self.updates += 1

    def step(self, draws: tuple | None = None) -> float:
        value = self.forward_and_backward(draws)
        self.optimiser()
        return value.item()


def draws_of_ours(task: TextToImage, step: int) -> tuple[torch.Tensor, ...]:
    """Times, noise and dropped captions of a step, as the loss of the task draws them, in torch's layout."""
    step_key = jax.random.fold_in(jax.random.key(task.train.seed), step)
    keys = jax.vmap(functools.partial(jax.random.split, num=3))(row_keys(step_key, jnp.arange(task.train.batch_size)))
    t = task.times.quantile(jax.vmap(jax.random.uniform)(keys[:, 0]), task.process)
    eps = jax.vmap(lambda key: jax.random.normal(key, sd3.IMAGE))(keys[:, 1])
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, task.caption_dropout))(keys[:, 2])
    return tuple(torch.from_numpy(np.array(x)) for x in (t, jnp.moveaxis(eps, -1, 1), dropped))


def main(options: Options) -> None:
    task = replace(sd3.SYSTEM, mesh=Mesh(data=1), train=replace(sd3.SYSTEM.train, batch_size=options.batch_size))
    _, params, network = sd3.networks()
    text_params, text = sd3.text_encoders()
    loader = Loader(task.data.source("train"), batch_size=options.batch_size, seed=0, transform=task.prepare, threads=0)
    batch = next(loader)
    ours = Ours(task, {"model": params, "text": text_params}, batch)
    sides = {"ours": ours}
    for name, compiled in (("eager torch", False), ("compiled torch", True)):
        sides[name] = Theirs(task, network, text, batch, compiled=compiled)

    first = range(options.first_losses)
    losses = [ours.step() for _ in first]
    for name in ("eager torch", "compiled torch"):
        theirs = [sides[name].step(draws_of_ours(task, step)) for step in first]
        np.testing.assert_allclose(losses, theirs, rtol=1e-4, err_msg=f"the losses of ours and of {name}")
    sbs.console.print(f"First {len(losses)} losses of all: {', '.join(f'{x:.4f}' for x in losses)}")

    time = functools.partial(sbs.medians, options.rounds, 5)
    steps = time(**{name: side.step for name, side in sides.items()})
    ratios = {name: steps[name] / steps["ours"] for name in sides}
    count = sum(leaf.size for leaf in jax.tree.leaves(ours.trained))
    sbs.print_table(
        f"Training step, batch {options.batch_size}, {count:,} parameters",
        ["", "median ms", "steps/s", "over ours"],
        [[name, 1e3 * seconds, 1 / seconds, ratios[name]] for name, seconds in steps.items()],
    )

    parts = {part: time(**{name: getattr(side, part) for name, side in sides.items()}) for part in PARTS}
    both, forward = parts.pop("forward_and_backward"), parts["forward"]
    parts["backward"] = {name: both[name] - forward[name] for name in sides}
    parts["attentions"] = time(ours=ours.attentions)
    split = {label: {name: 1e3 * seconds for name, seconds in parts[part].items()} for part, label in SHOWN.items()}
    rows = [[label, *(row.get(name, "") for name in sides)] for label, row in split.items()]
    sbs.print_table("Where the time goes, each part measured alone", ["", *(f"{name} ms" for name in sides)], rows)
    sbs.print_result(
        benchmark="train_step",
        ratio_eager=ratios["eager torch"],
        ratio_compiled=ratios["compiled torch"],
        ms={name: round(1e3 * seconds, 3) for name, seconds in steps.items()},
        parts_ms={label: {name: round(ms, 3) for name, ms in row.items()} for label, row in split.items()},
        batch_size=options.batch_size,
    )


PARTS = ("forward", "forward_and_backward", "optimiser")
SHOWN = {
    "forward": "text, noise, forward and loss",
    "backward": "backward",
    "optimiser": "clipping, AdamW and average",
    "attentions": "of which attention cores, forward and backward",
}


if __name__ == "__main__":
    main(tyro.cli(Options))
