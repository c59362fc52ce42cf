"""Compares a candidate with the served version, in pairs and with intervals, and writes a Report.

`stage` reads and writes the store, `run` runs the suites, `suites` has one module each, `comparison` what they share,
`scoring` and `stats` the numbers, `report` the pages. Never trains, never decides (that is `release`).
"""

from afterword.model import openmp

openmp.wait_briefly()  # before torch is loaded
