"""Lists the request fields of OpenAI, vLLM and SGLang that decide sampling, with their plain values.

Owns the one list of these fields, which the gateway records and training reads. A field that a request leaves unset
stays unset; the server's default applies unless the operator sets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afterword.records import Json, content_hash

DRAWN: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
}
"""Field -> values that leave the model's own distribution as it is. Servers take unset ones from the model's folder
(vLLM and SGLang: `generation_config.json`), so that unset is unknown."""
PLAIN: Json = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What a server that takes nothing from the model's folder uses for unset fields."""
SHAPED: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "top_a": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "tool_choice": ("auto", "none"),
    "use_beam_search": (False,),
    "best_of": (1,),
    "logits_processors": ([],),
    "custom_logit_processor": (),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "smoothing_factor": (0,),
    "thinking_token_budget": (),
}
"""The same for fields that do nothing when they are unset, with any server."""
BOUNDS = (
    "max_tokens", "max_completion_tokens", "stop", "stop_token_ids", "include_stop_str_in_output", "seed", "n",
    "skip_special_tokens", "truncate_prompt_tokens", "chat_template_kwargs", "reasoning_effort",
    "continue_final_message", "add_generation_prompt",
)  # fmt: skip
"""Fields that bound or describe an answer and leave its distribution alone."""
_MOST = 200
"""Characters of a value that is recorded as it is; of a longer one (a schema) only the hash."""


def sampling_of(body: Mapping[str, Any]) -> Json:
    """The sampling fields that a request sets.

    Returns:
        Field -> value; `{"hash": ...}` for values longer than 200 characters, and for grammars, choices and word lists,
        which may hold private words that nobody redacts here.
    """
    fields = (*DRAWN, *SHAPED, *BOUNDS)
    return {name: _recorded(name, body[name]) for name in fields if body.get(name) is not None}


def _recorded(name: str, value: Any) -> Any:
    wordy = name in SHAPED and not isinstance(value, int | float) and value not in SHAPED[name]
    return {"hash": content_hash("sampling", value)} if wordy or len(str(value)) > _MOST else value


def why_not_plain(sampling: Mapping[str, Any]) -> str | None:
    """Why tokens drawn so are not known to be samples of the model's own distribution; None if they are."""
    for name, plain in (DRAWN | SHAPED).items():
        value = sampling.get(name)
        if value is None:
            if name in DRAWN:
                return (
                    f"the request left {name} unset and the server's own value is unknown; send it, or set "
                    'serve.upstream_sampling = "plain" for a server that takes none from the model\'s folder'
                )
        elif not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in plain):
            return f"it was sampled with {name}={str(value)[:80]}"
    return None
