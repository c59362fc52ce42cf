"""Report -> verdict (pure) -> release row; rollback and manifests.

Owns the decision and the pointer to what is served; never measures, never talks to a server, never imports torch.
"""

from afterword.release.gate import GateThresholds, decide, overridden
from afterword.release.manifest import Manifest, check_adapter, read_manifest
from afterword.release.publish import publish, rollback, served_stack, version_of

__all__ = [
    "GateThresholds",
    "Manifest",
    "check_adapter",
    "decide",
    "overridden",
    "publish",
    "read_manifest",
    "rollback",
    "served_stack",
    "version_of",
]
