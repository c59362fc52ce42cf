"""Resolves settings: defaults < file (TOML) < environment < command line; each value records its source.

A section is a frozen dataclass; its field defaults are the recommended settings. Unknown keys are rejected.

    [serve]                 AFTERWORD_SERVE_PORT=8500        --set serve.port=8500  (or the command's own --port)
    port = 8400

An entry of a table setting is added to those of the file: `--set train.options.beyond=0.25`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import orjson
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from afterword.errors import ConfigError

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=0.0, le=16.0)]
Port = Annotated[int, Field(ge=0, le=65535)]
NoneOrMore = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def _device(name: str) -> str:
    """As `learn.models.pick_device` reads it; ValueError for any other."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("use auto, cpu, cuda or cuda:N")
    return name


Device = Annotated[str, AfterValidator(_device)]


def _name_source(text: str) -> str:
    """ValueError for what is neither a header nor a field of the body."""
    if not re.fullmatch(r"body(\.[^.\s]+)+|(?!body\.)[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):
        raise ValueError('name a header, as in "x-user-id", or a field of the body, as in "body.metadata.user_id"')
    return text


NameSource = Annotated[str, AfterValidator(_name_source)]
USER_FROM = (
    "x-openwebui-user-id", "helicone-user-id", "x-litellm-end-user-id", "body.safety_identifier",
    "body.metadata.user_id", "body.metadata.langfuse_user_id", "body.metadata.trace_user_id",
)  # fmt: skip
CONVERSATION_FROM = (
    "x-openwebui-chat-id", "helicone-session-id", "x-litellm-session-id", "body.litellm_session_id",
    "body.metadata.conversation_id", "body.metadata.chat_id", "body.metadata.thread_id", "body.metadata.session_id",
    "body.metadata.langfuse_session_id",
)  # fmt: skip

PREFIX = "AFTERWORD_"
NOT_SETTINGS = frozenset({"AFTERWORD_HOME", "AFTERWORD_CONFIG", "AFTERWORD_CACHE"})
"""Variables that say where things are; they are no keys of the tree."""
RENAMED = {"train.passes": "train.epochs"}
"""Old setting -> its present name. Old names are read for one more release, with a FutureWarning."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`[serve]`: the gateway and the embedded model server."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than loopback needs an API key."""
    port: Port = 8400
    """Port of the gateway; 0 takes a free one."""
    name: str = "afterword"
    """Model name that users address; versions are NAME@v000001 and so on."""
    allow_origins: tuple[str, ...] = ()
    """Origins such as "https://chat.example" whose pages may use the gateway; without keys, its names only beside
    this machine's. "*" is every page."""
    user_from: tuple[NameSource, ...] = USER_FROM
    """Headers and fields of the body (`body.metadata.user_id`) that name the user, the first that is there; after
    `x-afterword-user`, and headers before the body's `user`."""
    conversation_from: tuple[NameSource, ...] = CONVERSATION_FROM
    """The same for the conversation, beside `x-afterword-conversation` and `metadata.conversation`."""
    train: bool = True
    """May answers be trained on when the request does not say (`metadata.train`)?"""
    upstream: str | None = None
    """URL of an OpenAI-compatible server, with any base path; without it the embedded engine is started."""
    upstream_model: str | None = None
    """Model of the upstream that NAME stands for and that adapters belong to; without it `serve.model` where that is
    set and listed, else the first that looks like a chat model. Needed where the upstream lists no models."""
    upstream_key: str | None = None
    """API key for the upstream."""
    upstream_timeout: Seconds = 600.0
    """Seconds without a byte from the upstream before the answer is given up (504); more than 0."""
    model: str = "smollm2-135m-instruct"
    """Model of the embedded engine: the built-in name, a local folder or a hub id."""
    device: Device = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """"auto", "bfloat16" or "float32"."""
    max_batch: Count = 32
    """Requests that the engine runs at once; more wait in line."""
    max_tokens: NoneOrMore | None = None
    """Most tokens of an answer whose request names no bound; 0 is no bound. By default 512 for the built-in model, 4096
    for another model of the engine; an upstream gets none."""
    upstream_sampling: Literal["unknown", "plain"] = "unknown"
    """What an upstream does where a request names no temperature, top_p, top_k, min_p or repetition_penalty.

    "plain": it takes none from the model's folder (vLLM with `--generation-config vllm`). With "unknown", estimators
    that need samples of the model's own distribution leave such answers out."""
    on_full_context: Literal["drop_oldest", "error"] | None = None
    """When the messages are longer than the model's context: leave out the oldest turns ("drop_oldest", the engine's
    default; system messages and the newest message stay), or answer with an error ("error", an upstream's default)."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """`[train]`: which interactions, which recipe."""

    recipe: str = "follow-ups"
    """Name of a recipe; see docs/recipes."""
    learning_rate: float | None = None
    """Overrides the recipe's learning rate."""
    epochs: int | None = None
    """Overrides how often each interaction is seen."""
    fresh: int | None = None
    """Overrides how many epochs go over answers that the student writes anew."""
    context: str | None = None
    """Overrides how the teacher is shown the hindsight; see docs/recipes. "shuffled" and "none" are controls."""
    template: str | None = None
    """Your own words around the hindsight, which {hindsight} stands for ({answer} for the served answer)."""
    template_praise: str | None = None
    """The same for hindsight of a user who was content; without it `template` is used."""
    experience: str | None = None
    """The text that the recipe "opcd" puts into the weights."""
    teacher: str | None = None
    """The other model that a recipe such as "gkd" learns from: a folder, a hub id or the built-in name."""
    verifier: str | None = None
    """Who judges fresh answers for a recipe such as "grpo": `package.module:function`, called with the turn and the
    answer's text; it returns a number."""
    off_policy: bool = False
    """Also train on turns without served token ids (imported logs), re-tokenised and labelled as such."""
    max_tokens: int | None = None
    """Overrides how many tokens a prompt and its answer may have; longer interactions are left out and counted."""
    redact: str | None = None
    """How private data is looked for before training; without it as `collect.redact` says."""
    revise: Literal["off", "context", "target"] = "off"
    """Let the model write the answers that users did not like again, with their words in view: what is better than the
    draft is shown to the teacher ("context"), or imitated off-policy ("target", with the recipe "sft")."""
    max_revisions: NoneOrMore = 64
    """Most answers of a run that are written again; the newest."""
    stop_rules: bool = True
    """End a run early when the student collapses or drifts away; see docs/training.md."""
    min_interactions: NoneOrMore = 8
    """Fewer than this is "nothing to do"."""
    max_interactions: Count = 512
    """The newest that can be trained are taken."""
    replay: Factor = 0.0
    """For each new interaction, how many of those that the served adapter has learned are trained again, drawn at
    random: more is kept, and a run takes longer."""
    seed: int = 0
    """Order of the interactions and the adapter's first values."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Any other argument of the recipe, as `afterword recipes show NAME` lists them; see docs/training.md."""


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """`[evaluate]`: how a candidate is measured against what is served."""

    suites: tuple[str, ...] = ("holdout", "collapse", "forgetting", "earlier-wins", "privacy", "safety")
    """Suites that run by default; see docs/evaluation.md."""
    max_interactions: Count = 64
    """Held-out interactions to answer; the newest ones are taken."""
    max_tokens: Count = 96
    """Length bound of an answer."""
    min_answers: Count = 64
    """Answers of each arm that `collapse` and `privacy` inspect, at least: up to 64 requests of ours fill up where
    fewer interactions are held out. Fewer answers widen the intervals, so the gate refuses more."""
    seed: int = 0
    """Seed of both arms' answers and of the bootstrap."""
    looks: Count = 1
    """Looks at the need of correction before the answers are asked for; 4 stops early where it is clear."""
    checks: dict[str, str] = dataclasses.field(default_factory=dict)
    """Task -> program that decides its answers: "json", "python", "regex:PATTERN" or "command:PROGRAM ARGS"."""
    judge: str | None = None
    """URL of an OpenAI-compatible server whose model compares the answers of both arms; none by default."""
    judge_model: str = "judge"
    """The judge's model name."""
    judge_key: str | None = None
    """API key for the judge."""
    judge_timeout: Seconds = 60.0
    """Seconds that the judge may take for one comparison."""
    canaries: str | None = None
    """File of planted secrets, a JSON object {"prefix", "secret"} a line, for the suite `privacy`."""
    ifeval_prompts: Count = 48
    """IFEval prompts to ask, spread over the kinds of instruction; 541 are all."""


@dataclass(frozen=True, slots=True)
class CycleConfig:
    """`[cycle]`: when `cycle --watch` starts a round."""

    interval: Seconds = 30.0
    """Seconds between looks at the store."""
    min_new: Count = 32
    """New training interactions since the last candidate that start a round."""


@dataclass(frozen=True, slots=True)
class PrivacyConfig:
    """`[privacy]`: what comes to disk at all."""

    redact_stored: Literal["off", "rules", "presidio"] = "off"
    """Take private data out of turns and feedback before they are stored, served or imported. Such turns lose their
    token ids and are never trained as on-policy; hindsight is redacted in any case (`collect.redact`)."""


BUILT_IN: dict[str, type] = {
    "serve": ServeConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "cycle": CycleConfig,
    "privacy": PrivacyConfig,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One resolved value and its source."""

    value: Any
    source: str


class Config:
    """The resolved settings. `get` returns a section, `rows` all values with their sources."""

    def __init__(self, sections: Mapping[str, type], settings: Mapping[tuple[str, str], Setting]) -> None:
        self._names = {kind: name for name, kind in sections.items()}
        self._settings = dict(settings)

    def get(self, section: type[T]) -> T:
        """Returns a section filled with its resolved values."""
        name = self._names[section]
        return section(**{key: s.value for (where, key), s in self._settings.items() if where == name})

    def rows(self) -> list[tuple[str, Any, str]]:
        """Returns (`section.key`, value, source), in the order of the sections."""
        return [(f"{section}.{key}", s.value, s.source) for (section, key), s in self._settings.items()]


def resolve(
    sections: Mapping[str, type],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[Any, str]] | None = None,
) -> Config:
    """Resolves the settings of all sections.

    A renamed setting is read under its old name, with a FutureWarning.

    Args:
        sections: Section name -> its dataclass.
        file: Configuration file; must exist.
        environ: Environment; AFTERWORD_SECTION_KEY sets `section.key`.
        flags: `section.key` -> (value, name of the flag).

    Raises:
        ConfigError: If a key is unknown, a value is invalid, or a setting is given under its old and its new name at
            once.
    """
    settings = {
        (name, f.name): Setting(_default(f), "default") for name, kind in sections.items() for f in _fields(kind)
    }
    given = [*_from_file(file), *_from_environment(sections, environ or {}), *_from_flags(flags or {})]
    for key, value, source in _renamed(given):
        section, _, field = key.partition(".")
        if (section, field) not in settings:
            field, _, entry = field.partition(".")
            old = settings.get((section, field))
            if not (entry and old and isinstance(old.value, dict)):
                raise ConfigError(f"unknown setting {key!r} (from {source}).{_nearest(key, settings)}", param=key)
            value = {**old.value, entry: value}
            before = () if old.source == "default" else old.source.split(", ")
            source = ", ".join(dict.fromkeys((*before, source)))
        settings[section, field] = Setting(_check(sections[section], field, value, key, source), source)
    return Config(sections, settings)


def _renamed(given: list[tuple[str, Any, str]]) -> Iterable[tuple[str, Any, str]]:
    """The (key, value, source) triples with each key under its present name; ConfigError for one under both names."""
    names = {(key, source) for key, _, source in given}
    for key, value, source in given:
        new = RENAMED.get(key, key)
        if new != key:
            if (new, source) in names:
                raise ConfigError(f"{key} and {new} (both from {source}) are one setting: remove {key}.", param=key)
            warnings.warn(
                f"{key} (from {source}) is now called {new}: the old name ends with the next release", FutureWarning, 3
            )
        yield new, value, source


def current_names(section: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Renames settings that an earlier version stored.

    Args:
        section: Their section.
        stored: Setting -> value.

    Returns:
        Present name -> value.
    """
    found = {RENAMED.get(f"{section}.{key}", f"{section}.{key}"): value for key, value in stored.items()}
    return {key.partition(".")[2]: value for key, value in found.items()}


def _fields(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    assert field.default is not dataclasses.MISSING, f"setting {field.name} has no default"
    return field.default


def _from_file(file: Path | None) -> Iterable[tuple[str, Any, str]]:
    if file is None:
        return []
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}. Check --config.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}. Correct that line.") from error
    found = []
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: {section!r} is outside a section. Move it below a line like [serve].")
        found += [(f"{section}.{key}", value, f"file {file.name}") for key, value in values.items()]
    return found


def _from_environment(sections: Mapping[str, type], environ: Mapping[str, str]) -> Iterable[tuple[str, Any, str]]:
    found = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("_")
        found.append((f"{section}.{key}", _parsed(environ[name]), f"environment {name}"))
    return found


def _from_flags(flags: Mapping[str, tuple[Any, str]]) -> Iterable[tuple[str, Any, str]]:
    return [(key, _parsed(value) if isinstance(value, str) else value, flag) for key, (value, flag) in flags.items()]


def _parsed(text: str) -> Any:
    """JSON where the text is JSON (numbers, true, null, lists), the text itself otherwise."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _check(kind: type, field: str, value: Any, key: str, source: str) -> Any:
    wanted = get_type_hints(kind, include_extras=True)[field]
    for candidate in (value, str(value)):  # a name may look like a number: AFTERWORD_SERVE_NAME=7
        try:
            return TypeAdapter(wanted).validate_python(candidate, strict=isinstance(candidate, bool))
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
    raise ConfigError(f"{key} = {value!r} (from {source}) is invalid: {reason}.", param=key)


def _nearest(key: str, settings: Mapping[tuple[str, str], Setting]) -> str:
    known = [f"{section}.{name}" for section, name in settings]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else " See `afterword config show`."
