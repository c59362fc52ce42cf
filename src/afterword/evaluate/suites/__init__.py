"""One module per way to compare a candidate with what is served; `SUITES` is the list.

Owns the names. A suite takes a `Comparison` and gives `Findings`; to add one, write its module and a line here, and
its bounds in the gate.
"""

from afterword.evaluate.comparison import Suite
from afterword.evaluate.suites.collapse import collapse
from afterword.evaluate.suites.forgetting import forgetting
from afterword.evaluate.suites.holdout import holdout

SUITES: dict[str, Suite] = {"holdout": holdout, "collapse": collapse, "forgetting": forgetting}
"""By name, in the order in which they run."""
