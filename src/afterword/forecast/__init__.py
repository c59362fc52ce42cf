"""Predicts the gain of a training from the gap between a student and its self-teacher, before any training.

`gap` measures, `calibration` fits gain = a + b * gap to real trainings, `predict` decides whether to train, and with
which context. After arXiv 2605.30070, with held-out errors, intervals and controls. See docs/forecast.md.
"""
