"""One module per way to compare a candidate with what is served; `SUITES` is the list.

Owns the names. A suite takes a `Comparison` and gives `Findings`; to add one, write its module and a line here, and
its bounds in the gate.
"""

from afterword.evaluate.comparison.comparison import Suite
from afterword.evaluate.suites.calibration import calibration
from afterword.evaluate.suites.collapse import collapse
from afterword.evaluate.suites.earlier_wins import earlier_wins
from afterword.evaluate.suites.forgetting import forgetting
from afterword.evaluate.suites.holdout import holdout
from afterword.evaluate.suites.ifeval import ifeval
from afterword.evaluate.suites.latency import latency
from afterword.evaluate.suites.privacy import privacy
from afterword.evaluate.suites.safety import safety

SUITES: dict[str, Suite] = {
    "holdout": holdout,
    "collapse": collapse,
    "forgetting": forgetting,
    "earlier-wins": earlier_wins,
    "privacy": privacy,
    "safety": safety,
    "calibration": calibration,
    "ifeval": ifeval,
    "latency": latency,
}
"""By name."""
