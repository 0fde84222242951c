"""How much of the exact Wasserstein distance do critics prove? Penalties, clipping and spectral norm side by side.

    python benchmarks/critic_duality.py                   --steps 2000 --seed 0

On fixed points in the plane, two problems of 64 + 64, W1 is known: by assignment, by its dual linear program, and from
above by Sinkhorn. Each critic is trained on all of them at once and judged by what it proves (`transport.lower_bound`):
its mean difference, divided by its steepest slope between any two of the 128 points. By duality that is never more than
W1, whatever the critic; docs/duality.md explains, and keeps the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import side_by_side as sbs
import tyro
from flax.linen import meta

from genjax.adversarial import transport
from genjax.adversarial.constraints import Constraint, SpectralNorm, Unconstrained, WeightClipping, projected_updates
from genjax.adversarial.objectives import Wasserstein
from genjax.adversarial.penalties import GradientPenalty, LipschitzPenalty, NoPenalty, Penalty
from genjax.models.critics import MLPCritic


@dataclass(frozen=True)
class Duality:
    """Which points, and how long critics learn."""

    points: int = 64
    """Points of either kind."""
    steps: int = 2000
    """Updates of each critic, each on all points."""
    learning_rate: float = 1e-3
    """Adam's at the start; it falls to 0 by a cosine."""
    epsilons: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Entropy of Sinkhorn, in units of distance."""
    seed: int = 0


class Critic(NamedTuple):
    """What bounds its slope, and between which points a penalty looks."""

    penalty: Penalty = NoPenalty()
    constraint: Constraint = Unconstrained()
    along_plan: bool = False
    """Each point with its partner of the cheapest plan, and not with another at each step."""


CRITICS = {
    "gradient penalty, 10": Critic(GradientPenalty(10.0)),
    "gradient penalty, 10, along the plan": Critic(GradientPenalty(10.0), along_plan=True),
    "gradient penalty, 100": Critic(GradientPenalty(100.0)),
    "Lipschitz penalty, 10": Critic(LipschitzPenalty(10.0)),
    "Lipschitz penalty, 100": Critic(LipschitzPenalty(100.0)),
    "weight clipping, 0.01": Critic(constraint=WeightClipping(0.01)),
    "weight clipping, 0.1": Critic(constraint=WeightClipping(0.1)),
    "spectral norm": Critic(constraint=SpectralNorm()),
}


def ring(points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Eight small Gaussians on a circle, and a standard one amid them: neighbours are moved in different directions."""
    angles = 2 * np.pi * (np.arange(points) % 8) / 8
    circle = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return circle + 0.1 * rng.normal(size=(points, 2)), rng.normal(size=(points, 2))


def moons(points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two half circles that reach into each other."""
    s, t = np.pi * rng.uniform(size=(2, points))
    upper, lower = np.stack([np.cos(s), np.sin(s)], axis=1), np.stack([1 - np.cos(t), 0.5 - np.sin(t)], axis=1)
    return upper + 0.1 * rng.normal(size=(points, 2)), lower + 0.1 * rng.normal(size=(points, 2))


def trained(real: np.ndarray, fake: np.ndarray, critic: Critic, config: Duality) -> Callable[[np.ndarray], np.ndarray]:
    """A critic after `steps` updates that raise its mean difference, less the penalty, under the constraint.

    A penalty along the plan takes real[i] and fake[i] for partners.
    """
    penalty, constraint, along_plan = critic
    model = MLPCritic(width=128, depth=3)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.chain(optax.adam(schedule, b1=0.5, b2=0.9), projected_updates(constraint.project))
    first, second = jax.random.split(jax.random.key(config.seed))

    def scores(params, state, x):
        return model.apply({"params": constraint.applied(params, state)}, x)

    def loss(params, state, fake, keys):
        judge = partial(scores, params, state)
        paid = penalty(judge, real, fake, keys)
        return jnp.mean(Wasserstein().critic(judge(real), judge(fake)) + paid)

    def step(carry, key):
        params, state, memory = carry
        order, *keys = jax.random.split(key, len(real) + 1)
        # With another partner for each point at each step a penalty looks along all lines between the sets.
        partners = fake if along_plan else jax.random.permutation(order, fake)
        gradients = jax.grad(loss)(params, state, partners, jnp.stack(keys))
        updates, memory = optimizer.update(gradients, memory, params)
        params = optax.apply_updates(params, updates)
        return (params, constraint.advance(params, state), memory), None

    @jax.jit
    def train(key):
        params = constraint.project(meta.unbox(model.init(first, real))["params"])
        start = (params, constraint.initial(params, first), optimizer.init(params))
        (params, state, _), _ = jax.lax.scan(step, start, jax.random.split(key, config.steps))
        return params, state

    params, state = train(second)
    return lambda x: np.asarray(scores(params, state, x))


def proved(real: np.ndarray, fake: np.ndarray, critic: Critic, config: Duality) -> float:
    scores = trained(real, fake, critic, config)
    return transport.lower_bound(scores(real), scores(fake), real, fake)


def values(real: np.ndarray, fake: np.ndarray, config: Duality) -> dict[str, float]:
    """W1 of the two sets by name of the way it was found."""
    costs = transport.distances(real, fake)
    found = {"assignment": transport.assignment(costs).cost, "dual linear program": transport.dual(costs).value}
    for epsilon in config.epsilons:
        found[f"Sinkhorn, {epsilon}"] = float(jax.jit(transport.sinkhorn)(jnp.float32(costs), epsilon).transport)
    paired = fake[transport.assignment(costs).partner]
    for name, critic in CRITICS.items():
        found[name] = proved(real, paired if critic.along_plan else fake, critic, config)
    return found


def main(config: Duality) -> None:
    by_problem = {}
    for problem in (ring, moons):
        real, fake = problem(config.points, np.random.default_rng(config.seed))
        by_problem[problem.__name__] = values(np.float32(real), np.float32(fake), config)
    columns, rows = ["W1 by"], []
    for problem in by_problem:
        columns += [problem, "of exact"]
    for name in by_problem["ring"]:
        cells = [[f"{found[name]:.4f}", f"{found[name] / found['assignment']:.3f}"] for found in by_problem.values()]
        rows.append([name, *sum(cells, [])])
    sbs.print_table(f"{config.points} + {config.points} points, critics of {config.steps} steps", columns, rows)
    rounded = {problem: {k: round(v, 5) for k, v in found.items()} for problem, found in by_problem.items()}
    sbs.print_result(**rounded, points=config.points, steps=config.steps, seed=config.seed)


if __name__ == "__main__":
    main(tyro.cli(Duality, description=__doc__))
