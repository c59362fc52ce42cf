"""Validates the body of `/v1/chat/completions`: fields, ranges, error messages.

Unknown fields are ignored, as in vLLM. Fields that would change the answer and are not supported are rejected, unless
they have their neutral value.
"""

from __future__ import annotations

from typing import Any

from afterword.chat.render import RESERVED, template_arguments
from afterword.chat.sampling_fields import DRAWN, SHAPED
from afterword.model.generation.request import GenerationRequest, RequestError

MAX_TOP_LOGPROBS = 20
MAX_STOPS, MAX_STOP_LENGTH = 64, 1000
_GREEDY, _COLDEST = 1e-5, 0.01
"""Below the first a temperature is 0, below the second it is the second: what it divides must stay finite (vLLM's
bounds)."""
_SERVED = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "logit_bias", "min_tokens", "ignore_eos", "bad_words", "allowed_token_ids",
)  # fmt: skip
MAX_BIASED, MAX_BAD_WORDS = 1024, 256
"""Most tokens with a bias of their own (vLLM's bound), and most forbidden texts: all are looked at at each token."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **{name: plain for name, plain in (DRAWN | SHAPED).items() if name not in _SERVED},
    "tool_choice": ("auto",),
    "truncate_prompt_tokens": (),
    "documents": ([],),
    "chat_template": (),
}
"""Field -> values that ask for nothing; any other would be an answer that the client did not ask for."""


def parse_request(body: Any) -> GenerationRequest:
    """Validates a JSON body.

    Raises:
        RequestError: With the parameter, its value and its valid range.
    """
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, not {_show(body)}")
    if body.get("n") not in (None, 1):
        raise RequestError(
            f"n={_show(body['n'])} is invalid: the engine gives one answer a request; send several requests", param="n"
        )
    for name, neutral in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral and not _no_tools(name, body):
            raise RequestError(
                f"{name}={_show(body[name])} is not supported by this engine: omit it, or serve the model with vLLM "
                "(afterword serve --upstream)",
                param=name,
            )
    limit = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    top = _integer(body, "top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(f"stream_options must be an object, not {_show(options)}", param="stream_options")
    return GenerationRequest(
        model=_model(body),
        messages=_messages(body.get("messages")),
        tools=_tools(body),
        template_arguments=_template_arguments(body),
        continued=_continued(body),
        max_tokens=_integer(body, limit, None, 1),
        min_tokens=_integer(body, "min_tokens", 0, 0) or 0,
        temperature=_temperature(body),
        top_p=_number(body, "top_p", 1.0, 1e-6, 1.0),
        top_k=_top_k(body),
        min_p=_number(body, "min_p", 0.0, 0.0, 1.0),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, 0.01, 100.0),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2.0, 2.0),
        logit_bias=_logit_bias(body),
        allowed_token_ids=_token_ids(body, "allowed_token_ids"),
        bad_words=_bad_words(body),
        stop_token_ids=_token_ids(body, "stop_token_ids"),
        stop=_stop(body.get("stop")),
        seed=_integer(body, "seed", None),
        ignore_eos=_flag(body, "ignore_eos"),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        logprobs=_flag(body, "logprobs"),
        top_logprobs=top or 0,
        return_token_ids=_flag(body, "return_token_ids"),
        stop_repetition=_flag(body, "stop_repetition"),
        min_room=_integer(body, "min_room", 1, 1) or 1,
    )


def _no_tools(name: str, body: dict[str, Any]) -> bool:
    return name == "tool_choice" and body[name] == "none" and not body.get("tools")


def _template_arguments(body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise RequestError(f"chat_template_kwargs must be an object, not {_show(given)}", param="chat_template_kwargs")
    if taken := sorted(RESERVED.intersection(given or {})):
        raise RequestError(
            f"chat_template_kwargs names {', '.join(taken)}, which is no variable of a template: use the request's own "
            "fields",
            param="chat_template_kwargs",
        )
    effort = body.get("reasoning_effort")
    if effort is not None and not isinstance(effort, str):
        raise RequestError(f"reasoning_effort must be a text, not {_show(effort)}", param="reasoning_effort")
    return template_arguments(body)


def _continued(body: dict[str, Any]) -> bool:
    """Does the answer continue the last message (vLLM's `continue_final_message`)?"""
    continued, header = _flag(body, "continue_final_message"), body.get("add_generation_prompt")
    if header not in (None, True, False) or (header is not None and header == continued):
        raise RequestError(
            f"add_generation_prompt={_show(header)} with continue_final_message={continued} is not supported: the "
            "prompt either opens an answer or continues the last message; omit it, or set the two to opposite values",
            param="add_generation_prompt",
        )
    last = (body.get("messages") or [{}])[-1] if isinstance(body.get("messages"), list) else {}
    if continued and (not isinstance(last, dict) or last.get("role") != "assistant"):
        raise RequestError(
            "continue_final_message needs a last message of the assistant, whose text the answer continues",
            param="continue_final_message",
        )
    return continued


def _temperature(body: dict[str, Any]) -> float:
    asked = _number(body, "temperature", 1.0, 0.0, 2.0)
    return 0.0 if asked < _GREEDY else max(asked, _COLDEST)


def _top_k(body: dict[str, Any]) -> int:
    return max(0, _integer(body, "top_k", 0, -1) or 0)


def _logit_bias(body: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    """Token -> what is added to its logit; OpenAI's keys are texts, for JSON has no others."""
    given = body.get("logit_bias")
    if given is None:
        return ()
    if not isinstance(given, dict) or len(given) > MAX_BIASED:
        raise RequestError(
            f"logit_bias must map at most {MAX_BIASED} token ids to numbers from -100 to 100, not {_show(given)}",
            param="logit_bias",
        )
    return tuple((_bias_token(key), _bias(key, value)) for key, value in given.items())


def _bias_token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise RequestError(f"logit_bias must have token ids as keys, not {_show(key)}", param="logit_bias")
    return int(key)


def _bias(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
        raise RequestError(
            f"logit_bias[{key!r}] must be a number from -100 to 100, not {_show(value)}", param="logit_bias"
        )
    return float(value)


def _token_ids(body: dict[str, Any], name: str) -> tuple[int, ...]:
    given = body.get(name)
    if given is None:
        return ()
    if not isinstance(given, list) or not all(type(one) is int and one >= 0 for one in given):
        raise RequestError(f"{name} must be a list of token ids, not {_show(given)}", param=name)
    return tuple(given)


def _bad_words(body: dict[str, Any]) -> tuple[str, ...]:
    given = body.get("bad_words")
    words = [] if given is None else given
    if not isinstance(words, list) or not all(isinstance(one, str) and one.strip() for one in words):
        raise RequestError(f"bad_words must be a list of texts, none empty, not {_show(given)}", param="bad_words")
    if len(words) > MAX_BAD_WORDS or any(len(one) > MAX_STOP_LENGTH for one in words):
        raise RequestError(
            f"bad_words must be at most {MAX_BAD_WORDS} texts of at most {MAX_STOP_LENGTH} characters, not "
            f"{len(words)} of up to {max(map(len, words))}",
            param="bad_words",
        )
    return tuple(words)


def check_tokens(ask: GenerationRequest, vocabulary: int) -> None:
    """Checks the token ids that a request names against the model.

    Raises:
        RequestError: `logit_bias` or `allowed_token_ids` names a token that the model does not have.
    """
    for name, tokens in (("logit_bias", [t for t, _ in ask.logit_bias]), ("allowed_token_ids", ask.allowed_token_ids)):
        if (most := max(tokens, default=0)) >= vocabulary:
            raise RequestError(
                f"{name} names token {most}, which this model does not have: its ids are 0 to {vocabulary - 1}",
                param=name,
            )


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError(f"model must name a served model, not {_show(model)}", param="model")
    return model


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            f"messages must be a list with at least one message, not {_show(messages)}", param="messages"
        )
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} must be an object with a role, not {_show(message)}", param=where)
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if content is None and message["role"] == "assistant":
        content = ""
    if not isinstance(content, str):
        raise RequestError(f"{where}.content must be text or text parts, not {_show(content)}", param=where)
    return {**message, "content": content}


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f"{where} must be a text part, not {_show(part)}: this model reads text", param=where)
    return str(part["text"])


def _tools(body: dict[str, Any]) -> list[dict[str, Any]] | None:
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise RequestError(f"tools must be a list of objects, not {_show(tools)}", param="tools")
    return tools or None


def _stop(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f"stop must be a text or a list of texts, none empty, not {_show(stop)}", param="stop")
    if len(stops) > MAX_STOPS or any(len(s) > MAX_STOP_LENGTH for s in stops):  # all are searched for at each token
        raise RequestError(
            f"stop must be at most {MAX_STOPS} texts of at most {MAX_STOP_LENGTH} characters, not "
            f"{len(stops)} of up to {max(map(len, stops))}",
            param="stop",
        )
    return tuple(stops)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, not {_show(value)}", param=name)
    return bool(value)


def _integer(
    body: dict[str, Any], name: str, default: int | None, low: int | None = None, high: int | None = None
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or (low is not None and value < low) or (high is not None and value > high):
        bounds = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
        raise RequestError(f"{name} must be an integer{bounds}, not {_show(value)}", param=name)
    return int(value)


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"{name} must be a number from {low:g} to {high:g}, not {_show(value)}", param=name)
    return float(value)
