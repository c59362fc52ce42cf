"""What the engine says of how it drew an answer, through HTTP and the store into the loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.loss.token_batch import AnswerInfo, layout
from afterword.learn.parts.divergences import ReverseKL
from afterword.learn.recipes import recipe
from afterword.model.head import Head
from afterword.model.loading import load_model
from afterword.records import Turn
from afterword.sampling.stream import read_sampled_logprobs
from afterword.train.data.batches import rows_of
from tests.served import Gateway, encoded, engine, gateway, write_model, write_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sampled") / "tiny"
    tokenizer = write_tokenizer(place, TEMPLATE, special=["<pad>", "<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    return write_model(place, tokenizer, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with engine(folder) as url, gateway(url, tmp_path_factory.mktemp("home")) as world:
        yield world


def under(folder: Path, turn: Turn, temperature: float) -> list[float]:
    """Log-probabilities of the answer's ids at that temperature, by transformers."""
    prompt, ids = list(turn.prompt_ids or ()), list(turn.completion_ids or ())
    with torch.no_grad():
        logits = load_model(str(folder), dtype="float32")(input_ids=torch.tensor([prompt + ids])).logits[0]
    scores = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    found: list[float] = scores.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_keeps_the_log_probabilities_of_what_was_drawn_beside_the_plain_ones(
    served: Gateway, folder: Path, stream: bool
) -> None:
    if stream:
        said = served.post(ASK, temperature=0.6, ignore_eos=True, stream=True).text
        assert "sampled_logprob" not in said, "the client did not ask for log-probabilities"
        turn = next(served.store.rows(Turn, newest=True))
    else:
        turn = served.chat(ASK, temperature=0.6, ignore_eos=True)
    assert turn.sampled_logprobs is not None and turn.logprobs is not None
    assert turn.logprobs == pytest.approx(under(folder, turn, 1.0), abs=1e-4)
    assert turn.sampled_logprobs == pytest.approx(under(folder, turn, 0.6), abs=1e-4)
    assert turn.logprobs != pytest.approx(turn.sampled_logprobs, abs=0.1)


def test_a_plain_turn_keeps_them_once_and_cut_off_tokens_have_none(served: Gateway) -> None:
    assert served.chat(ASK).sampled_logprobs is None
    for cut in ({"top_p": 0.5}, {"temperature": 0}):
        turn = served.chat(ASK, ignore_eos=True, **cut)
        assert turn.sampled_logprobs == (None,) * 12
    held = served.chat(ASK, min_tokens=3, temperature=1.5, ignore_eos=True).sampled_logprobs
    assert held is not None and all(x is not None for x in held[3:])


def test_a_client_that_asks_sees_both(served: Gateway) -> None:
    entries = served.post(ASK, temperature=0.6, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(one["sampled_logprob"] <= 0 and one["sampled_support"] == pytest.approx(1, abs=1e-6) for one in entries)


@pytest.mark.parametrize("value", ["x", None, True, [1], -9999.0, math.inf])
def test_odd_values_of_a_server_are_missing(value: Any) -> None:
    entries = [{"logprob": -1.0, "sampled_logprob": value}, {"logprob": -1.0, "sampled_logprob": -2.0}]
    found = read_sampled_logprobs({"content": entries})
    assert found is not None and found[1] == -2.0 and (found[0] is None or found[0] == math.inf)
    assert read_sampled_logprobs({"content": [{"logprob": -1.0}]}) is None and read_sampled_logprobs(None) is None


def test_turns_of_another_temperature_are_trained_by_sampled_estimators(served: Gateway, folder: Path) -> None:
    warm, cut = (served.chat(ASK, ignore_eos=True, **how) for how in ({"temperature": 0.6}, {"top_p": 0.5}))
    weighted = dataclasses.replace(recipe("sdpo-interactions-online"), epochs=1, fresh=0)
    for using, reason in ((recipe("sdpo-interactions-offline"), "other_sampling"), (weighted, "no_logprobs")):
        prepared = encoded(folder, [warm, cut], using=using)
        assert [row.interaction for row in prepared.rows] == ["i0"] and prepared.reasons == {reason: 1}
        row = prepared.rows[0]
        assert not row.answer.plain and row.served == pytest.approx(warm.sampled_logprobs)
    term = recipe("sdpo-interactions-offline").terms[0]
    assert term.keep(rows_of(prepared.rows)).sum() == 12 - term.skip_first
    without = dataclasses.replace(warm, sampled_logprobs=None)
    assert encoded(folder, [without], using=recipe("sdpo-interactions-offline")).reasons == {"other_sampling": 1}


def test_turns_under_penalties_are_trained_by_sampled_estimators(served: Gateway, folder: Path) -> None:
    """The turn keeps the fields and what the token was drawn from; the loss divides by it. Cut-off tokens count in no
    sampled term."""
    fields: dict[str, Any] = {
        "temperature": 0.9, "frequency_penalty": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.1,
    }  # fmt: skip
    drawn, cut = (served.chat(ASK, ignore_eos=True, **fields, **more) for more in ({}, {"top_k": 3, "min_p": 0.1}))
    assert drawn.sampling.items() >= fields.items() and cut.sampling.items() >= {"top_k": 3, "min_p": 0.1}.items()
    assert drawn.logprobs == pytest.approx(under(folder, drawn, 1.0), abs=1e-4)
    assert drawn.sampled_logprobs is not None and drawn.logprobs != pytest.approx(drawn.sampled_logprobs, abs=0.05)
    assert cut.sampled_logprobs == (None,) * 12
    prepared = encoded(folder, [drawn, cut], using=recipe("sdpo-interactions-offline"))
    assert [row.interaction for row in prepared.rows] == ["i0"] and prepared.reasons == {"other_sampling": 1}
    assert prepared.rows[0].served == pytest.approx(drawn.sampled_logprobs)


@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_the_expected_gradient_of_a_tempered_answer_is_that_of_plain_samples(temperature: float) -> None:
    """Every token of a vocabulary once, weighted by how likely the sampler draws it, for the offline recipe."""
    size, generator = 23, torch.Generator().manual_seed(3)
    term = dataclasses.replace(recipe("sdpo-interactions-offline").terms[0], skip_first=0, clip=None)
    weight = torch.randn(size, 8, generator=generator)
    hidden, other = torch.randn(2, 1, 8, generator=generator)
    head, every = Head(weight), torch.arange(size)
    drawn = (head.logits(hidden)[0] / temperature).log_softmax(-1)
    batch = layout(
        [1] * size, [1.0] * size, [True] * size, served=drawn.tolist(),
        answers=[AnswerInfo(kind="follow_up", plain=False)] * size,
    )  # fmt: skip

    def gradient(student: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(value, student)
        return found

    student = hidden.clone().requires_grad_()
    scores = token_losses(student.expand(size, -1), other.expand(size, -1), head, every, term.estimator)
    value = sum(
        drawn[k].exp() * term.value(_only(scores, k), _alone(batch, k), 1.0) for k in range(size)
    )  # by token: `value` divides by what counts
    got = gradient(student, value)  # type: ignore[arg-type]
    student = hidden.clone().requires_grad_()
    exact = gradient(student, token_losses(student, other, head, every[:1], ReverseKL()).loss.sum())
    assert torch.cosine_similarity(got, exact).item() > 0.99
    torch.testing.assert_close(got, exact, atol=0.05 * float(exact.abs().max()), rtol=0.1)


def _only(scores: Any, k: int) -> Any:
    names = scores.__dataclass_fields__
    return SimpleNamespace(
        **{n: v[k : k + 1] if isinstance(v := getattr(scores, n), torch.Tensor) else v for n in names}
    )


def _alone(batch: Any, k: int) -> Any:
    return layout([1], [1.0], [True], served=[float(batch.served[k])], answers=[batch.answers[k]])
