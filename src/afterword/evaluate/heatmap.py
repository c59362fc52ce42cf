"""A heat map of token advantages, as HTML and for the terminal: what the hindsight says about each token of an answer.

Owns colours and words; the numbers come from `learn.diagnostics.token_advantages`. Blue is for the token, orange
against it (safe for the common kinds of colour blindness); what is strongly against it is underlined as well, so
that colour is never alone. Beside the real hindsight stands a control: another interaction's, which should say
little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from afterword.evaluate.html import escape, page
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
    spans = "".join(_span(token) for token in tokens)
    return (
        f"<figure><figcaption><b>{title}</b> <q>{escape(hindsight)}</q> "
        f"<small>mean size {mean_size(tokens):.2f} nats</small></figcaption><p class=tokens>{spans}</p>"
        f"{_strongest_html(tokens)}</figure>"
    )


def _span(token: TokenAdvantage) -> str:
    shown = escape(token.text).replace("\n", "<i>↵</i><br>")
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
    ranked = sorted(tokens, key=lambda t: -sign * t.advantage)
    return [t for t in ranked[:most] if sign * t.advantage > 0.1 and t.text.strip()]


def _strongest_html(tokens: Sequence[TokenAdvantage]) -> str:
    rows = [(word, strongest(tokens, sign)) for word, sign in (("against", -1), ("for", 1))]
    said = [
        f"{word} {', '.join(f'<code>{escape(t.text.strip())}</code> {t.advantage:+.1f}' for t in found)}"
        for word, found in rows
        if found
    ]
    return f"<p class=dim>Strongest {'; '.join(said)}</p>" if said else ""


def heatmap_terminal(heatmap: Heatmap) -> Text:
    """The same for a terminal with colours, the strongest tokens with both log-probabilities below; underlining alone
    tells what is strongly spoken against where there are no colours."""
    text = Text()
    if heatmap.question:
        text.append("Asked: ", "bold").append(heatmap.question + "\n")
    _append(text, "What the user wrote next: ", heatmap.hindsight, heatmap.tokens)
    if heatmap.control_hindsight is not None:
        _append(text, "Control, words about another answer: ", heatmap.control_hindsight, heatmap.control)
    text.append("Orange: against the token, underlined beyond 1 nat; blue: for it.", "dim")
    return text


def _append(text: Text, title: str, hindsight: str, tokens: Sequence[TokenAdvantage]) -> None:
    text.append(title, "bold").append(hindsight).append(f"  (mean size {mean_size(tokens):.2f} nats)\n", "dim")
    for token in tokens:
        text.append(token.text, _style(token.advantage))
    text.append("\n")
    for word, sign in (("against", -1), ("for", 1)):
        for token in strongest(tokens, sign, 3):
            text.append(f"  {word:>7} ").append(repr(token.text.strip()), _style(token.advantage))
            text.append(f"  with {token.with_hindsight:.2f}, without {token.without:.2f}\n", "dim")
    text.append("\n")


def _style(advantage: float) -> str:
    """Background between white and the full colour, always with black text on it."""
    strength = min(1.0, abs(advantage) / FULL)
    if strength < 0.05:
        return ""
    colour = (244, 165, 96) if advantage < 0 else (125, 178, 232)
    red, green, blue = (round(255 + (c - 255) * strength) for c in colour)
    underline = "underline " if advantage <= -STRONG else ""
    return f"{underline}black on rgb({red},{green},{blue})"
