"""Representation learning: contrastive objectives and estimators of mutual information, as functions of features."""
