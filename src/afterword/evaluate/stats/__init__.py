"""Computes intervals, tests, sample sizes and interim looks over paired scores."""
