"""Measures a training run: metrics, alerts and early stopping."""
