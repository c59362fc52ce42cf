"""A candidate against what is served, in pairs, with intervals: the Report, and its page.

Owns measuring; never trains, never decides (that is `release`). `stage` reads and writes the store, `run` measures,
`suites` is what is measured, `report_html` shows it.
"""

from afterword.model import openmp

openmp.wait_briefly()  # before torch is loaded
