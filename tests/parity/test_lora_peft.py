"""LoRA equals peft's on a linear layer: outputs and gradients, for each kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adapters.lora import LoRA

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

KINDS = {
    "lora": (LoRA(rank=3, alpha=5.0), {}),
    "rank-stabilised": (LoRA(rank=3, alpha=5.0, rank_stabilised=True), dict(use_rslora=True)),
    "dora": (LoRA(rank=3, alpha=5.0, decomposed=True), dict(use_dora=True)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_equal(kind):
    lora, options = KINDS[kind]
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(7, 5))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"], init_lora_weights=False, **options)
    model = peft.get_peft_model(network, config)
    theirs = {name.split("0.", 1)[1]: parameter for name, parameter in model.named_parameters()}
    x = torch.randn(4, 7)
    output = model(x)
    output.square().mean().backward()

    params = {"layer": {"kernel": theirs["base_layer.weight"].detach().numpy().T}}
    names = {"a": "lora_A.default.weight", "b": "lora_B.default.weight"}
    names |= {"magnitude": "lora_magnitude_vector.default.weight"} if lora.decomposed else {}
    adapter = {"layer": {ours: theirs[name].detach().numpy().T for ours, name in names.items()}}
    bias = theirs["base_layer.bias"].detach().numpy()

    def loss(adapter):
        found = x.numpy() @ lora.adapted(params, adapter)["layer"]["kernel"] + bias
        return jnp.square(found).mean(), found

    with jax.default_matmul_precision("highest"):
        gradients, found = jax.grad(loss, has_aux=True)(adapter)
    np.testing.assert_allclose(found, output.detach().numpy(), rtol=0, atol=2e-6)
    for ours, name in names.items():
        np.testing.assert_allclose(gradients["layer"][ours], theirs[name].grad.numpy().T, rtol=0, atol=2e-6)


def test_first_values_have_pefts_spread():
    torch.manual_seed(0)
    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(900, 5)), peft.LoraConfig(r=16, target_modules=["0"])
    )
    (theirs,) = (parameter.detach().numpy() for name, parameter in model.named_parameters() if "lora_A" in name)
    ours = LoRA(rank=16).init(jax.random.key(0), {"layer": {"kernel": np.zeros((900, 5))}})["layer"]["a"]
    np.testing.assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=0.01)
    np.testing.assert_allclose(np.std(ours), np.std(theirs), rtol=0.02)
