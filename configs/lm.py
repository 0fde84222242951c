"""Language models of bytes, on the source of Python's standard library (or --data.path: a file, a folder, JSON lines).

nano    a decoder in Llama's form with 0.96 M parameters: 1.70 bits per byte of modules it has not seen, between gzip's
        1.93 and xz's 1.58, after 12 minutes of one CPU core
"""

from genjax.data import Text
from genjax.models.decoder import Decoder
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.language_model import LanguageModel
from genjax.training.optimizer import Muon
from genjax.training.task import Train


def nano() -> LanguageModel:
    return LanguageModel(
        model=Decoder(vocabulary=257, width=128, depth=5, num_heads=2, num_kv_heads=1, head_dim=64, mlp_width=352,
                      tie_embeddings=True, remat="full"),
        data=Text(length=256),
        optimizer=Muon(learning_rate=1e-2, warmup_steps=50, decay="linear", adam_b2=0.98),
        train=Train(steps=1600, batch_size=8, ema_decay=0.98, data_threads=0, validate_every=200, sample_every=400),
        checkpoint=Checkpoint(every=200),
    )  # fmt: skip


VARIANTS = {"nano": nano}

SMOKE = {
    "nano": {
        "train": "--model.width 32 --model.depth 2 --model.num_heads 2 --model.num_kv_heads 1 --model.head_dim 16"
        " --model.mlp_width 64 --data.length 32 --train.batch_size 8",
        "sample": "--prompt def --max_tokens 8 --top_k 5",
        "evaluate": "--rows 4",
    },
}
"""Words that make a variant small enough for the tests of every system, at each door."""
