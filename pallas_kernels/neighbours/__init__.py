"""What a transformer computes around attention, in one pass each.

    norm             LayerNorm and RMSNorm with adaLN modulation, after a gated residual
    rotary           qk-norm and rotary embedding of queries and keys
    grouped_matmul   the experts of a mixture, each with its own rows
    cross_entropy    the head of a language model with its loss, without the logits

Each has a plain form (`xla`, on every machine) and all but the last a Triton form, chosen by `implementation.py`, and
every derivative in both modes (see `derivatives.py`, and `recomputed.py` for what is kept).
"""
