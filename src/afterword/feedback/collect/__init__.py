"""Turns and feedback -> interactions or skips: the kinds, the decisions, the workers."""
