"""A heat map of token advantages, as HTML and for the terminal: what the hindsight says about each token of an answer.

Owns colours and words; the numbers come from `learn.diagnostics.token_advantages`. Blue is for the token, orange
against it (safe for the common kinds of colour blindness); what is strongly against it is underlined as well, so
that colour is never alone. Beside the real hindsight stands a control: another interaction's, which should say
little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from afterword.chat.printable import printable
from afterword.evaluate.report.html import escape, page
from afterword.records import Json

if TYPE_CHECKING:
    from afterword.learn.diagnostics import TokenAdvantage

FULL = 3.0
"""Nats at which a colour is at its strongest."""
STRONG = 1.0
"""Nats against a token from which it is underlined."""
_FOR, _AGAINST = (33, 102, 172), (217, 95, 2)


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
    """A page of its own, without any external file."""
    head = f"<p class=kicker>Turn {escape(heatmap.turn)}</p><h1>What the next message says about each token</h1>"
    return page(f"Token advantages of {heatmap.turn}", head + heatmap_fragment(heatmap))


def heatmap_fragment(heatmap: Heatmap) -> str:
    """The heat map and its control as HTML to put into a page made by `html.page`."""
    parts = [
        "<section class=heat>",
        f"<p class=quote><b>Asked</b> {escape(heatmap.question)}</p>" if heatmap.question else "",
        "<div class=maps>",
        _map("What the user wrote next", heatmap.hindsight, heatmap.tokens),
    ]
    if heatmap.control_hindsight is not None:
        parts.append(_map("Control: words about another answer", heatmap.control_hindsight, heatmap.control))
    parts += ["</div>", _LEGEND, "</section>"]
    return "\n".join(parts)


_LEGEND = """<p class=legend><span style="background:rgb(217 95 2/.75)">against the token</span>
<span style="background:rgb(217 95 2/.25)">&nbsp;</span><span>no opinion</span><span
style="background:rgb(33 102 172/.25)">&nbsp;</span><span style="background:rgb(33 102 172/.75)">for the token</span>
Each token's log-probability with the follow-up in view minus without it, full colour from 3 nats. Underlined: more than
1 nat against. Point at a token, or tap it, for both numbers.</p>"""


def _map(title: str, hindsight: str, tokens: Sequence[TokenAdvantage]) -> str:
    spans = "".join(_span(token) for token in characters(tokens))
    return (
        f"<figure><figcaption><b>{title}</b> <q>{escape(hindsight)}</q> "
        f"<small>mean size {mean_size(tokens):.2f} nats</small></figcaption><p class=tokens>{spans}</p>"
        f"{_strongest_html(tokens)}</figure>"
    )


def _span(token: TokenAdvantage) -> str:
    shown = escape(printable(token.text)).replace("\n", "<i>↵</i><br>")
    tip = f"with {token.with_hindsight:.2f}, without {token.without:.2f}, advantage {token.advantage:+.2f} nats"
    red, green, blue = _AGAINST if token.advantage < 0 else _FOR
    alpha = min(1.0, abs(token.advantage) / FULL) * 0.75
    underline = " class=u" if token.advantage <= -STRONG else ""
    return (
        f'<span{underline} tabindex=0 aria-label="{tip}" data-tip="{tip}" '
        f'style="background:rgb({red} {green} {blue}/{alpha:.2f})">{shown}</span>'
    )


def strongest(tokens: Sequence[TokenAdvantage], sign: int, most: int = 4) -> list[TokenAdvantage]:
    """The tokens that are most strongly spoken against (`sign` -1) or for (1), beyond a tenth of a nat."""
    ranked = sorted(characters(tokens), key=lambda t: -sign * t.advantage)
    return [t for t in ranked[:most] if sign * t.advantage > 0.1 and t.text.strip()]


def _strongest_html(tokens: Sequence[TokenAdvantage]) -> str:
    rows = [(word, strongest(tokens, sign)) for word, sign in (("against", -1), ("for", 1))]
    said = [
        f"{word} {', '.join(f'<code>{escape(t.text.strip())}</code> {t.advantage:+.1f}' for t in found)}"
        for word, found in rows
        if found
    ]
    return f"<p class=dim>Strongest {'; '.join(said)}</p>" if said else ""


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
