"""Encodes interactions as token ids for the student and each teacher, or excludes them with a reason.

Served ids are trained as they were served. Answers without served ids are tokenised here when the recipe asks for it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from afterword.chat.canonical import text_of
from afterword.chat.redact import redact
from afterword.chat.render import (
    Prompt,
    Tokenizer,
    check_template,
    decode,
    encode,
    encode_content,
    end_of_turn_ids,
    generation_header,
    render_prompt,
    template_arguments,
)
from afterword.chat.sampling_fields import why_not_plain
from afterword.chat.splice import spliced
from afterword.chat.trail import without_reasoning
from afterword.chat.turn_prompt import messages_before
from afterword.errors import ModelError, NothingToDo
from afterword.learn.loss.token_batch import ALONE, AnswerInfo, Group, Member
from afterword.learn.parts.anchors import GOLD
from afterword.learn.parts.contexts import (
    Context,
    FromEpisode,
    Opening,
    OwnAttempt,
    Reflection,
    Sibling,
    Skill,
    fit_hindsight,
    others,
)
from afterword.learn.parts.weights import kinds_of
from afterword.learn.recipes import Recipe
from afterword.records import Excluded, Interaction, Json, Turn, content_hash
from afterword.train.data.branches import branch_rows, with_credit
from afterword.train.data.credit import Step
from afterword.train.data.episodes import with_earlier_answers
from afterword.train.data.rows import Encoded
from afterword.train.data.token_spans import changed_positions, private_positions


@dataclass(frozen=True, slots=True)
class Example:
    """An interaction with the turn it is about."""

    interaction: Interaction
    turn: Turn
    step: Step | None = None
    """Its place in an episode, for recipes over episodes."""
    texts: tuple[tuple[str, str], ...] = ()
    """Kind of `contexts.FromEpisode` -> text."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Encoded interactions of a run, and the excluded ones."""

    rows: tuple[Encoded, ...]
    excluded: tuple[Excluded, ...]
    used: tuple[Example, ...] = field(repr=False)
    """The examples behind `rows`, in the same order."""
    limit: int
    """Most tokens of a prompt and its answer that every model of the run reads."""
    encoder: RowEncoder = field(repr=False)
    """What encoded them, for privileged text that is made later."""

    @property
    def reasons(self) -> dict[str, int]:
        """Number of excluded interactions by reason."""
        return dict(Counter(one.reason for one in self.excluded))


REMEDIES = {
    "template": "Use a model whose chat template takes these conversations, or another train.context",
    "ids_unknown": "Train the model that served these answers (serve.model)",
    "control_tokens": "Serve with the embedded engine, or with a server that reads such marks as text",
    "prompt_differs": "Train the model that served these answers (serve.model), with its own chat template",
    "off_policy": "`afterword train --off-policy` trains their text",
    "too_long": "Use a model with a longer context",
    "longer_than_max_tokens": "Raise train.max_tokens",
    "other_sampling": "Take a recipe with full-vocabulary divergences (the default), or serve at temperature 1",
    "no_hindsight": "Wait for words of users, or take a recipe that learns from votes (`afterword recipes list`)",
}
"""Remedies when nothing can be trained, by the most frequent reason."""
_LEAST = 4
"""Fewer tokens than this are no answer that a student could learn from."""


class EndIds:
    """The ids that end an answer, which may depend on the template arguments of its turn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, turn: Turn) -> tuple[int, ...]:
        """Those of a turn, as `end_of_turn_ids` gives them. ModelError where the template rejects its arguments."""
        arguments = template_arguments(turn.sampling)
        key = json.dumps(arguments, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = end_of_turn_ids(self._tokenizer, arguments)
        return self._known[key]

    @property
    def found(self) -> tuple[int, ...]:
        """Those of all turns so far, ascending."""
        return tuple(sorted({i for ids in self._known.values() for i in ids}))


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Encodes interactions of one run."""

    tokenizer: Tokenizer
    recipe: Recipe
    limit: int
    vocabulary: int
    ends: EndIds
    other: dict[str, Interaction | None]
    """For each interaction one with other words, None without any, for the control that shuffles them."""
    wishes: dict[str, list[str]]
    """What the same user asked for elsewhere, for contexts that show it together."""

    def encode(self, example: Example) -> Encoded | Excluded:
        """The interaction as ids, or its exclusion; an error excludes this interaction alone."""
        try:
            found = self._encoded(example)
        except ModelError as error:
            return Excluded(example.interaction.id, "template", error.message)
        except Exception as error:  # noqa: BLE001  the boundary of a row: the words of one user must not end a run
            detail = f"it cannot be encoded ({type(error).__name__}: {str(error)[:200]}); the others are trained"
            return Excluded(example.interaction.id, "failed", detail)
        if isinstance(found, Encoded):
            for ids in (found.completion, found.prompt, *found.teacher_prompts.values()):
                if outside := self._outside(ids):
                    return Excluded(example.interaction.id, *outside)
        return found

    def _outside(self, ids: Sequence[int]) -> tuple[str, str] | None:
        """Reason and detail when an id has no embedding in the model."""
        wrong = sorted({i for i in ids if not 0 <= i < self.vocabulary})
        if not wrong:
            return None
        text = decode(self.tokenizer, wrong[-1:], special=True) if wrong[-1] >= 0 else ""
        return "ids_unknown", f"it has the token {text[:40]!r} (id {wrong[-1]}), the model embeds {self.vocabulary} ids"

    def _encoded(self, example: Example) -> Encoded | Excluded:
        interaction, turn = example.interaction, example.turn
        if unfit := self._unfit(interaction, turn) or self._no_episode(example):
            return Excluded(interaction.id, *unfit)
        ends, turn = self.ends.of(turn), self._asked(turn)
        arguments = template_arguments(turn.sampling)
        rendered = render_prompt(self.tokenizer, turn.messages, turn.tools, arguments)
        own = rendered.ids
        served: tuple[float, ...] = ()
        if turn.on_policy:
            prompt, completion = tuple(turn.prompt_ids or ()), tuple(turn.completion_ids or ())
            if unfit := self._differs(turn, prompt, completion, rendered):
                return Excluded(interaction.id, *unfit)
            served, why = sampler_logprobs(turn)
            if why and self.needs_served and self.recipe.epochs:
                return Excluded(interaction.id, "no_logprobs", why)
            odd = why_not_plain(turn.sampling)
            unknown = not any(map(math.isfinite, served))
            if odd and unknown and self.recipe.epochs and all(t.needs_plain for t in self.recipe.terms):
                return Excluded(interaction.id, "other_sampling", odd)
        else:
            prompt = own
            # An answer that was cut by its length limit did not end there, and its end is nothing to learn.
            end = () if turn.finish_reason == "length" else ends[:1]
            body = encode_content(self.tokenizer, text_of(turn.answer.get("content")), "assistant")
            completion = (*body, *end)
        if too_long := self._too_long(len(prompt) + len(completion)):
            return Excluded(interaction.id, *too_long)
        row = self._with_teacher(interaction, turn, prompt, completion, own, dict(example.texts))
        if isinstance(row, Excluded):
            return row
        room, least = self.limit - row.longest_prompt, min(_LEAST, self.recipe.max_fresh)
        if self.recipe.fresh and self._answer(interaction).kind != GOLD and room < least:
            return Excluded(interaction.id, "no_room", f"its prompts leave {room} tokens for a fresh answer")
        text = text_of(turn.answer.get("content"))
        row = replace(
            row,
            served=served,
            group=None if example.step is None else ("task", example.step.task),
            answer=replace(
                self._answer(interaction, example.step), plain=not turn.on_policy or not why_not_plain(turn.sampling)
            ),
            private=private_positions(self.tokenizer, completion, self.recipe.redact),
            changed=changed_positions(self.tokenizer, completion, text, interaction.spans),
        )
        return self._conversation(row, arguments) if self.recipe.scored == "conversation" else row

    def _no_episode(self, example: Example) -> tuple[str, str] | None:
        if self.recipe.data == "episodes" and example.step is None:
            return "no_episode", "it is no part of an episode's task, and the recipe learns from episodes"
        return None

    def _conversation(self, row: Encoded, arguments: Json) -> Encoded | Excluded:
        """The row with the answers that its prompt holds as further spans."""
        whole = with_earlier_answers(row, self.tokenizer, self.recipe.redact, arguments)
        if len(whole.teacher_prompts) < len(row.teacher_prompts):
            return Excluded(row.interaction, "prompt_differs", "the teacher's prompt does not hold the same answers")
        return whole

    @property
    def needs_served(self) -> bool:
        """True when no term could learn anything from an answer without its log-probabilities."""
        return self.recipe.epochs > 0 and all(t.needs_served for t in self.recipe.terms)

    def _too_long(self, size: int) -> tuple[str, str] | None:
        if size > self.limit:
            return "too_long", f"{size} tokens, the model reads {self.limit}"
        if size > (most := self.recipe.max_tokens):
            return "longer_than_max_tokens", f"longer than {most} tokens ({size}): raise train.max_tokens to train it"
        return None

    def _unfit(self, interaction: Interaction, turn: Turn) -> tuple[str, str] | None:
        if wanted := self._other_kind(interaction):
            return "other_kind", f"it is of the kind {interaction.kind!r}; {self.recipe.name} learns from {wanted}"
        if interaction.turn != turn.id:
            return "wrong_turn", f"it is about turn {interaction.turn!r}, not {turn.id!r}"
        if interaction.split != "train":
            return "holdout", "it is held out for evaluation"
        if not turn.consent:
            return "no_consent", "its turn may not be trained on"
        if not 0 < interaction.weight < math.inf:
            return "no_weight", f"its weight is {interaction.weight}"
        alone = self.recipe.data == "episodes" and not all(t.context.privileged for t in self.recipe.terms)
        if (
            reads_hindsight(self.recipe)
            and not alone
            and not interaction.hindsight.strip()
            and self._answer(interaction).kind != GOLD
        ):
            return "no_hindsight", "it carries no words for the teacher to read"
        if not turn.on_policy and not self.recipe.include_off_policy and interaction.kind != GOLD:
            why = turn.missing_ids or "the served token ids are unknown"
            return "off_policy", f"{why}; include_off_policy trains its text anyway"
        if not turn.on_policy and self.needs_served:
            return "no_logprobs", "it was never sampled here, and the recipe weighs what was"
        if not turn.on_policy and not text_of(turn.answer.get("content")).strip():
            return "empty_answer", "its answer has no text"
        if not turn.on_policy and turn.answer.get("tool_calls"):
            return "tool_call", "its answer calls a tool, and without served token ids only its words could be trained"
        return None

    def _other_kind(self, interaction: Interaction) -> str | None:
        """The kinds that the recipe reads when this is none of them, else None."""
        kinds = [kinds_of(t.route) for t in self.recipe.terms]
        named = [kind for some in kinds if some is not None for kind in some]
        if None in kinds or self._answer(interaction).kind in named:
            return None
        return ", ".join(named)

    def _answer(self, interaction: Interaction, step: Step | None = None) -> AnswerInfo:
        """What is known of it beside its tokens. Where a recipe mixes in gold, answers that users were content with
        are that: they are imitated as they were served."""
        reward = float(interaction.polarity) if interaction.polarity else None
        if step is not None:
            reward = step.scored
        mixed = any(GOLD in (kinds_of(t.route) or ()) for t in self.recipe.terms)
        kind = GOLD if mixed and interaction.polarity > 0 else interaction.kind
        return AnswerInfo(kind=kind, task=interaction.task, reward=reward)

    def _asked(self, turn: Turn) -> Turn:
        """The turn without the beginning of its answer, which a request may give as its last message and whose ids end
        the served prompt in place of the generation header."""
        if turn.prompt_ids is None or len(turn.messages) < 2 or turn.messages[-1].get("role") != "assistant":
            return turn
        header = generation_header(self.tokenizer, template_arguments(turn.sampling))
        return replace(turn, messages=messages_before(turn, header))

    def _differs(
        self, turn: Turn, prompt: tuple[int, ...], completion: tuple[int, ...], own: Prompt
    ) -> tuple[str, str] | None:
        if outside := self._outside((*prompt, *completion)):
            return outside
        if prompt != own.ids:
            if own.marks and prompt == encode(self.tokenizer, own.text):
                return "control_tokens", (
                    "a message writes a mark of the chat template, which the model server read as a control token: "
                    "what it answered followed a forged turn; the embedded engine reads such marks as text"
                )
            if not self._holds(prompt, turn):
                return "prompt_differs", "its served prompt does not hold the conversation's last message"
        body = completion[:-1] if completion[-1] in self.ends.of(turn) else completion
        served, text = decode(self.tokenizer, body), text_of(turn.answer.get("content"))
        shown = decode(self.tokenizer, completion, special=True)  # a request may ask for special tokens in the text
        said = self._says(served, text, turn) or shown.strip() == text.strip()
        if not said and not turn.answer.get("tool_calls") and "�" not in served:
            return "ids_differ", f"its ids read {served[:60]!r}, its text is {text[:60]!r}"
        return None

    def _holds(self, prompt: tuple[int, ...], turn: Turn) -> bool:
        """Is this a prompt of the turn's conversation, although today's template writes another one (a date, the order
        of a schema's keys, an empty thought)? Judged by the text of the last message that has one."""
        texts = (text_of(message.get("content")) for message in reversed(turn.messages))
        last = next((text for text in texts if text.strip()), None)
        if last is None:
            return False
        read = "".join(decode(self.tokenizer, prompt, special=True).split())
        # Llama 3 writes what a tool returned as JSON
        written = (last, json.dumps(last, ensure_ascii=False)[1:-1], json.dumps(last)[1:-1])
        return any("".join(text.split()) in read for text in written)

    def _says(self, served: str, text: str, turn: Turn) -> bool:
        """Do the ids write the stored text? With a stop string the text ends before it, and a server that parses
        reasoning stores the answer without the thought."""
        if turn.sampling.get("stop") and served.startswith(text):
            return True
        if served.strip() == text.strip() or without_reasoning(served).strip() == without_reasoning(text).strip():
            return True
        parsed = turn.answer.get("reasoning_content") or turn.answer.get("reasoning")
        return bool(parsed) and served.strip().endswith(text.strip())

    def _with_teacher(
        self,
        interaction: Interaction,
        turn: Turn,
        prompt: tuple[int, ...],
        completion: tuple[int, ...],
        own: tuple[int, ...],
        texts: Mapping[str, str],
    ) -> Encoded | Excluded:
        """The row with every prompt that a teacher reads: the served one, with what the context adds to it. `own` is
        the conversation as the template writes it now."""
        prompts: dict[Context, tuple[int, ...]] = {}
        told: set[Context] = set()
        cut = 0
        for where in contexts_of(self.recipe):
            if not where.privileged or isinstance(where.hint, Sibling | OwnAttempt | Reflection):
                prompts[where] = prompt  # a hint is made in each pass
                continue
            shown = self.other.get(interaction.id, interaction) if where.shuffled else interaction
            if shown is None:
                return Excluded(interaction.id, "no_other", "no interaction of the run has other words to show instead")
            words = "\n".join((shown.hindsight, *self.wishes.get(shown.id, ())[: where.together - 1]))
            if isinstance(where.hint, Skill):
                words = dict(where.hint.by_task).get(interaction.task or "", "")
            elif isinstance(where.hint, Opening):
                words = where.hint.of(shown.hindsight)
            elif isinstance(where.hint, FromEpisode):
                words = texts.get(where.hint.kind) or texts.get("skill" if where.hint.kind == "step_skill" else "", "")
            text = redact(words, self.recipe.redact).text if where.text is None else where.text
            if not text.strip():  # nothing is shown, and no term with hindsight counts it
                prompts[where] = prompt
                continue
            found = self._shown(where, turn, prompt, completion, own, text, polarity=shown.polarity, kind=shown.kind)
            if isinstance(found, str):
                return Excluded(interaction.id, found, _NO_ROOM[found])
            prompts[where] = found[0]
            told.add(where)
            cut = max(cut, found[1])
        return Encoded(
            interaction=interaction.id,
            prompt=prompt,
            completion=completion,
            teacher_prompts=prompts,
            privileged=frozenset(told),
            weight=interaction.weight,
            on_policy=turn.on_policy,
            cut=cut,
        )

    def _shown(
        self,
        where: Context,
        turn: Turn,
        prompt: tuple[int, ...],
        completion: tuple[int, ...],
        own: tuple[int, ...],
        text: str,
        *,
        polarity: int,
        kind: str = "",
    ) -> tuple[tuple[int, ...], int] | str:
        """The prompt under a context that shows `text`, and how many of its tokens were cut; or why there is none."""
        room = self.limit - len(completion) - (len(prompt) - len(own))
        if where.where == "continue":
            body = completion[:-1] if completion[-1] in self.ends.of(turn) else completion
            ids = (*prompt, *body, *encode(self.tokenizer, where.wording.write(text, "", polarity)))
            return (ids, 0) if len(ids) <= self.limit - len(completion) else "too_long"
        seen = fit_hindsight(
            self.tokenizer,
            where,
            turn.messages,
            turn.answer,
            text,
            room=room,
            longest=self.recipe.max_hindsight if where.text is None else self.limit,
            tools=turn.tools,
            arguments=template_arguments(turn.sampling),
            polarity=polarity,
            kind=kind,
        )
        if seen is None:
            return "too_long"
        if seen.prompt.ids == own:
            return "template"
        read = spliced(own, seen.prompt.ids, prompt)
        return "prompt_differs" if read is None else (read, seen.cut)

    def shortened(self, text: str, room: int) -> str:
        """`text` redacted, and its first `room` tokens at most, or `max_hindsight` when that is less."""
        shown = redact(text, self.recipe.redact).text
        ids = encode_content(self.tokenizer, shown)
        most = max(0, min(room, self.recipe.max_hindsight))
        return shown if len(ids) <= most else decode(self.tokenizer, ids[:most])

    def hinted(self, row: Encoded, turn: Turn, where: Context, text: str, polarity: int) -> Encoded:
        """`row` with privileged text under `where` that was made for it in this pass. Without text, or where it does
        not fit, `where` shows nothing, and no term that reads it counts the row."""
        text = redact(text, self.recipe.redact).text
        if not text.strip():
            return row
        turn = self._asked(turn)
        rendered = render_prompt(self.tokenizer, turn.messages, turn.tools, template_arguments(turn.sampling))
        own, begun = rendered.ids, row.prompt[len(row.asked) :]
        found = self._shown(where, turn, row.asked, row.completion, own, text, polarity=polarity)
        if isinstance(found, str):
            return row
        told = row.privileged if isinstance(row.privileged, frozenset) else frozenset(row.teacher_prompts)
        prompts = {**row.teacher_prompts, where: (*found[0], *begun)}
        return replace(row, teacher_prompts=prompts, privileged=told | {where}, cut=max(row.cut, found[1]))


_NO_ROOM = {
    "too_long": "the conversation leaves no room for the hindsight",
    "prompt_differs": "the served prompt has no place for the hindsight",
    "template": "the chat template does not write the hindsight where the context puts it",
}


def contexts_of(recipe: Recipe) -> list[Context]:
    """Every context that the recipe reads: its teachers, references, students and writers."""
    read = [(t.teacher, t.context) for t in recipe.terms] + [(t.reference, t.reference_context) for t in recipe.terms]
    contexts = [context for teacher, context in read if teacher is not None]
    contexts += [t.student_context for t in recipe.terms if t.student_context.privileged]
    contexts += [one.context for one in recipe.generations if one.context.privileged and recipe.fresh]
    return list(dict.fromkeys(contexts))


def _encoder(
    tokenizer: Tokenizer, recipe: Recipe, limit: int, vocabulary: int, among: Sequence[Example] = ()
) -> RowEncoder:
    told = [e.interaction for e in among if e.interaction.hindsight.strip()]
    found = others([one.hindsight for one in told], seed=0)
    other = {one.id: None if i is None else told[i] for one, i in zip(told, found, strict=True)}
    check_template(tokenizer)  # without a header it is an error, not so many interactions left out
    return RowEncoder(tokenizer, recipe, limit, vocabulary, EndIds(tokenizer), other, standing_requests(among))


def newest_trainable(
    examples: Iterable[Example], tokenizer: Tokenizer, recipe: Recipe, *, limit: int, vocabulary: int, most: int
) -> list[Example]:
    """The first of `examples` of which `most` can be trained, including the untrainable ones between them.

    Untrainable interactions therefore take no places. Reads at most 8 x `most` examples.
    """
    encoder = _encoder(tokenizer, recipe, limit, vocabulary)
    chosen, good = [], 0
    for example in islice(examples, 8 * most):
        chosen.append(example)
        good += isinstance(encoder.encode(example), Encoded)
        if good == most:
            break
    return chosen


def _aged(kept: Sequence[tuple[Example, Encoded]]) -> list[Encoded]:
    newest = max((e.turn.created_at for e, _ in kept), default=0.0)
    return [replace(r, answer=replace(r.answer, age=(newest - e.turn.created_at) / 86400)) for e, r in kept]


def prepare(
    examples: Sequence[Example], tokenizer: Tokenizer, recipe: Recipe, *, limit: int, vocabulary: int
) -> Prepared:
    """Encode `examples` for a model that reads `limit` tokens; an interaction given twice is trained once.

    Raises:
        NothingToDo: every example is excluded, with the reasons.
        ModelError: the chat template cannot be trained.
    """
    prepared = encode_examples(examples, tokenizer, recipe, limit=limit, vocabulary=vocabulary)
    if not prepared.rows:
        raise NothingToDo(_nothing(len(prepared.excluded), prepared))
    return prepared


def by_content(examples: Sequence[Example]) -> list[Example]:
    """The examples ordered by a hash of their content, then by id.

    A run over them depends on their content and the seed, not on random ids or on the order of arrival.
    """

    def key(example: Example) -> tuple[str, str]:
        row, turn = example.interaction, example.turn
        said = content_hash(turn.messages, turn.answer, turn.completion_ids, row.kind, row.hindsight, row.weight)
        return said, row.id

    return sorted(examples, key=key)


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, recipe: Recipe, *, limit: int, vocabulary: int
) -> Prepared:
    """Encode as `prepare`, also when every example is excluded.

    Raises:
        ModelError: the chat template cannot be trained.
    """
    unique = list({e.interaction.id: e for e in examples}.values())
    encoder = _encoder(tokenizer, recipe, limit, vocabulary, unique)
    results = [(e, encoder.encode(e)) for e in unique]
    excluded = tuple(r for _, r in results if isinstance(r, Excluded))
    kept = [(e, r) for e, r in results if isinstance(r, Encoded)]
    if recipe.data == "episodes":
        kept = _of_episodes(kept, unique, recipe, tokenizer)
    rows = with_groups(_aged(kept))
    return Prepared(tuple(rows), excluded, tuple(e for e, _ in kept), limit, encoder)


def _of_episodes(
    kept: Sequence[tuple[Example, Encoded]], every: Sequence[Example], recipe: Recipe, tokenizer: Tokenizer
) -> list[tuple[Example, Encoded]]:
    """Rows with the credit of their turns; with `scored` "episode" a row for each branch, beside its last turn."""
    pairs = [(e.step, e.turn, row) for e, row in kept if e.step is not None]
    steps = list({e.step.turn: e.step for e in every if e.step is not None}.values())
    credited = with_credit(pairs, steps, recipe, tokenizer)
    of_turn = {e.turn.id: e for e, _ in kept}
    if recipe.scored != "episode":
        return [(of_turn[step.turn], row) for step, _, row in credited]
    return [(of_turn[step.turn], row) for (step, _, _), row in branch_rows(credited)]


def reads_hindsight(recipe: Recipe) -> bool:
    """True when a teacher of the recipe reads users' words."""
    return any(t.context.privileged and t.context.text is None and t.context.hint is None for t in recipe.terms)


def _nothing(given: int, prepared: Prepared) -> str:
    if not given:
        return "there are no interactions to train on: let users chat, then run `afterword collect`"
    why = ", ".join(f"{n} {reason}" for reason, n in sorted(prepared.reasons.items()))
    first = prepared.excluded[0]
    most = max(prepared.reasons, key=lambda reason: prepared.reasons[reason])
    remedy = REMEDIES.get(most, "docs/training.md says what each reason means")
    return (
        f"none of {given} interactions can be trained ({why}). The first, {first.interaction}: {first.detail}. {remedy}"
    )


def sampler_logprobs(turn: Turn) -> tuple[tuple[float, ...], str | None]:
    """Log-probabilities of the completion ids under the distribution that they were drawn from.

    Returns:
        One for each id (nats), NaN where there is none to compare with, and the reason when all are missing.
    """
    n, why = len(turn.completion_ids or ()), why_not_plain(turn.sampling)
    values = turn.logprobs if turn.sampled_logprobs is None else turn.sampled_logprobs
    none = (math.nan,) * n
    if values is None:
        return none, "the server reported no log-probabilities"
    if len(values) != n:
        return none, f"{len(values)} log-probabilities for {n} tokens"
    if why and turn.sampled_logprobs is None:
        return none, f"its log-probabilities are not those of the model: {why}"
    # a log-probability above 0 is none; tiny excess is rounding
    known = tuple(x if x is not None and math.isfinite(x) and x <= 1e-3 else math.nan for x in values)
    if any(map(math.isfinite, known)):
        return known, None
    if why and turn.sampled_logprobs is not None:
        return none, f"a part of the vocabulary could not be drawn: {why}"
    return none, "all of its log-probabilities are missing or not finite"


def with_groups(rows: Sequence[Encoded]) -> list[Encoded]:
    """`rows` with the statistics of the rewards of all answers to the same prompt."""
    members: dict[Hashable, list[Member]] = {}
    for row in rows:
        if row.answer.accepted:
            one = row.answer
            members.setdefault(_compared(row), []).append(Member(one.reward, one.origin, one.measures))
    groups = {
        (prompt, origin): Group(members=tuple(some)).of(origin)
        for prompt, some in members.items()
        for origin in {one.origin for one in some}
    }
    return [
        replace(r, answer=replace(r.answer, group=groups.get((_compared(r), r.answer.origin), ALONE))) for r in rows
    ]


def _compared(row: Encoded) -> Hashable:
    return row.asked if row.group is None else row.group


SAID = ("follow_up", "comment")
"""Kinds of feedback that are messages."""
MANNER = ("complaint", "constraint", "correction")
"""What the detectors call words about how an answer should be."""
LONGEST = 200
"""Characters; who writes more writes about this answer."""
_WORD = re.compile(r"[^\W\d_]{5,}")


def standing_requests(examples: Sequence[Example]) -> dict[str, list[str]]:
    """Interaction -> its user's requests about other answers of the run, nearest in time first, each text once.

    Interactions whose own words are no wish about the manner of answers, or whose user is unknown, have no entry.
    """
    ordered = sorted(
        (e for e in examples if is_standing_request(e.interaction, e.turn)),
        key=lambda e: (e.turn.created_at, e.turn.id),
    )
    groups: dict[tuple[str | None, str | None], list[Interaction]] = defaultdict(list)
    for example in ordered:
        groups[example.interaction.user, example.interaction.task].append(example.interaction)
    found: dict[str, list[str]] = {}
    for group in groups.values():
        for place, own in enumerate(group):
            near = sorted(range(len(group)), key=lambda i: (abs(i - place), i))
            texts = dict.fromkeys(group[i].hindsight.strip() for i in near)
            texts.pop(own.hindsight.strip())
            found[own.id] = list(texts)
    return found


def is_standing_request(interaction: Interaction, turn: Turn) -> bool:
    """Short words of a known user about how answers should be; less than half of them name what the answer is about."""
    said = interaction.hindsight.strip()
    if interaction.user is None or interaction.kind not in SAID or interaction.category not in MANNER:
        return False
    if interaction.polarity > 0 or not said or len(said) > LONGEST:
        return False
    first = next((m for m in turn.messages if m.get("role") == "user"), {})
    about = f"{text_of(first.get('content'))} {text_of(turn.answer.get('content'))}"
    words = set(_WORD.findall(said.lower()))
    return 2 * len(words & set(_WORD.findall(about.lower()))) < max(1, len(words))


def with_private_masked(rows: Iterable[Encoded], tokenizer: Tokenizer, mode: str) -> list[Encoded]:
    """`rows` with the tokens marked that must not be learned: for answers that the student wrote anew."""
    return [replace(row, private=private_positions(tokenizer, row.completion, mode), changed=()) for row in rows]
