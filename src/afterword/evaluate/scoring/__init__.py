"""Scores of an answer: likelihood, hindsight, checks, judges, text."""
