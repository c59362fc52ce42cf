"""Measures a heat map of token advantages and draws it as HTML and for the terminal.

The base model reads a turn with its own hindsight and with a control, another interaction's, which should say little.
Blue is for a token, orange against it (safe for the common kinds of colour blindness); what is strongly against it is
underlined as well, so that colour is never alone. `stored_row` and `heatmap_of` keep a map as a row and show it again.
Drawing needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from markupsafe import Markup
from rich.console import Group
from rich.table import Table
from rich.text import Text

from afterword.chat.canonical import text_of
from afterword.chat.printable import printable
from afterword.chat.words import words
from afterword.errors import UsageError
from afterword.evaluate.report.pages import render
from afterword.learn.token_advantage import TokenAdvantage
from afterword.records import (
    AnswerAdvantages,
    Feedback,
    Interaction,
    Json,
    Skip,
    Turn,
    WorkRequest,
    content_hash,
    new_id,
)
from afterword.store import Store

LOOKED = 400
"""Interactions, the newest, among which a control is looked for."""
ALIKE = 0.2
"""Share of common words from which two messages may well want the same."""
FULL = 3.0
"""Nats at which a colour is at its strongest."""
STRONG = 1.0
"""Nats against a token from which it is underlined."""
LEVELS = 8
"""Shades of a colour on a page: classes `f1` to `f8` for a token, `a1` to `a8` against it."""


@dataclass(frozen=True, slots=True)
class ControlText:
    """Words about another answer."""

    text: str
    source: str | None = None
    """The interaction or feedback that has them; None for words that were given by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """One answer under its hindsight, and under another one's."""

    turn: str
    question: str
    hindsight: str
    tokens: Sequence[TokenAdvantage]
    control_hindsight: str | None = None
    """Another interaction's hindsight; None when there is no other."""
    control: Sequence[TokenAdvantage] = ()

    def to_dict(self) -> Json:
        """JSON-compatible."""
        return asdict(self)


def measure_heatmap(turn: Turn, hindsight: str, control: str | None, *, model: str, device: str = "auto") -> Heatmap:
    """The heat map of `turn` under `hindsight`, with `control` (words about another answer) beside it.

    UsageError when the answer is empty or too long for the model; ModelError when the model cannot be loaded.
    """
    from afterword.evaluate.comparison.heldout import CONTEXT
    from afterword.learn.diagnostics import token_advantages
    from afterword.model.loading import load_model, load_tokenizer

    base, tokenizer = load_model(model, device=device), load_tokenizer(model)
    asked = [m for m in turn.messages if m.get("role") == "user"]
    return Heatmap(
        turn=turn.id,
        question=text_of(asked[-1].get("content")) if asked else "",
        hindsight=hindsight,
        tokens=token_advantages(base, tokenizer, turn, hindsight, CONTEXT),
        control_hindsight=control,
        control=() if control is None else token_advantages(base, tokenizer, turn, control, CONTEXT),
    )


def control_for(store: Store, turn: Turn, hindsight: str) -> ControlText | None:
    """Words about another turn that say something else, always the same ones for the same rows; None without any.

    A user who wants the same every time gives no control by another complaint: where all words are alike, an off-topic
    message is taken instead.
    """
    own = set(words(hindsight))
    rows = store.rows(Interaction, newest=True, limit=LOOKED)
    ranked = sorted(
        (_likeness(own, row.hindsight), content_hash("control", turn.id, row.id), row.hindsight, row.id)
        for row in rows
        if row.hindsight and row.turn != turn.id and row.hindsight != hindsight
    )
    if ranked and ranked[0][0] < ALIKE:
        return ControlText(*ranked[0][2:])
    for skip in store.rows(Skip, reason="off_topic"):
        feedback = store.find(Feedback, skip.feedback)
        if feedback is not None and feedback.text and feedback.turn != turn.id:
            return ControlText(feedback.text, feedback.id)
    return ControlText(*ranked[0][2:]) if ranked else None


def _likeness(own: set[str], text: str) -> float:
    """Words in common over words in either."""
    other = set(words(text))
    return len(own & other) / max(1, len(own | other))


def stored_row(heatmap: Heatmap, interaction: str, control: ControlText | None, model: str) -> AnswerAdvantages:
    """The row that keeps a measured heat map of an interaction."""
    source = control.source if control is not None and heatmap.control else None
    return AnswerAdvantages(
        id=new_id("ad"),
        interaction=interaction,
        model=model,
        tokens=tuple(token.text for token in heatmap.tokens),
        without=_rounded(token.without for token in heatmap.tokens),
        with_hindsight=_rounded(token.with_hindsight for token in heatmap.tokens),
        control=source,
        with_control=_rounded(token.with_hindsight for token in heatmap.control) if source else (),
    )


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)


def heatmap_of(store: Store, row: AnswerAdvantages) -> Heatmap:
    """The heat map that a row keeps. The control is left out when its words were erased."""
    interaction = store.get(Interaction, row.interaction)
    words_of = None if row.control is None else _words_of(store, row.control)
    return Heatmap(
        turn=interaction.turn,
        question="",
        hindsight=interaction.hindsight,
        tokens=_advantages(row, row.with_hindsight),
        control_hindsight=words_of,
        control=() if words_of is None else _advantages(row, row.with_control),
    )


def _words_of(store: Store, source: str) -> str | None:
    interaction = store.find(Interaction, source)
    if interaction is not None:
        return interaction.hindsight or None
    feedback = store.find(Feedback, source)
    return feedback.text if feedback is not None else None


def _advantages(row: AnswerAdvantages, given: Sequence[float]) -> list[TokenAdvantage]:
    return [
        TokenAdvantage(text, without, told, told - without)
        for text, without, told in zip(row.tokens, row.without, given, strict=True)
    ]


def measure_requested(store: Store, *, model: str, device: str = "auto", limit: int = 8) -> int:
    """Scores interactions for which somebody asked for a heat map and which have none yet, newest request first.

    Another request of the same interaction scores it again.

    Args:
        store: Where requests are read and rows are written.
        model: Base model: built-in name, folder or hub id.
        device: As in `load_model`.
        limit: Answers of one call.

    Returns:
        Number of rows written; an answer that cannot be scored gets a row with the reason.
    """
    done = 0
    for name, asked in _newest_requests(store).items():
        if done == limit:
            break
        interaction, known = store.find(Interaction, name), store.newest(AnswerAdvantages, interaction=name)
        if interaction is None or (known is not None and known.created_at >= asked):
            continue
        store.write(_requested(store, interaction, model, device))
        done += 1
    return done


def _newest_requests(store: Store) -> dict[str, float]:
    """Interaction -> when its heat map was last asked for, newest first."""
    found: dict[str, float] = {}
    for row in store.rows(WorkRequest, newest=True, kind="heatmap"):
        found.setdefault(row.interaction, row.created_at)
    return found


def _requested(store: Store, interaction: Interaction, model: str, device: str) -> AnswerAdvantages:
    turn = store.get(Turn, interaction.turn)
    if not interaction.hindsight:
        error = "the interaction has no text for the teacher, so there is nothing to compare"
        return AnswerAdvantages(id=new_id("ad"), interaction=interaction.id, model=model, error=error)
    control = control_for(store, turn, interaction.hindsight)
    words_of = control.text if control is not None else None
    try:
        measured = measure_heatmap(turn, interaction.hindsight, words_of, model=model, device=device)
    except UsageError as error:
        return AnswerAdvantages(id=new_id("ad"), interaction=interaction.id, model=model, error=error.message)
    return stored_row(measured, interaction.id, control, model)


def mean_size(tokens: Sequence[TokenAdvantage]) -> float:
    """Mean |advantage| in nats; 0 for no tokens."""
    return sum(abs(t.advantage) for t in tokens) / len(tokens) if tokens else 0.0


def characters(tokens: Sequence[TokenAdvantage]) -> list[TokenAdvantage]:
    """The tokens, those that spell one character together (an emoji) as one with the sums of their numbers."""
    found: list[TokenAdvantage] = []
    for token in tokens:
        if found and not found[-1].text:
            first = found.pop()
            token = replace(
                token,
                without=first.without + token.without,
                with_hindsight=first.with_hindsight + token.with_hindsight,
                advantage=first.advantage + token.advantage,
            )
        found.append(token)
    return found


def heatmap_html(heatmap: Heatmap) -> str:
    """A self-contained page."""
    title = f"Token advantages of {heatmap.turn}"
    return str(render("heatmap_page.html", title=title, turn=heatmap.turn, heatmap=heatmap_fragment(heatmap)))


def heatmap_fragment(heatmap: Heatmap, most: int | None = None) -> Markup:
    """The heat map and its control as HTML to put into a page made by `pages.page`.

    Args:
        heatmap: What was measured.
        most: Characters or tokens of the answer that are drawn, from its beginning; None draws all.
    """
    maps = [_map("What the user wrote next", heatmap.hindsight, heatmap.tokens, most)]
    if heatmap.control_hindsight is not None:
        maps.append(_map("Control: words about another answer", heatmap.control_hindsight, heatmap.control, most))
    return render("heatmap.html", question=heatmap.question, maps=maps)


def _map(title: str, hindsight: str, tokens: Sequence[TokenAdvantage], most: int | None) -> Json:
    drawn = characters(tokens)
    rows = [(word, strongest(tokens, sign)) for word, sign in (("against", -1), ("for", 1))]
    return {
        "title": title,
        "hindsight": hindsight,
        "size": f"{mean_size(tokens):.2f}",
        "tokens": [_token(token) for token in drawn[:most]],
        "left_out": 0 if most is None else max(len(drawn) - most, 0),
        "strongest": [
            {"word": word, "tokens": [{"text": t.text.strip(), "advantage": f"{t.advantage:+.1f}"} for t in found]}
            for word, found in rows
            if found
        ],
    }


def _token(token: TokenAdvantage) -> Json:
    level = round(LEVELS * min(1.0, abs(token.advantage) / FULL))
    return {
        "lines": printable(token.text).split("\n"),
        "tip": f"with {token.with_hindsight:.2f}, without {token.without:.2f}, advantage {token.advantage:+.2f} nats",
        "shade": f"{'a' if token.advantage < 0 else 'f'}{level}" if level else "",
        "strong": token.advantage <= -STRONG,
    }


def strongest(tokens: Sequence[TokenAdvantage], sign: int, most: int = 4) -> list[TokenAdvantage]:
    """The tokens that are most strongly spoken against (`sign` -1) or for (1), beyond a tenth of a nat."""
    ranked = sorted(characters(tokens), key=lambda t: -sign * t.advantage)
    return [t for t in ranked[:most] if sign * t.advantage > 0.1 and t.text.strip()]


def heatmap_terminal(heatmap: Heatmap, *, beside: bool = False, basic: bool = False) -> Text | Group:
    """The same for a terminal with colours, the strongest tokens with both log-probabilities below; underlining alone
    tells what is strongly spoken against where there are no colours.

    `beside`: the control in a second column (from about 100 columns on). `basic`: for terminals with 16 colours.
    """
    head, legend = Text(), Text("Orange: against the token, underlined beyond 1 nat; blue: for it.", "dim")
    if heatmap.question:
        head.append("Asked: ", "bold").append(printable(heatmap.question) + "\n")
    maps = [_told("What the user wrote next: ", heatmap.hindsight, heatmap.tokens, basic)]
    if heatmap.control_hindsight is not None:
        maps.append(_told("Control, words about another answer: ", heatmap.control_hindsight, heatmap.control, basic))
    if not beside or len(maps) == 1:
        return Text.assemble(head, *maps, legend)
    columns = Table.grid(padding=(0, 4, 0, 0), expand=True)
    for _ in maps:
        columns.add_column(ratio=1)
    columns.add_row(*maps)
    return Group(head, columns, legend)


def _told(title: str, hindsight: str, tokens: Sequence[TokenAdvantage], basic: bool) -> Text:
    text = Text.assemble(
        (title, "bold"), printable(hindsight), (f"  (mean size {mean_size(tokens):.2f} nats)\n", "dim")
    )
    for token in characters(tokens):
        text.append(printable(token.text), _style(token.advantage, basic))
    text.append("\n")
    for word, sign in (("against", -1), ("for", 1)):
        for token in strongest(tokens, sign, 3):
            text.append(f"  {word:>7} ").append(repr(token.text.strip()), _style(token.advantage, basic))
            text.append(f"  with {token.with_hindsight:.2f}, without {token.without:.2f}\n", "dim")
    return text.append("\n")


def _style(advantage: float, basic: bool) -> str:
    """Background between white and the full colour, always with black text on it; of 16 colours only the direction,
    and as the colour of the text where it is not strong."""
    strength = min(1.0, abs(advantage) / FULL)
    if strength < 0.05:
        return ""
    underline = "underline " if advantage <= -STRONG else ""
    if basic:
        colour = "yellow" if advantage < 0 else "blue"
        return f"{underline}black on {colour}" if abs(advantage) >= STRONG else f"{underline}{colour}"
    full = (244, 165, 96) if advantage < 0 else (125, 178, 232)
    red, green, blue = (round(255 + (c - 255) * strength) for c in full)
    return f"{underline}black on rgb({red},{green},{blue})"
