"""The words of a report: what each figure is called, how its number is written, what each suite asks.

Owns names and styles; never a number.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a suite: one figure, or one of each arm on the same scale."""

    key: str
    label: str
    style: str = "number"
    """"number", "share", "ratio", "percent" or "change" (signed, around 0)."""


ROWS: dict[str, tuple[Row, ...]] = {
    "holdout": (
        Row("need_drop", "Drop of the correction still needed (nats a token)", "change"),
        Row("need", "Correction still needed (nats a token)"),
        Row("gain", "Gain in hindsight score (nats a token)", "change"),
        Row("score", "Hindsight score (nats a token)"),
        Row("checks", "Accepted by the tasks' programs", "share"),
        Row("judge", "The judge's preference (-1 to 1)", "change"),
        Row("judge_bias", "Decided by place alone", "share"),
        Row("judge_failed", "Left undecided by the judge", "share"),
        Row("edit", "Distance to the user's final text", "share"),
        Row("edit_gain", "Nearer to the final text by", "change"),
    ),
    "earlier-wins": (
        Row("need_drop", "Drop of the correction needed against served (nats a token)", "change"),
        Row("need", "Correction still needed (nats a token)"),
        Row("kept", "Still better than the base", "share"),
    ),
    "collapse": (
        Row("empty", "Empty answers", "share"),
        Row("truncated", "Cut off at the limit", "share"),
        Row("repetitive", "Repetitive answers", "share"),
        Row("copies", "Copies of the question", "share"),
        Row("leaks", "Speak of a follow-up", "share"),
        Row("declined", "Decline, or only apologise", "share"),
        Row("length_ratio", "Length, candidate to served", "ratio"),
        Row("distinct_ratio", "Variety of words, candidate to served", "ratio"),
        Row("entropy_ratio", "Entropy of the next token, candidate to served", "ratio"),
        Row("similarity", "Likeness among its own answers", "share"),
    ),
    "forgetting": (
        Row("drift", "Drift from the base (nats a token)"),
        Row("drift_text", "… on plain text"),
        Row("drift_chat", "… on chats"),
        Row("loss_rise", "Loss rise against served", "percent"),
        Row("loss_rise_base", "Loss rise against the base", "percent"),
        Row("accuracy", "Easy questions known", "share"),
    ),
    "privacy": (
        Row("extracted", "Secrets given away that the base does not know"),
        Row("exposure_rise", "Exposure of secrets over the base (bits)", "change"),
        Row("memorised", "Users' texts with a span word for word, over the base", "percent"),
        Row("quotes", "Answers that quote a training text", "share"),
    ),
    "safety": (
        Row("refusals", "Harmful requests declined", "share"),
        Row("declining", "How likely a harmful request is declined", "share"),
        Row("benign", "Harmless requests answered", "share"),
        Row("sycophancy", "Known facts given up to please", "share"),
        Row("personalised", "Needless personal remarks", "share"),
    ),
    "calibration": (
        Row("ece", "Expected calibration error", "share"),
        Row("brier", "Brier score"),
        Row("overconfidence", "Over-confidence gap", "change"),
    ),
    "ifeval": (
        Row("prompt_strict", "All instructions followed, strict", "share"),
        Row("prompt_loose", "All instructions followed, loose", "share"),
        Row("instruction_strict", "Instructions followed, strict", "share"),
        Row("instruction_loose", "Instructions followed, loose", "share"),
    ),
    "latency": (
        Row("speed_ratio", "Tokens a second, candidate to served", "ratio"),
        Row("first_token_ratio", "Time to the first token, candidate to served", "ratio"),
        Row("tokens_per_second", "Tokens a second"),
        Row("memory_rise", "Weights of the adapter over the base's", "percent"),
    ),
}
"""Suite -> its lines, in order."""
ABOUT = {
    "holdout": "Both arms answer prompts that were never trained on. The frozen base model reads what the user wrote "
    "next and scores how much better it makes each answer.",
    "earlier-wins": "Held-out interactions that earlier releases made better: are they still?",
    "forgetting": "Log-probabilities on general texts and chats, and easy questions, that have nothing to do with the "
    "feedback.",
    "collapse": "Does it still give answers? Counted on the same held-out answers, and on requests of ours where they "
    "are few.",
    "privacy": "What users wrote must not come out: secrets, spans word for word, quotes.",
    "safety": "Refusals that stay, harmless requests that are answered, facts that are not given up to please.",
    "calibration": "Is it as sure as it is right? On easy questions, by likelihood.",
    "ifeval": "IFEval's prompts, judged by its own checkers.",
    "latency": "What the adapter costs while it serves, on the machine that ran this.",
}


def label_of(suite: str, figure: str) -> str:
    """What a figure is called."""
    stem = figure.removesuffix("_rise")
    return next((row.label for row in ROWS.get(suite, ()) if row.key in (figure, stem)), figure.replace("_", " "))
