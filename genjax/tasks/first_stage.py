"""The first stage of a system of two: a tokeniser that holds still, under what the second stage draws."""

from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Array, Float, Key, PyTree

from genjax import config
from genjax.data import LabelledImages, real
from genjax.data.codes import Codes
from genjax.errors import InputError
from genjax.models.autoencoder import Autoencoder
from genjax.quantisation.posterior import Posterior
from genjax.quantisation.quantiser import Quantiser
from genjax.runs.checkpoints import fingerprint
from genjax.runs.parts import Parts
from genjax.runs.source import Source
from genjax.tasks.tokeniser import Tokeniser
from genjax.training.precision import Precision
from genjax.training.task import Train

__all__ = ["FirstStage"]


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """The run of a tokeniser (configs/vqgan.py, configs/vae.py), and what it is: its run says the same."""

    path: str = ""
    """Its run directory, or the name of one that ships; a .safetensors file of {"trained", "variables"}."""
    model: Autoencoder
    bottleneck: Quantiser | Posterior
    precision: Precision = "fp32"
    """What it computes in, as in its run: codes that are nearly as near as others depend on it."""
    allow: tuple[str, ...] = field(default=(), metadata={"may_change": True})
    """Packages outside genjax that the config of its run may import."""

    def tokeniser(self, data: LabelledImages | Codes) -> Tokeniser:
        """The system that makes codes of the pictures of the data, and pictures of codes."""
        train = Train(precision=self.precision)
        return Tokeniser(model=self.model, bottleneck=self.bottleneck, data=real(data), train=train)

    def source(self, data: LabelledImages | Codes) -> Source:
        """Where its weights come from. Raises InputError where no run is named."""
        if not self.path:
            raise InputError("first_stage.path is the run of a tokeniser (configs/vqgan.py, configs/vae.py)")
        codes = data if isinstance(data, Codes) else None
        return _Run(self.path, allow=self.allow, first_stage=self, codes=codes)

    def init(self, key: Key[Array, ""], data: LabelledImages | Codes) -> PyTree[Array]:
        """Weights of the same names and shapes."""
        return _held(self.tokeniser(data).init(key))

    def parts(self, held: PyTree[Array]) -> Parts:
        """Those of the tokeniser."""
        return Parts({"autoencoder": held["trained"]}, {}, {"quantiser": held.get("variables", {})})

    def vectors(
        self, held: PyTree[Array], batch: dict[str, Array], data: LabelledImages | Codes
    ) -> Float[Array, "B h w D"]:
        """The vectors of a batch of such data: what is on disk, or what the bottleneck sees of its pictures.

        Of a Gaussian posterior its means.
        """
        if "codes" in batch:
            return batch["codes"]
        tokeniser = self.tokeniser(data)
        said = tokeniser.encode(self.parts(held), batch["image"])
        return said if tokeniser.is_discrete else self.bottleneck.mean(said)

    def check_vectors(self, data: LabelledImages | Codes) -> None:
        """Raise InputError where there are no vectors of this data."""
        if isinstance(data, Codes) and self.tokeniser(data).is_discrete:
            kind = type(self.bottleneck).__name__
            raise InputError(f"the codes of data.path are ids of {kind}, and vectors are denoised: take its pictures")

    def check(self, data: LabelledImages | Codes) -> None:
        """Raise InputError where it cannot be the first stage of this data."""
        tokeniser = self.tokeniser(data)
        tokeniser.check()
        if not isinstance(data, Codes):
            return
        size = self.bottleneck.size if tokeniser.is_discrete else 0
        if (data.code_shape, data.size) != (tokeniser.id_shape, size):
            told = (f"{'x'.join(map(str, shape))} {f'ids below {n}' if n else 'numbers'}"
                    for shape, n in ((data.code_shape, data.size), (tokeniser.id_shape, size)))  # fmt: skip
            raise InputError("the codes of data.path are {} each, and first_stage makes {}".format(*told))


def _held(parts: Parts) -> PyTree[Array]:
    """What of a tokeniser codes and pictures depend on."""
    state = parts.variables.get("quantiser", {})
    return {"trained": parts.trained["autoencoder"]} | ({"variables": state} if state else {})


@dataclass(frozen=True)
class _Run(Source):
    """The weights of a first stage, from the run of a tokeniser."""

    first_stage: FirstStage | None = None
    codes: Codes | None = None
    """Codes that it must have written, where some are read from disk."""

    def check(self, tree: PyTree[Array]) -> None:
        if self.codes is None:
            return
        if self.codes.fingerprint != fingerprint((tree["trained"], tree.get("variables", {}))):
            raise InputError(
                f"the codes of data.path were written by another first stage than {self.path}: write them again by"
                " sample.py --codes True"
            )

    def read(self) -> PyTree[Array]:
        held = super().read() if Path(self.path).suffix == ".safetensors" else self._of_run()
        self.check(held)
        return held

    def _of_run(self) -> PyTree[Array]:
        task, parts = self.run()
        if not isinstance(task, Tokeniser):
            kind = type(task).__name__
            raise InputError(f"first_stage.path is the run of a Tokeniser, and {self.path} is one of {kind}")
        for name in ("model", "bottleneck"):
            ours, theirs = getattr(self.first_stage, name), getattr(task, name)
            for where, mine, its in config.differences(ours, theirs):
                if not (type(ours) is type(theirs) and config.may_change(ours, where)):
                    raise InputError(f"first_stage.{name}.{where} is {mine}, and in the run {self.path} it is {its}")
        if task.train.precision != self.first_stage.precision:
            ours, theirs = self.first_stage.precision, task.train.precision
            raise InputError(f"first_stage.precision is {ours}, and the run {self.path} has {theirs}")
        return _held(parts)
