"""The example conversations of `afterword import --examples`: where the file lies and which model answered in it.

Made-up users wrote them (`dev/make_examples.py`); the answers, their token ids and log-probabilities are the built-in
model's, as the gateway stored them.
"""

from pathlib import Path

EXAMPLES = Path(__file__).parent / "conversations.jsonl"
"""Turns and feedback in Afterword's own form."""
EXAMPLES_MODEL = "smollm2-135m-instruct"
"""The model whose answers they are: training on them is on-policy for it alone."""

__all__ = ["EXAMPLES", "EXAMPLES_MODEL"]
