"""One training step of the nano SD3 network, genjax against torch: forward, backward, clipping, AdamW and EMA.

    python benchmarks/train_step.py                 --batch-size 64 --rounds 20
    python benchmarks/train_step.py --compile       torch.compile instead of eager torch

genjax runs one jitted step with donated state. torch runs the fastest of its own ways that we found: fused AdamW (on a
CPU it beats the foreach and the plain one), foreach clipping and EMA, gradients set to None. Both start from the same
weights; outputs and the first losses are checked to agree before any time is taken. The second table says where the
time goes. Measure on an idle machine: other load does not hit the two thread pools alike.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sd3_networks as sd3
import side_by_side as sbs
import torch
import tyro

from genjax.nn.attention import attention


@dataclass(frozen=True)
class Training:
    """What one step does on both sides."""

    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    rounds: int = 20
    """Turns that each side takes, of 5 steps each."""
    compile: bool = False
    """Compile the torch network with torch.compile."""


class Ours:
    """The step of genjax and its pieces; every method returns when the device is done."""

    def __init__(self, model, params, batch, target, config: Training):
        adamw = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        transform = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

        def loss(params, batch, target):
            return jnp.square(model.apply({"params": params}, **batch) - target).mean()

        def optimise(state, gradients):
            params, moments, ema = state
            updates, moments = transform.update(gradients, moments, params)
            params = optax.apply_updates(params, updates)
            return params, moments, optax.incremental_update(params, ema, 1 - config.ema_decay)

        def step(state, batch, target):
            value, gradients = jax.value_and_grad(loss)(state[0], batch, target)
            return optimise(state, gradients), value

        self.batch, self.target = jax.device_put((batch, target))
        self.state = jax.device_put((params, transform.init(params), jax.tree.map(np.copy, params)))
        self.loss, self.gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
        self.optimise_state = jax.jit(optimise, donate_argnums=0)
        self.whole_step = jax.jit(step, donate_argnums=0)
        self.gradients = self.gradient(self.state[0], self.batch, self.target)[1]
        width = (config.batch_size, self.tokens(), model.num_heads, model.head_dim)
        self.qkv = jax.random.normal(jax.random.key(0), (3, *width))
        self.attention_gradient = jax.jit(jax.grad(lambda qkv: attention(*qkv).sum()))

    def tokens(self) -> int:
        return sd3.TEXT_TOKENS + sd3.IMAGE[0] * sd3.IMAGE[1] // sd3.SYSTEM.model.patch_size**2

    def step(self) -> float:
        self.state, value = self.whole_step(self.state, self.batch, self.target)
        return float(jax.block_until_ready((self.state, value))[1])

    def forward(self):
        jax.block_until_ready(self.loss(self.state[0], self.batch, self.target))

    def forward_and_backward(self):
        jax.block_until_ready(self.gradient(self.state[0], self.batch, self.target))

    def optimiser(self):
        self.state = jax.block_until_ready(self.optimise_state(self.state, self.gradients))

    def attentions(self):
        for _ in range(sd3.SYSTEM.model.depth):
            jax.block_until_ready(self.attention_gradient(self.qkv))


class Theirs:
    """The same in torch."""

    def __init__(self, network, batch, target, config: Training):
        self.network = torch.compile(network) if config.compile else network
        self.parameters = list(network.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.batch = sd3.as_torch(batch)
        self.target = torch.from_numpy(target).permute(0, 3, 1, 2).contiguous()
        self.config = config

    def forward(self) -> torch.Tensor:
        return (sd3.run_reference(self.network, **self.batch) - self.target).square().mean()

    def forward_and_backward(self) -> torch.Tensor:
        self.adamw.zero_grad(set_to_none=True)
        value = self.forward()
        value.backward()
        return value

    def optimiser(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm, foreach=True)
        self.adamw.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - self.config.ema_decay)

    def step(self) -> float:
        value = self.forward_and_backward()
        self.optimiser()
        return value.item()


def main(config: Training) -> None:
    model, params, reference = sd3.networks()
    batch = sd3.random_batch(config.batch_size)
    target = np.random.default_rng(2).normal(size=batch["x_t"].shape).astype(np.float32)
    ours = Ours(model, params, batch, target, config)
    theirs = Theirs(reference, batch, target, config)
    np.testing.assert_allclose([ours.step() for _ in range(5)], [theirs.step() for _ in range(5)], rtol=1e-4)

    time = functools.partial(sbs.medians, config.rounds, 5)
    steps = time(ours=ours.step, torch=theirs.step)
    ratio = steps["torch"] / steps["ours"]
    sbs.print_table(
        f"Training step, batch {config.batch_size}, {sum(p.numel() for p in reference.parameters())} parameters",
        ["", "median ms", "steps/s"],
        [[name, 1e3 * seconds, 1 / seconds] for name, seconds in steps.items()],
    )
    sbs.console.print(f"torch / ours = {ratio:.2f}")

    parts = {name: time(ours=getattr(ours, name), torch=getattr(theirs, name)) for name in PARTS}
    parts["backward"] = {
        side: parts["forward_and_backward"][side] - parts["forward"][side] for side in ("ours", "torch")
    }
    parts["attentions"] = time(ours=ours.attentions)
    split = [
        [label, *(1e3 * parts[part][side] if side in parts[part] else "" for side in ("ours", "torch"))]
        for part, label in PARTS_SHOWN.items()
    ]
    sbs.print_table("Where the time goes, each part measured alone", ["", "ours ms", "torch ms"], split)
    sbs.print_result(
        benchmark="train_step",
        ratio=ratio,
        ours_ms=1e3 * steps["ours"],
        torch_ms=1e3 * steps["torch"],
        torch_mode="compile" if config.compile else "eager",
        batch_size=config.batch_size,
        parts_ms={label: [round(x, 3) if x else None for x in row] for label, *row in split},
    )


PARTS = ("forward", "forward_and_backward", "optimiser")
PARTS_SHOWN = {
    "forward": "forward and loss",
    "backward": "backward",
    "optimiser": "clipping, AdamW and EMA",
    "attentions": "of which attention cores, forward and backward",
}


if __name__ == "__main__":
    main(tyro.cli(Training))
