"""Attention by its definition and in plain JAX: the problem in normal form, masks, schedules, tiles."""
