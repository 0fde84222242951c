"""Language models of bytes, on the source of Python's standard library (or --data.path: a file, a folder, JSON lines).

nano        a decoder in Llama's form with 2.5 M parameters; below gzip's bits per byte in ten minutes on two CPU cores
"""

from genjax.data import Text
from genjax.models.decoder import Decoder
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.language_model import LanguageModel
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def nano() -> LanguageModel:
    return LanguageModel(
        model=Decoder(vocabulary=257, width=192, depth=4, num_heads=6, num_kv_heads=2, head_dim=32, mlp_width=512,
                      tie_embeddings=True),
        data=Text(length=256),
        optimizer=AdamW(learning_rate=3e-3, warmup_steps=50, decay="cosine", final_fraction=0.05, weight_decay=0.1,
                        b2=0.98),
        train=Train(steps=1500, batch_size=16, ema_decay=0.99, data_threads=0),
        checkpoint=Checkpoint(every=250),
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
