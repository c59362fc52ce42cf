"""Penalties, biases, masks and truncation of a request: what is drawn, and the log-probabilities that are reported.

The reference below is written token by token over transformers' own forward pass.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
import torch
from tests.engine.conftest import Client, Peer

from afterword.model.generation import sampler
from afterword.model.generation.engine import Engine, Request
from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.model.generation.runner import Runner
from afterword.model.generation.sampler import Draw
from afterword.model.generation.shaping import Shaping
from afterword.model.loading import load_model
from afterword.sampling.stream import read_sampled_logprobs

END, NEVER = 1, -math.inf
SHAPES: list[dict[str, Any]] = [
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    {"presence_penalty": -1.0, "frequency_penalty": 0.3},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"logit_bias": {"70": 4.5, "71": -100, "200": 3}},
    {"min_p": 0.2},
    {"top_k": 5},
    {"top_k": 9, "top_p": 0.6, "min_p": 0.05},
    {"min_tokens": 12},
    {"min_tokens": 9, "stop_token_ids": [80, 81], "logit_bias": {"80": 100}},
    {"allowed_token_ids": [66, 67, 68, 99, 120], "frequency_penalty": 0.5},
    {"temperature": 1.6, "repetition_penalty": 1.4, "frequency_penalty": 0.4, "presence_penalty": 0.2, "top_k": 40,
     "top_p": 0.9, "min_p": 0.01, "logit_bias": {"90": 2}, "min_tokens": 5},
]  # fmt: skip


def shaped(logits: list[float], prompt: list[int], written: list[int], **fields: Any) -> tuple[list[float], list[bool]]:
    """(logits of the next token, which tokens may be drawn), token by token, before the temperature."""
    found, open_ = list(logits), [True] * len(logits)
    for token in range(len(logits)):
        allowed = fields.get("allowed_token_ids")
        open_[token] = not allowed or token in allowed
        if len(written) < fields.get("min_tokens", 0) and token in (END, *fields.get("stop_token_ids", ())):
            open_[token] = False
        found[token] += fields.get("logit_bias", {}).get(str(token), 0.0)
        if token in prompt or token in written:
            by = fields.get("repetition_penalty", 1.0)
            found[token] = found[token] / by if found[token] > 0 else found[token] * by
        found[token] -= fields.get("frequency_penalty", 0.0) * written.count(token)
        found[token] -= fields.get("presence_penalty", 0.0) * (token in written)
    return found, open_


def distribution(logits: list[float], prompt: list[int], written: list[int], **fields: Any) -> dict[int, float]:
    """Token -> probability, of those that may be drawn."""
    found, open_ = shaped(logits, prompt, written, **fields)
    heat = fields["temperature"]
    left = {token: found[token] / heat for token in range(len(found)) if open_[token]}
    best = max(left.values())
    weights = {token: math.exp(value - best) for token, value in left.items()}
    if fields.get("min_p"):
        weights = {token: w for token, w in weights.items() if w >= fields["min_p"]}
    ranked = sorted(weights, key=lambda token: -weights[token])
    ranked = ranked[: fields.get("top_k") or len(ranked)]
    total, held, nucleus = sum(weights[token] for token in ranked), 0.0, []
    for token in ranked:
        if held < fields.get("top_p", 1.0) * total:
            nucleus.append(token)
            held += weights[token]
    return {token: weights[token] / held for token in nucleus}


def logits_of(peer: Peer, prompt: list[int], answer: list[int]) -> list[list[float]]:
    """Of transformers, for each place of the answer."""
    with torch.no_grad():
        found = peer.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    rows: list[list[float]] = found.double().tolist()
    return rows


@pytest.mark.parametrize("fields", SHAPES, ids=str)
async def test_log_probabilities_are_of_what_was_drawn_from(client: Client, peer: Peer, fields: dict[str, Any]) -> None:
    fields = {"temperature": 1.0, **fields}
    body = await client.ask("Tell me", max_tokens=24, seed=3, logprobs=True, **fields)
    choice = body["choices"][0]
    prompt, answer, entries = body["prompt_token_ids"], choice["token_ids"], choice["logprobs"]["content"]
    plain = peer.logprobs(prompt, answer)
    assert len(answer) == len(entries) >= min(24, fields.get("min_tokens", 1))
    assert [one["logprob"] for one in entries] == pytest.approx(plain, abs=2e-4)
    for place, logits in enumerate(logits_of(peer, prompt, answer)):
        written, one = answer[:place], entries[place]
        drawn = distribution(logits, prompt, written, **fields)
        assert answer[place] in drawn
        assert one.get("sampled_logprob", one["logprob"]) == pytest.approx(math.log(drawn[answer[place]]), abs=2e-4)
        share = torch.tensor(logits).div(fields["temperature"]).softmax(-1)
        bias = fields.get("logit_bias", {})
        possible = sum(float(share[token]) for token in drawn if bias.get(str(token)) != -100)
        if bias.get("80") != 100:  # beside a bias of 100 everything else is out of reach
            assert one.get("sampled_support", 1.0) == pytest.approx(possible, abs=2e-4)


@pytest.mark.parametrize("fields", SHAPES[:6] + SHAPES[9:12], ids=str)
async def test_the_likeliest_token_is_that_of_the_changed_logits(
    client: Client, peer: Peer, fields: dict[str, Any]
) -> None:
    body = await client.ask("Tell me", max_tokens=20, temperature=0, **fields)
    prompt, answer = body["prompt_token_ids"], body["choices"][0]["token_ids"]
    for place, logits in enumerate(logits_of(peer, prompt, answer)):
        found, open_ = shaped(logits, prompt, answer[:place], **fields)
        best = max(value for value, one in zip(found, open_, strict=True) if one)
        assert open_[answer[place]] and found[answer[place]] == pytest.approx(best, abs=1e-4)


async def test_neighbours_do_not_change_an_answer(client: Client) -> None:
    """All at once, plain ones between them, bit for bit as one after the other."""
    asked: list[dict[str, Any]] = []
    for number, fields in enumerate(SHAPES):
        for one in ({}, fields):
            asked.append({"temperature": 1.0, "max_tokens": 16, "seed": number, "logprobs": True, **one})
    alone = [await client.ask("Tell me", **fields) for fields in asked]
    beside = await asyncio.gather(*(client.ask("Tell me", **fields) for fields in asked))
    for first, second in zip(alone, beside, strict=True):
        assert first["choices"] == second["choices"]
    answers = [body["choices"][0]["token_ids"] for body in alone]
    assert sum(answers[i] != answers[i + 1] for i in range(0, len(answers), 2)) >= len(SHAPES) - 3


async def test_a_forbidden_text_is_not_written(client: Client) -> None:
    codec = client.server.codec
    letters = [codec.spellings([letter])[0][0] for letter in "abcdefgh"]
    fields: dict[str, Any] = {"max_tokens": 30, "temperature": 1, "seed": 4, "allowed_token_ids": letters}
    ids = await client.ids("Hi", 30, **{k: v for k, v in fields.items() if k != "max_tokens"})
    word = codec.decode(ids[4:6])
    spelling = codec.spellings([word])[0]
    assert list(spelling) == ids[4:6]
    other = await client.ask("Hi", bad_words=[word], **fields)
    answer = tuple(other["choices"][0]["token_ids"])
    assert any(tuple(ids[i : i + len(spelling)]) == spelling for i in range(len(ids)))
    assert not any(answer[i : i + len(spelling)] == spelling for i in range(len(answer)))


async def test_stop_token_ids_end_an_answer_also_when_the_end_token_is_ignored(client: Client) -> None:
    ids = await client.ids("Hi", 30, ignore_eos=True)
    at = next(place for place in range(3, 30) if ids[place] not in ids[:place])
    body = await client.ask("Hi", max_tokens=30, ignore_eos=True, stop_token_ids=[ids[at], 10**6])
    assert body["choices"][0]["token_ids"] == ids[: at + 1] and body["choices"][0]["finish_reason"] == "stop"


WRONG: list[tuple[str, Any, str]] = [
    ("frequency_penalty", "0.5", "a number from -2 to 2, not '0.5'"),
    ("frequency_penalty", 2.1, "from -2 to 2, not 2.1"),
    ("presence_penalty", [1], "from -2 to 2, not [1]"),
    ("presence_penalty", True, "not True"),
    ("repetition_penalty", 0, "from 0.01 to 100, not 0"),
    ("min_p", 1.5, "from 0 to 1, not 1.5"),
    ("top_k", 3.5, "an integer of at least -1, not 3.5"),
    ("top_k", -2, "not -2"),
    ("min_tokens", "3", "not '3'"),
    ("logit_bias", [[5, 1]], "must map at most 1024 token ids"),
    ("logit_bias", {str(token): 1 for token in range(1025)}, "must map at most 1024"),
    ("logit_bias", {"a": 1}, "token ids as keys, not 'a'"),
    ("logit_bias", {"-1": 1}, "not '-1'"),
    ("logit_bias", {"5": "1"}, "['5'] must be a number from -100 to 100, not '1'"),
    ("logit_bias", {"5": 101}, "not 101"),
    ("logit_bias", {"259": 1}, "token 259, which this model does not have: its ids are 0 to 258"),
    ("allowed_token_ids", [1, "2"], "a list of token ids"),
    ("allowed_token_ids", [5, 5000], "token 5000"),
    ("stop_token_ids", 5, "a list of token ids, not 5"),
    ("stop_token_ids", [True], "a list of token ids"),
    ("bad_words", "no", "a list of texts"),
    ("bad_words", [" "], "none empty"),
    ("bad_words", ["x"] * 257, "at most 256 texts"),
    ("typical_p", 0.9, "not supported by this engine"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG, ids=lambda one: str(one)[:30])
async def test_wrong_values_are_named(client: Client, name: str, value: Any, said: str) -> None:
    status, body = await client.raw(max_tokens=2, **{name: value})
    assert status == 400 and body["error"]["param"] == name
    assert said in body["error"]["message"]


async def test_values_that_change_nothing_leave_the_plain_distribution(client: Client) -> None:
    neutral: dict[str, Any] = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1, "logit_bias": {}, "min_p": 0,
        "top_k": -1, "min_tokens": 0, "allowed_token_ids": [], "bad_words": [], "stop_token_ids": [],
    }  # fmt: skip
    body = await client.ask("Hi", max_tokens=8, temperature=1, seed=1, logprobs=True, **neutral)
    assert body["choices"][0]["token_ids"] == await client.ids("Hi", 8, temperature=1, seed=1)
    assert not any("sampled_logprob" in one for one in body["choices"][0]["logprobs"]["content"])


async def test_penalties_have_a_ratio_and_cut_off_tokens_have_none(client: Client) -> None:
    """What training reads: the importance ratio needs the probability of every token that was drawn, and that the
    sampler could draw whatever the model can."""

    async def read(**fields: Any) -> list[float | None] | None:
        body = await client.ask("Hi", max_tokens=10, temperature=1, seed=2, logprobs=True, ignore_eos=True, **fields)
        return read_sampled_logprobs(body["choices"][0]["logprobs"])

    shapes: list[dict[str, Any]] = [
        {"frequency_penalty": 1.0}, {"repetition_penalty": 1.3}, {"logit_bias": {"70": 3}},
        {"top_k": 3}, {"min_p": 0.5}, {"allowed_token_ids": [70, 71]},
    ]  # fmt: skip
    for place, fields in enumerate(shapes):
        found = await read(**fields)
        assert found is not None and [one is None for one in found] == [place > 2] * 10, fields
    banned = await read(logit_bias={str(token): -100 for token in range(3, 200)})
    assert banned is not None and any(one is None for one in banned)


def test_where_nothing_is_left_to_draw_the_least_length_gives_way() -> None:
    ask = GenerationRequest(allowed_token_ids=(END,), min_tokens=5)
    row = Shaping(ask, [4], [END]).apply(torch.zeros(8))
    assert row.tolist() == [NEVER, 0.0, *[NEVER] * 6]


def test_a_row_is_left_as_it_was_and_a_reached_least_length_costs_nothing() -> None:
    row, shaping = torch.randn(8), Shaping.of(GenerationRequest(min_tokens=1), [4], [END])
    assert shaping is not None
    before, held = row.clone(), shaping.active
    assert held and shaping.apply(row)[END] == NEVER and torch.equal(row, before)
    shaping.push(3)
    assert not shaping.active and Shaping.of(GenerationRequest(), [4], [END]) is None


def test_truncation_is_in_the_servers_order() -> None:
    """Top-p of what min-p and top-k leave: of 0.4, 0.3, 0.2 and 0.1, two tokens hold 0.57 and 0.43."""
    rows = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 2).log()
    tokens = sampler.sample(rows, [Draw(1.0, 0.5, 0.999, top_k=2), Draw(1.0, 0.5, 0.999)])
    assert tokens.tolist() == [0, 1]
    cut = sampler.truncate(rows, [Draw(0.5, 1.0, 0.0, min_p=0.5), Draw(0.0, 1.0, 0.0, top_k=1)])
    assert (cut[0] > NEVER).tolist() == [True, True, False, False] and torch.equal(cut[1], rows[1])


def test_the_embedded_models_sampler_is_its_scorer_under_penalties() -> None:
    """KL(sampler || scorer) a token, by Schulman's k3 over what the sampler drew."""
    model = load_model("smollm2-135m-instruct", dtype="float32", device="cpu")
    drawn: dict[int, list[TokenOutput]] = {0: [], 1: [], 2: []}

    def deliver(pieces: list[tuple[Request, TokenOutput]]) -> None:
        for request, piece in pieces:
            drawn[request.number].append(piece)
        if all(some and some[-1].finish for some in drawn.values()):
            engine.stop()

    scorer = load_model("smollm2-135m-instruct", dtype="float32", device="cpu")  # the engine's own is taken apart
    engine = Engine(Runner(model, ends=frozenset([2])), deliver)
    prompt = list(range(400, 430))
    asked: list[dict[str, Any]] = [
        {"frequency_penalty": 0.8, "presence_penalty": 0.5}, {"repetition_penalty": 1.3, "temperature": 0.8},
        {"logit_bias": ((500, 6.0), (28, -2.0)), "min_tokens": 20},
    ]  # fmt: skip
    requests = [
        Request(n, GenerationRequest(seed=n, logprobs=True, **one), prompt, 20, None, None)
        for n, one in enumerate(asked)
    ]
    for request in requests:
        engine.submit(request)
    engine.run()
    log_ratios = []
    for request, one in zip(requests, asked, strict=True):
        answer = request.tokens[len(prompt) :]
        with torch.inference_mode():
            logits = scorer(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        for place, row in enumerate(logits):
            x = row.double().clone()
            for token, value in one.get("logit_bias", ()):
                x[token] += value
            if place < one.get("min_tokens", 0):
                x[2] = NEVER
            by = float(one.get("repetition_penalty", 1.0))
            for token in {*prompt, *answer[:place]}:
                x[token] = x[token] / by if x[token] > 0 else x[token] * by
            for token in set(answer[:place]):
                x[token] -= float(one.get("frequency_penalty", 0)) * answer[:place].count(token)
                x[token] -= float(one.get("presence_penalty", 0))
            scored = (x / one.get("temperature", 1.0)).log_softmax(-1)[answer[place]]
            log_ratios.append(float(scored) - float(drawn[request.number][place].sampled_logprob or 0.0))
    ratios = torch.tensor(log_ratios, dtype=torch.float64)
    assert len(log_ratios) >= 40
    assert 0 <= float((ratios.exp() - 1 - ratios).mean()) < 1e-4
