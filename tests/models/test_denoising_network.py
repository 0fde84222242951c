"""Laws of the convention that denoising networks share."""

from genjax.config.kinds import conforms, kinds
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.denoising_network import DenoisingNetwork
from genjax.models.mmdit import MMDiT


def test_networks_that_denoise_are_found_by_name_and_others_are_not():
    assert "MMDiT" in kinds(DenoisingNetwork)
    assert conforms(MMDiT, DenoisingNetwork) and not conforms(ByteEncoder, DenoisingNetwork)
    assert {kind.__module__ for kind in kinds(DenoisingNetwork).values()} == {
        f"genjax.models.{name}" for name in ("mmdit", "dit", "unet")
    }
