"""Quantisation: vectors become one of finitely many codes, and the gradient finds its way through the choice."""
