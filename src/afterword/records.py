"""Defines the frozen records that flow through Afterword, in the order of their creation.

    Turn -> Feedback -> Interaction (or Skip) -> Candidate -> Report -> Verdict -> Release

An Episode stands beside Turn: the turns of one run of an agent carry its id.

Every record has an `id`, a `created_at` (Unix seconds, UTC) and a `schema` version, and converts to JSON and back.
Owns the field names; imports only `kinds`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any, ClassVar, Literal, Self

from afterword.kinds import KINDS

SCHEMA_VERSION = 1

Json = dict[str, Any]

FEEDBACK_KINDS = (*KINDS, "retraction")
SOURCES = ("end_user", "api", "detector", "reviewer")
BESIDE = ("declared", "task")
"""Values of `Turn.automated` for requests beside a conversation (a title, a summary): the answer is no part of it."""
SCOPES = ("global", "task", "team", "user")


def not_to_imitate(message: Json) -> bool:
    """True when a file marks this answer as not to be imitated (OpenAI's `"weight": 0`, and other formats' marks after
    import).
    """
    weight = message.get("weight")
    return isinstance(weight, int | float) and not isinstance(weight, bool) and weight == 0


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_hash(*parts: Any) -> str:
    """Hashes values: equal content gives an equal id.

    Args:
        parts: JSON-compatible values.

    Returns:
        32 hex digits of BLAKE2b over their canonical JSON.
    """
    try:  # texts only, by far the most: what the encoder would write, in a third of its time
        text = f"[{','.join(map(encode_basestring, parts))}]"
    except TypeError:
        text = _CANONICAL.encode(parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def new_id(prefix: str) -> str:
    """Returns a new id that sorts by time: prefix, 12 hex digits of milliseconds, 16 random ones."""
    return f"{prefix}-{int(time.time() * 1000):012x}{os.urandom(8).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Base of all records."""

    TABLE: ClassVar[str]

    id: str
    """Unique within its kind. A turn's id is the id of the HTTP answer; derived records use content hashes."""
    created_at: float = field(default_factory=time.time)
    """Unix seconds, UTC."""
    schema: int = SCHEMA_VERSION
    """Version of the record's fields."""

    def to_dict(self) -> Json:
        """Returns all fields as JSON-compatible values (tuples become lists)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        """Inverse of `to_dict`.

        Raises:
            TypeError: If a key is unknown (a newer version wrote it) or missing.
        """
        flat, nested = _TUPLES.get(cls) or _tuple_fields(cls)
        values = dict(data)
        for name in flat:
            if isinstance(value := values.get(name), list):
                values[name] = tuple(value)
        for name in nested:
            if value := values.get(name):
                values[name] = tuple(map(tuple, value))
        return cls(**values)


_TUPLES: dict[type[Record], tuple[tuple[str, ...], tuple[str, ...]]] = {}
"""Cached by record class: rows are read by the hundred thousand."""


def _tuple_fields(kind: type[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields that JSON turns into lists: tuples, and those of tuples."""
    types = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    flat = tuple(name for name, text in types.items() if text.startswith("tuple"))
    _TUPLES[kind] = flat, tuple(name for name in flat if types[name].startswith("tuple[tuple"))
    return _TUPLES[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Record):
    """One assistant answer as it was served.

    Example: Turn(id="chatcmpl-0193...", messages=({"role": "user", "content": "Why is the sky blue?"},),
    answer={"role": "assistant", "content": "Because ..."}, prompt_ids=(1, 9690), completion_ids=(5985, 2),
    logprobs=(-0.3, -0.01), sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}, model="smollm2",
    adapter=None, finish_reason="stop", user="ada", conversation="c1")
    """

    TABLE: ClassVar[str] = "turns"

    messages: tuple[Json, ...]
    """The conversation as the client sent it, OpenAI's message objects, oldest first."""
    answer: Json
    """The assistant message that was served (also when it was cut off)."""
    prompt_ids: tuple[int, ...] | None = None
    """Token ids of the rendered prompt, as the model server reports them; None when it does not."""
    completion_ids: tuple[int, ...] | None = None
    """Token ids of the answer, the end-of-turn token included when the answer ended by itself."""
    logprobs: tuple[float | None, ...] | None = None
    """Log-probability (nats) of each completion id under the model's plain softmax; None entries are missing, never
    0.0."""
    sampling: Json = field(default_factory=dict)
    """Sampling parameters of the request: temperature, top_p, max_tokens, stop, seed."""
    model: str = ""
    """Base model as the upstream names it."""
    adapter: str | None = None
    """Immutable adapter version that answered (`NAME@v000001`), None for the base model."""
    finish_reason: str | None = None
    """"stop", "length", "tool_calls", "content_filter"; "aborted" when the client left, "error" when the
    upstream broke off."""
    user: str | None = None
    """User, as the client names them."""
    key: str | None = None
    """Public id of the API key that was used; pairs are only made within one key."""
    conversation: str | None = None
    """The conversation as the client names it, or that of the previous turn."""
    previous: str | None = None
    """Turn that this one continues, if it was named or recognised."""
    task: str | None = None
    """Slice of work (`code`, `support` ...)."""
    team: str | None = None
    """Group of users."""
    thread: str | None = None
    """The end of the conversation, the answer included, as fingerprints by which it is found (`chat.trail`). Turns of
    older versions have the hash of the whole conversation (`chat.canonical.thread_hashes`)."""
    tools: tuple[Json, ...] | None = None
    """Tool definitions of the request."""
    usage: Json = field(default_factory=dict)
    """Token counts as the upstream reports them."""
    consent: bool = True
    """May this turn be trained on?"""
    source: str = "gateway"
    """"gateway" or "import:FORMAT"."""
    missing_ids: str | None = None
    """Reason for missing token ids; such a turn is never trained as on-policy."""
    seconds: float | None = None
    """From the request to the end of the answer."""
    unit: str | None = None
    """Unit of canary assignment: a hash of the user, of the conversation, or of its first user message."""
    canary: str | None = None
    """The canary release under which the turn was given its adapter; whether the unit is in its share says which
    arm that was. None outside of one, and for turns that named a version themselves."""
    unlinked: str | None = None
    """Why the request continues no turn although it has a history: "unmatched", "ambiguous", "unsure" ..."""
    automated: str | None = None
    """Why the newest message of the request is no person's (`chat.machine.Origin`); None: a person's, as far as is
    known."""
    sampled_logprobs: tuple[float | None, ...] | None = None
    """Log-probability (nats) of each completion id under the distribution that it was drawn from (temperature, masks),
    as the embedded engine reports it. None entries: a part of the distribution could not be drawn (top-p, temperature
    0). None: it is `logprobs`, or unknown where `sampling` is not plain."""
    episode_id: str | None = None
    """The episode (`Episode`) that this turn is a part of. Its parent in the tree of turns is `previous`."""
    episode_index: int | None = None
    """Position among the requests of the episode, from 0, in the order of arrival; branches have positions of their
    own. None: unknown."""

    @property
    def on_policy(self) -> bool:
        """True when the exact served ids are known, so that the turn can be trained as it was sampled."""
        return bool(self.prompt_ids) and bool(self.completion_ids)


EPISODE_STATUS = ("running", "finished", "failed", "truncated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode(Record):
    """One run of an agent on a task.

    The row is written at the start and never changed; `EpisodeEnd` rows and feedback of the kind `outcome` follow.
    `store.episodes` returns it with these applied. Example: Episode(id="ep-51...", task_id="walk/7", seed=7,
    harness="smolagents", started_at=1.7e9, status="finished", outcome=1.0)
    """

    TABLE: ClassVar[str] = "episodes"

    task_id: str | None = None
    """The task; episodes of one task form the group of a baseline."""
    seed: int | None = None
    """Seed of the environment."""
    harness: str | None = None
    """The program that ran the agent."""
    parent_id: str | None = None
    """Episode that started this one (sub-agents)."""
    started_at: float = field(default_factory=time.time)
    """Unix seconds, UTC."""
    ended_at: float | None = None
    """Unix seconds, UTC; None while it runs."""
    status: str = "running"
    """One of EPISODE_STATUS. "truncated": a limit ended it; "failed": the harness or its environment broke off."""
    reason: str | None = None
    """Why it ended, as a short code: a limit (`turns`, `tokens`, `age`) or the word of its harness."""
    outcome: float | None = None
    """The newest reward of the whole run; None: none yet, or it cannot be scored."""
    rubric: Json = field(default_factory=dict)
    """Rubric item -> its newest reward."""
    metrics: Json = field(default_factory=dict)
    """Name -> number, as the harness or environment reports."""
    metadata: Json = field(default_factory=dict)
    """All other fields that the client sent."""
    user: str | None = None
    """User for whom the agent ran."""
    key: str | None = None
    """Public id of the API key that started it; another key cannot see it."""
    source: str = "gateway"
    """"gateway", "environment" or "import:FORMAT"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback(Record):
    """Something that happened after a turn.

    Example: Feedback(id="fb-1", turn="chatcmpl-0193...", kind="follow_up", text="Shorter, please.",
    source="detector")
    """

    TABLE: ClassVar[str] = "feedback"

    turn: str
    """Id of its turn, which may arrive later (the feedback is then held); of an episode with the kind `outcome`."""
    kind: str
    """One of FEEDBACK_KINDS. "retraction" takes back the feedback named in `retracts`."""
    text: str | None = None
    """The user's words: follow_up, comment, demonstration, tool_rejected."""
    final_text: str | None = None
    """`edited`: the answer as the user left it."""
    value: float | None = None
    """`rating`: -1 .. 1. `outcome`: any reward; None cannot be scored."""
    exit_code: int | None = None
    """`executed`, `tests`."""
    output: str | None = None
    """`executed`, `tests`: what the environment printed."""
    next_turn: str | None = None
    """`retried`, `regenerated`, `follow_up`: the turn that came next."""
    retracts: str | None = None
    """`retraction`: id of the feedback that is taken back."""
    user: str | None = None
    """Who gave it."""
    occurred_at: float | None = None
    """Time of the event according to the client (Unix seconds)."""
    source: str = "api"
    """One of SOURCES."""
    metadata: Json = field(default_factory=dict)
    """All other fields that the client sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction(Record):
    """The training example (x, y, o): a turn and the hindsight that its feedback gives.

    Example: Interaction(id="9f...", turn="chatcmpl-0193...", feedback=("fb-1",), kind="follow_up",
    hindsight="Shorter, please.", polarity=-1, weight=1.0, split="train")
    """

    TABLE: ClassVar[str] = "interactions"

    turn: str
    """The turn whose completion ids are scored."""
    feedback: tuple[str, ...]
    """The feedback rows it was made from."""
    kind: str
    """Kind of the deciding feedback."""
    hindsight: str
    """Privileged text for the teacher: the user's reaction in words. Empty: no distillation signal."""
    polarity: int
    """-1 the user wants something else, +1 the user is content, 0 unknown."""
    weight: float
    """Strength of the signal, 0 .. 1 and more."""
    split: Literal["train", "holdout"]
    """Fixed at collection by a hash of the conversation; a holdout interaction is never trained on."""
    on_policy: bool = True
    """The turn has its served token ids."""
    user: str | None = None
    """Who gave the feedback."""
    task: str | None = None
    """Slice of the turn."""
    team: str | None = None
    """Group of users of the turn."""
    scope: str = "global"
    """One of SCOPES. "user": a standing request of one person; excluded from shared training until others request the
    same."""
    category: str = ""
    """Category that the detectors assigned: `correction`, `complaint`, `constraint`, `question` ..."""
    confidence: float = 1.0
    """Confidence of the category, 0 .. 1."""
    spans: tuple[tuple[int, int], ...] = ()
    """Edits: the characters [start, end) of the answer that the user changed or removed; an empty span is a place
    where something was put in. Refused tool calls: what lies behind the answer's words. Their tokens weigh most."""
    redacted: tuple[str, ...] = ()
    """Kinds of private data that were taken out of the hindsight."""
    sketch: str = ""
    """MinHash of request, answer and hindsight, for the search for near duplicates."""
    episode_id: str | None = None
    """The episode of its turn, for interactions of the kind `outcome`; recipes over episodes train those alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip(Record):
    """Feedback that did not become an interaction, with its reason. Example: Skip(id="51...", feedback="fb-2",
    turn="chatcmpl-0193...", reason="thanks", detail="the follow-up only says thank you: 'Thanks!'")"""

    TABLE: ClassVar[str] = "skips"

    feedback: str
    """The feedback that teaches nothing (or nothing yet)."""
    turn: str
    """The turn it is about."""
    reason: str
    """A short code that is counted: `thanks`, `off_topic`, `no_turn`, `no_text`, `retracted` ..."""
    detail: str
    """One sentence for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Record):
    """A trained adapter. Example: Candidate(id="cand-01...", path="adapters/cand-01...", base="smollm2",
    parent=None, interactions=("9f...",), recipe={"name": "sdpo-interactions"}, metrics={"loss": 0.2})"""

    TABLE: ClassVar[str] = "candidates"

    path: str
    """Adapter folder, relative to the data directory: plain PEFT plus `afterword.json`."""
    base: str
    """Base model that it was trained on."""
    parent: str | None
    """Candidate whose adapter it started from, None for a fresh one."""
    interactions: tuple[str, ...]
    """Ids of the interactions it was trained on, in training order without repetition."""
    recipe: Json
    """The resolved recipe."""
    metrics: Json = field(default_factory=dict)
    """Final metrics of the run."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """An interaction that is not trained. `reason` is a short code that is counted."""

    interaction: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A training run before it starts: made once by selection, shown by dry runs, executed and resumed by training."""

    candidate: str
    """Id of the candidate that the run writes: a hash of interactions, parent, model and settings."""
    interactions: tuple[str, ...]
    """In the order of training: those trained again first, then the new ones, oldest first."""
    parent: str | None
    """Candidate whose adapter the run starts from; None starts a new one."""
    model: str
    settings: Json
    """`[train]`."""
    weights: dict[str, float] = field(default_factory=dict)
    """Interaction -> factor on its weight, where that is not 1: staleness and the caps on loud users."""
    selection: Json = field(default_factory=dict)
    """The selection in numbers, for the candidate's metrics."""
    replayed: int = 0
    """How many of the interactions, the first ones, the parent was trained on already."""
    waiting: int = 0
    """Selected interactions; `max_interactions` and the balance of praise leave some for a later run."""
    excluded: tuple[Excluded, ...] = ()
    """Those of `interactions` that the model cannot be trained on. Empty when the plan was made without a model."""
    steps: int | None = None
    """Optimiser steps; None without a model."""

    def to_dict(self) -> Json:
        """Returns all fields as JSON-compatible values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        """Inverse of `to_dict`; fields missing in an earlier version take their defaults."""
        known = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        lists = {"interactions": tuple(data["interactions"])}
        return cls(**{**known, **lists, "excluded": tuple(Excluded(**one) for one in data.get("excluded", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Record):
    """Scores of a candidate, paired with those of the served adapter. Example: Report(id="rep-01...",
    candidate="cand-01...", against=None, suites={"holdout": {"n": 32, "delta": {"value": 0.4, "low": 0.2,
    "high": 0.6}}})"""

    TABLE: ClassVar[str] = "reports"

    candidate: str
    """The candidate that was measured."""
    against: str | None
    """Candidate that was served at the time, None for the base model."""
    suites: Json
    """Suite name -> its metrics; every metric is {value, low, high, n}."""
    examples: tuple[Json, ...] = ()
    """Answers side by side."""
    about: Json = field(default_factory=dict)
    """Subject of the measurement: `adapter_hash` (bytes of the candidate's folder), base, settings, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Record):
    """Pass or fail, each reason a sentence. Example: Verdict(id="ver-01...", candidate="cand-01...",
    report="rep-01...", passed=True, reasons=("holdout: better by 0.40 [0.20, 0.60] on 32 interactions",))"""

    TABLE: ClassVar[str] = "verdicts"

    candidate: str
    """The candidate that was judged."""
    report: str
    """The report it was judged by."""
    passed: bool
    """May it be released?"""
    reasons: tuple[str, ...]
    """Sentences with their numbers; all of them, not only the failing ones."""
    override: Json | None = None
    """{by, why} when a person decided against the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Record):
    """ "Channel C serves adapter A because of verdict V". Example: Release(id="rel-01...", channel="default",
    adapter="afterword@v000001", candidate="cand-01...", path="adapters/cand-01...", verdict="ver-01...",
    previous=None, action="publish", why="the gate passed")"""

    TABLE: ClassVar[str] = "releases"

    channel: str
    """Whose requests it is about: "default", or a scope and a task such as "team:legal/task:code"."""
    adapter: str | None
    """Immutable version name; None when the channel has nothing of its own any more: what lies beneath is served,
    the wider channel and at last the base model."""
    candidate: str | None
    """The candidate behind the version, None as above."""
    path: str | None
    """Adapter folder relative to the data directory, None as above."""
    verdict: str | None
    """Why; None only for a rollback."""
    previous: str | None
    """The release of this channel before it."""
    action: Literal["publish", "canary", "promote", "rollback"]
    """How it came about. "canary": a share of the users gets it, everyone else what was served before; "promote":
    a canary proved itself and everyone gets it."""
    why: str
    """One sentence."""
    share: float | None = None
    """`canary`: the share of the units that gets the adapter, 0 .. 1."""
    terms: Json = field(default_factory=dict)
    """Fixed before it begins: after which rows its turns and feedback are counted; for a canary also what decides."""
    evidence: Json = field(default_factory=dict)
    """The metrics behind the decision: both arms, differences with their intervals, the rows they were read
    from."""
    manifest: Json = field(default_factory=dict)
    """Hashes of the adapter's files, of report, verdict and the release before, and a signature over all of it."""

    def gets(self, unit: str) -> bool:
        """True when a unit is in the share of the canary; constant for one canary, drawn anew for the next."""
        return int(content_hash("canary", self.id, unit)[:8], 16) < (self.share or 0.0) * 2**32


RECORDS: tuple[type[Record], ...] = (
    Turn, Episode, Feedback, Interaction, Skip, Candidate, Report, Verdict, Release,
)  # fmt: skip
"""The spine, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review(Record):
    """A reviewer's decision on an interaction; the newest counts. Example: Review(id="rev-01...",
    interaction="9f...", decision="reject", by="ada", why="the user quotes someone else")"""

    TABLE: ClassVar[str] = "reviews"

    interaction: str
    """The interaction it is about."""
    decision: Literal["approve", "reject", "withdraw"]
    """A rejected interaction trains nothing and is measured nowhere. "withdraw" takes this reviewer's earlier decision
    back: the interaction counts as not reviewed."""
    by: str = ""
    """Who decided."""
    why: str = ""
    """The reason, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRatio(Record):
    """Effect of an interaction's hindsight on the model before training: mean |log p(y|x,o) - log p(y|x)|
    over the answer's tokens (nats), for the user's own words and for words that are not about this answer. Example:
    SignalRatio(id="51...", interaction="9f...", model="smollm2", real=0.61, shuffled=0.30, neutral=0.12, tokens=48)"""

    TABLE: ClassVar[str] = "relevances"
    """The name of older databases. "Relevance" alone is how much a follow-up is about the answer, by the detectors."""

    interaction: str
    """The interaction it is about."""
    model: str
    """The model that scored."""
    real: float
    """Under the user's own words."""
    shuffled: float | None
    """Under words that other users of the same slice wrote after other answers; None when there are none."""
    neutral: float
    """Under words that say nothing ("Okay.")."""
    tokens: int
    """Scored tokens of the answer."""

    @property
    def control(self) -> float:
        """The larger of both controls, in nats: the effect of unrelated words on this answer."""
        return max(self.neutral, self.shuffled or 0.0)

    @property
    def ratio(self) -> float:
        """Signal over control; about 1 for words that fit any answer."""
        return self.real / self.control if self.control > 0 else float(self.real > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision(Record):
    """The model's second draft, written with the user's reaction in view. Example: Revision(id="77...",
    interaction="9f...", model="smollm2", text="Six minutes.", draft_score=-0.9, score=-0.4, kept=True)"""

    TABLE: ClassVar[str] = "revisions"

    interaction: str
    """The interaction it is about."""
    model: str
    """The model that wrote and scored it."""
    text: str
    """The second draft."""
    draft_score: float
    """Hindsight score of the served answer (nats a token)."""
    score: float
    """Hindsight score of the revision."""
    kept: bool
    """Is it better than the draft? A weaker one is never shown to a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerAdvantages(Record):
    """The token advantages of one answer under its hindsight and under a control text, as a heat map shows them.
    Example: AnswerAdvantages(id="ad-51...", interaction="9f...", model="smollm2", tokens=("Six", " minutes"),
    without=(-0.4, -1.2), with_hindsight=(-0.3, -2.0))"""

    TABLE: ClassVar[str] = "advantages"

    interaction: str
    """The interaction whose turn and hindsight were scored."""
    model: str
    """The model that scored."""
    tokens: tuple[str, ...] = ()
    """Text of each served token; empty where a later token completes the character."""
    without: tuple[float, ...] = ()
    """Log-probability (nats) of each token after the conversation alone."""
    with_hindsight: tuple[float, ...] = ()
    """The same with the hindsight in view."""
    control: str | None = None
    """Interaction or feedback whose words are the control; None without one. Its words may be another user's: they are
    looked up when they are shown."""
    with_control: tuple[float, ...] = ()
    """The same with the control's words in view."""
    error: str = ""
    """Why the answer could not be scored; empty when it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRequest(Record):
    """A person asks for work on an interaction, which another process does. Example: WorkRequest(id="req-51...",
    interaction="9f...", kind="heatmap", by="ada")"""

    TABLE: ClassVar[str] = "requests"

    interaction: str
    """The interaction it is about."""
    kind: Literal["review", "heatmap"]
    """"review": put it into the review queue; "heatmap": score its tokens (`AnswerAdvantages`)."""
    by: str = ""
    """Who asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm(Record):
    """A version that is served does worse than before. Example: Alarm(id="al-51...", channel="default",
    release="rel-01...", adapter="afterword@v000002", against="afterword@v000001", why="approval fell by 0.41")"""

    TABLE: ClassVar[str] = "alarms"

    channel: str
    """Where it is served."""
    release: str
    """The release by which it is served."""
    adapter: str | None
    """The version; None is the base model."""
    against: str | None
    """What it was compared with: the version before it, or its own first turns."""
    why: str
    """One sentence with the numbers."""
    evidence: Json = field(default_factory=dict)
    """Both sides' metrics, the difference with its interval, the turns that were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAttempt(Record):
    """A round of `cycle --watch` that ended; its interactions start no other one. Example: RoundAttempt(id="att-51...",
    settings="9f...", interactions=("9f...",), stage="training", error="nothing_to_do")"""

    TABLE: ClassVar[str] = "attempts"

    settings: str
    """Hash of the channel and of the settings that decide how a round ends; under others the same interactions may
    start one."""
    interactions: tuple[str, ...]
    """Interactions that started the round, also those that the training excluded."""
    candidate: str | None = None
    """The candidate; None when the round failed."""
    stage: str | None = None
    """The stage that failed."""
    error: str | None = None
    """Kind of the error (`AfterwordError.kind`); never its message, which may quote a user."""
    transient: bool = False
    """True when a model server or the database failed: the same round may succeed later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(Record):
    """The predicted gain of a round, made before it began. Example: Prediction(id="pre-51...", base_hash="f7...",
    unit="nats", context="appended", advice="train", says="train: ...", gain={"value": 0.2, "low": 0.1, "high": 0.3})"""

    TABLE: ClassVar[str] = "predictions"

    base_hash: str
    """Base model's weights."""
    unit: str
    """"share" or "nats": the unit of gap and gain."""
    context: str
    """The teacher's context."""
    advice: str
    """"train", "collect", "skip" or "unknown"."""
    says: str
    """The advice in a sentence; numbers and settings only."""
    gap: Json = field(default_factory=dict)
    """The measured gap, {value, low, high, n}."""
    gain: Json | None = None
    """The predicted gain with its 90 % interval; None when it is unknown."""
    gate_probability: float | None = None
    """Predicted probability that the gate passes."""
    prompts: int = 0
    """Prompts that were measured on."""
    cost: Json = field(default_factory=dict)
    """Tokens of the measurement and of the training, and predicted CPU minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionOutcome(Record):
    """The outcome of a prediction. Example: PredictionOutcome(id="out-51...", prediction="pre-51...",
    candidate="cand-01...", report="rep-01...", gain=0.18, passed=True)"""

    TABLE: ClassVar[str] = "prediction_outcomes"

    prediction: str
    """The prediction."""
    candidate: str
    """The candidate that the round trained."""
    report: str
    """Its report."""
    gain: float | None
    """The measured gain in the prediction's unit; None when the report lacks it."""
    passed: bool
    """Did the gate pass?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEnd(Record):
    """An episode ended; of several the newest counts. Example: EpisodeEnd(id="end-51...", episode="ep-51...",
    status="truncated", reason="turns", ended_at=1.7e9)"""

    TABLE: ClassVar[str] = "episode_ends"

    episode: str
    """The episode."""
    status: str
    """One of EPISODE_STATUS but "running"."""
    ended_at: float
    """Unix seconds, UTC."""
    reason: str | None = None
    """As `Episode.reason`."""
    metrics: Json = field(default_factory=dict)
    """Name -> number; added to those of the episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSkill(Record):
    """What worked in an episode, for others of its task. Example: TaskSkill(id="sk-51...", task="walk/7",
    episode="ep-51...", text="Go east first.")"""

    TABLE: ClassVar[str] = "skills"

    task: str
    """`task_id` of the episodes that it is for."""
    episode: str
    """The episode that it was written of."""
    text: str
    state: str | None = None
    """Hash of what the environment said, for a skill of one step; None: the whole task."""
    user: str | None = None
    """User of the episode; it is shown in episodes of the same user alone."""


NOTES: tuple[type[Record], ...] = (
    Review, SignalRatio, Revision, AnswerAdvantages, WorkRequest, Alarm, RoundAttempt, Prediction, PredictionOutcome,
    EpisodeEnd, TaskSkill,
)  # fmt: skip
"""Rows beside the spine: notes on interactions, releases, rounds and episodes."""
