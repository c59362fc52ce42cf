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
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import orjson
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from afterword.errors import ConfigError

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=0.0, le=16.0)]
Port = Annotated[int, Field(ge=0, le=65535)]
CountOrZero = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


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
NOT_SETTINGS = frozenset({"AFTERWORD_HOME", "AFTERWORD_CONFIG", "AFTERWORD_CACHE", "AFTERWORD_RUN_DIR"})
"""Variables that say where things are; they are no keys of the tree."""
RENAMED = {"train.passes": "train.epochs"}
"""Old setting -> its present name. Old names are read for one more release, with a FutureWarning."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`[serve]`: the gateway and the embedded model server."""

    host: str = "127.0.0.1"
    """Listen address; any other than loopback needs an API key."""
    port: Port = 8400
    """Port of the gateway; 0 takes a free one."""
    name: str = "afterword"
    """Model name for clients; versions are NAME@v000001 and so on."""
    allow_origins: tuple[str, ...] = ()
    """Allowed origins of browser pages, such as "https://chat.example"; "*" allows all. Without API keys, a request's
    host name must be this machine's or one of these."""
    user_from: tuple[NameSource, ...] = USER_FROM
    """Headers and body fields (`body.metadata.user_id`) with the user's name; the first present one counts. Order:
    `x-afterword-user`, these headers, the body's `user`, these body fields."""
    conversation_from: tuple[NameSource, ...] = CONVERSATION_FROM
    """The same for the conversation, after `x-afterword-conversation` and `metadata.conversation`."""
    train: bool = True
    """Default consent to training for requests without `metadata.train`."""
    upstream: str | None = None
    """URL of an OpenAI-compatible server, with any base path, or of several with commas between them; none starts the
    embedded engine."""
    upstream_model: str | None = None
    """The upstream's model behind NAME, the base of all adapters. Default: `serve.model` if set and listed, else the
    first listed chat model. Required for an upstream that lists no models."""
    upstream_key: str | None = None
    """API key for the upstream."""
    upstream_timeout: Seconds = 600.0
    """Seconds without a byte from the upstream until the request fails with 504."""
    model: str = "smollm2-135m-instruct"
    """Model of the embedded engine: the built-in name, a local folder or a hub id."""
    device: Device = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """"auto", "bfloat16" or "float32"."""
    max_batch: Count = 32
    """Concurrent requests of the engine; further requests wait."""
    prefix_mib: CountOrZero = 384
    """MiB that the engine keeps of prompts' keys, so that the next turn of a conversation reads only what is new:
    17,000 tokens of the built-in model. 0 keeps none; reuse changes no bit of an answer."""
    max_tokens: CountOrZero | None = None
    """Token limit of answers for requests without one; 0 sets none. Default: 512 for the built-in model, 4096 for other
    models of the engine, none for an upstream."""
    upstream_sampling: Literal["unknown", "plain"] = "unknown"
    """The upstream's defaults for temperature, top_p, top_k, min_p and repetition_penalty. "plain": none from the
    model's folder (vLLM with `--generation-config vllm`). "unknown": estimators that need samples of the model's own
    distribution exclude answers to requests that leave one unset."""
    on_full_context: Literal["drop_oldest", "error"] | None = None
    """For messages longer than the model's context: drop the oldest turns but keep system messages and the newest
    message ("drop_oldest", the engine's default), or return an error ("error", an upstream's default)."""
    episode_turns: Count = 1000
    """Limit of requests of one episode (docs/episodes.md); it ends as truncated, and further requests get an error."""
    episode_tokens: Count = 1_000_000
    """The same for the tokens of its answers."""
    traces: str | None = None
    """URL of an OpenTelemetry collector (OTLP/HTTP), such as "http://127.0.0.1:4318", for traces without anybody's
    words; needs the extra `otel`."""
    max_adapters: Count = 64
    """Adapters on the model server at once; beyond it the least recently used one is unloaded until it is asked for.
    The default channel's stay."""
    episode_seconds: Seconds = 86_400.0
    """The same for its age."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """`[train]`: interactions and recipe of a training run."""

    recipe: str = "follow-ups"
    """Name of a recipe; see docs/recipes."""
    learning_rate: float | None = None
    """Overrides the recipe's learning rate."""
    epochs: int | None = None
    """Overrides the recipe's number of epochs."""
    fresh: int | None = None
    """Overrides the number of epochs over answers newly generated by the student."""
    context: str | None = None
    """Overrides how hindsight is shown to the teacher (docs/recipes); "shuffled" and "none" are controls."""
    template: str | None = None
    """Template around the hindsight, with the fields {hindsight} and {answer} (the served answer)."""
    template_praise: str | None = None
    """Template for positive hindsight; default: `template`."""
    experience: str | None = None
    """Text that the recipe "opcd" distils into the weights."""
    teacher: str | None = None
    """External teacher model for recipes such as "gkd": a folder, a hub id or the built-in name."""
    verifier: str | None = None
    """Reward function for recipes such as "grpo": `package.module:function`, called with the turn and the answer's
    text; returns a number."""
    off_policy: bool = False
    """Also train on turns without served token ids (imported logs), re-tokenised and labelled as such."""
    max_tokens: int | None = None
    """Overrides the token limit of a prompt with its answer; longer interactions are excluded and counted."""
    redact: str | None = None
    """Redaction before training; default: `collect.redact`."""
    revise: Literal["off", "context", "target"] = "off"
    """Regenerate disliked answers with the user's words in the prompt. Revisions better than the draft are shown to the
    teacher ("context"), or imitated off-policy ("target", with the recipe "sft")."""
    max_revisions: CountOrZero = 64
    """Limit of regenerated answers per run; the newest are taken."""
    stop_rules: bool = True
    """Stop a run early on collapse or drift of the student; see docs/training.md."""
    min_interactions: CountOrZero = 8
    """With fewer interactions `train` ends with "nothing to do"."""
    max_interactions: Count = 512
    """Limit of interactions per run; the newest trainable ones are taken."""
    replay: Factor = 0.0
    """Interactions learned by the served adapter that are trained again, per new interaction, drawn at random: less
    forgetting, longer runs."""
    seed: int = 0
    """Seed of the order of interactions and of the adapter's initial values."""
    workers: Count = 1
    """Processes of a run on this machine, one a GPU or a share of the cores each; a lost one costs at most four
    steps."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Other arguments of the recipe, as `afterword recipes show NAME` lists them; see docs/training.md."""


EPISODE_RECIPES = frozenset(
    ("episode-grpo", "episode-sdar", "skill-sd", "opid", "tamtrl", "episode-sdpo", "episode-opd", "episode-hindsight")
)
"""Recipes over the turns of episodes; others become one with `train.options.data = "episodes"`."""


def trains_episodes(train: TrainConfig) -> bool:
    """True when a training takes the turns of episodes instead of interactions with users."""
    default = "episodes" if train.recipe in EPISODE_RECIPES else "interactions"
    return bool(train.options.get("data", default) == "episodes")


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """`[evaluate]`: comparison of a candidate with the served version."""

    suites: tuple[str, ...] = ("holdout", "collapse", "forgetting", "earlier-wins", "privacy", "safety")
    """Default suites; see docs/evaluation.md."""
    max_interactions: Count = 64
    """Limit of held-out interactions; the newest are taken."""
    max_tokens: Count = 96
    """Token limit of an answer."""
    min_answers: Count = 64
    """Minimum number of answers per arm for `collapse` and `privacy`; users' prompts without a reaction, then up to 64
    built-in ones, fill the gap. Fewer answers widen the intervals, so the gate rejects more."""
    seed: int = 0
    """Sampling seed of both arms and seed of the bootstrap."""
    folds: Literal[0, 2, 3, 4, 5] = 0
    """2 to 5 train as many adapters for the evaluation alone, each without its share of the training conversations
    (cross-fitting); 0 trains none."""
    borrow: bool = True
    """Without folds, the candidate of an earlier round helps to evaluate this one, on conversations begun since."""
    looks: Count = 1
    """Interim analyses of the correction needed, before answers are generated; 4 stops early on a clear result."""
    checks: dict[str, str] = dataclasses.field(default_factory=dict)
    """Task -> checker of its answers: "json", "python", "regex:PATTERN" or "command:PROGRAM ARGS"."""
    judge: str | None = None
    """URL of an OpenAI-compatible server with a judge model, which compares the answers of both arms."""
    judge_model: str = "judge"
    """The judge's model name."""
    judge_key: str | None = None
    """API key for the judge."""
    judge_timeout: Seconds = 60.0
    """Time limit of one comparison, in seconds."""
    canaries: str | None = None
    """File of planted secrets for the suite `privacy`: a JSON object {"prefix", "secret"} per line."""
    ifeval_prompts: Count = 48
    """Number of IFEval prompts, spread over the kinds of instruction; at most 541."""
    environment: str | None = None
    """Environment of the suite `episodes`, by its name (docs/agents.md)."""
    episodes: Count = 96
    """Episodes of each arm in the suite `episodes`, over the held-out tasks in turn."""


@dataclass(frozen=True, slots=True)
class CycleConfig:
    """`[cycle]`: start conditions of `cycle --watch`."""

    interval: Seconds = 30.0
    """Seconds between polls of the store."""
    min_new: Count = 32
    """New training interactions since the last candidate that start a round."""


@dataclass(frozen=True, slots=True)
class ForecastConfig:
    """`[forecast]`: the prediction before a round of `cycle`."""

    before_cycle: bool = True
    """Predict the gain before a round of `cycle` and skip hopeless rounds. Needs a calibration of the base model."""
    prompts: Count = 64
    """Most prompts of the measurement."""
    min_prompts: Count = 12
    """Fewer prompts than this predict nothing: the round starts without a prediction."""
    cost: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Largest share of the training's tokens that the measurement may cost; limits its prompts."""
    least_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Probability of passing the gate below which a round is skipped."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """`[store]`: where data lies besides the data directory."""

    artifacts: str | None = None
    """Object store for adapters that all machines read, such as "s3://bucket/folder"; needs the extra `objects`."""


@dataclass(frozen=True, slots=True)
class PrivacyConfig:
    """`[privacy]`: redaction of stored data."""

    redact_stored: Literal["off", "rules", "presidio"] = "off"
    """Redact private data in turns and feedback before storage, from the gateway and from imports. Redacted turns lose
    their token ids, so they are never on-policy. `collect.redact` redacts hindsight independently of this."""


BUILT_IN: dict[str, type] = {
    "serve": ServeConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "cycle": CycleConfig,
    "forecast": ForecastConfig,
    "privacy": PrivacyConfig,
    "store": StoreConfig,
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


def check_section(name: str, settings: Any) -> None:
    """Checks a section that code has built, for its `__post_init__`: `resolve` sees only values that were given.

    Args:
        name: Name of the section, for the message.
        settings: Instance of its dataclass.

    Raises:
        ConfigError: The first value that its annotation excludes.
    """
    kind: type = type(settings)
    for field in _fields(kind):
        value = getattr(settings, field.name)
        try:
            _adapter(kind, field.name).validate_python(value, strict=True)
        except ValidationError as error:
            key = f"{name}.{field.name}"
            raise ConfigError(f"{key} = {value!r} is invalid: {_reason(error)}.", param=key) from error


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
        if environ[name]:  # empty is unset: a compose file cannot take a variable away
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
    # Sections that check themselves do so in `Config.get`: until then `config show` can print an invalid value.
    whole = not hasattr(kind, "__post_init__")
    for candidate in (value, str(value)):  # a name may look like a number: AFTERWORD_SERVE_NAME=7
        try:
            return _adapter(kind, field, whole).validate_python(candidate, strict=isinstance(candidate, bool))
        except ValidationError as error:
            reason = _reason(error)
    raise ConfigError(f"{key} = {value!r} (from {source}) is invalid: {reason}.", param=key)


@cache
def _adapter(kind: type, field: str, bounds: bool = True) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(kind, include_extras=bounds)[field])


def _reason(error: ValidationError) -> str:
    """The first reason, with the entry of a table or list that it is about."""
    first = error.errors(include_url=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    return reason if not first["loc"] else f"{'.'.join(map(str, first['loc']))}: {reason}"


def _nearest(key: str, settings: Mapping[tuple[str, str], Setting]) -> str:
    known = [f"{section}.{name}" for section, name in settings]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else " See `afterword config show`."
