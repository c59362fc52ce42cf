"""The append-only database: schema, migrations, one writer, named queries, lineage.

Owns every byte that must survive a crash; never interprets feedback, never calls a stage, never updates a row.
"""

from afterword.store.store import Store, TrailTurn
from afterword.store.writer import Outcome

__all__ = ["Outcome", "Store", "TrailTurn"]
