"""Scores answers: by likelihood, by hindsight, by programs, by a judge."""
