"""Intervals, tests and interim looks over paired scores."""
