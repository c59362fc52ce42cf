"""One module per suite of `afterword.metrics.SUITES`; `SUITES` here is name -> function.

A suite takes a `Comparison` and gives `Findings`. Its module and its function have its name, "-" read as "_".
docs/evaluation.md says how to add one.
"""

from importlib import import_module

from afterword import metrics
from afterword.evaluate.comparison.comparison import Suite


def _function(suite: str) -> Suite:
    name = suite.replace("-", "_")
    function: Suite = getattr(import_module(f"{__name__}.{name}"), name)
    return function


SUITES: dict[str, Suite] = {suite: _function(suite) for suite in metrics.SUITES}
"""By name, in the order of the table."""
