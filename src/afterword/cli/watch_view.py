"""Shows `cycle --watch` while it runs: one live block on a terminal, else a line for each change.

The block holds what waits, what runs with its rate and remaining time, and how the last round ended. Sentences and
verdicts scroll by above it.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from afterword.cli.context import CommandContext
from afterword.cli.progress import bars_on, duration, task_bar
from afterword.cycle import Advance, Event, Failed, Postponed, Progress, Round, WatchStatus

REFRESHED = 2
"""Times a second."""
WIDTH = 24
"""Characters of the bar of waiting interactions."""


class WatchView:
    """The view of one `cycle --watch`; a context inside which it is shown.

    Args:
        context: Of the command.
        interval: Seconds between two looks.
    """

    def __init__(self, context: CommandContext, interval: float) -> None:
        self._context, self._interval = context, interval
        self._bars = bars_on(context.err, live=False)
        self._live: Live | None = None
        self._status: WatchStatus | None = None
        self._looked = time.monotonic()
        self._line = ""
        self._last = ""
        if context.err.is_terminal and not context.quiet:
            self._live = Live(
                get_renderable=self.block, console=context.err, refresh_per_second=REFRESHED, transient=True,
            )  # fmt: skip

    def __enter__(self) -> WatchView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def progress(self, lines: Progress) -> Progress:
        """Bars inside the block; `lines` where there is none."""
        if self._live is None:
            return lines

        def bar(title: str, unit: str) -> AbstractContextManager[Advance]:
            return task_bar(self._bars, title, unit)

        return replace(lines, bar=bar)

    def show(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case WatchStatus():
                self._status, self._looked = event, time.monotonic()
                if self._live is None and (line := waiting_line(event)) != self._line:
                    self._line = line
                    self._context.say(f"[dim]{escape(line)}[/]")
            case Round():
                outcome = f"released {event.release.adapter}" if event.release else "rejected by the gate"
                self._ended(f"{event.candidate.id} {outcome}")
            case Postponed():
                self._ended(f"postponed: {event.error.message}")
            case Failed():
                self._ended(f"failed: {event.error.message}")

    def _ended(self, how: str) -> None:
        self._last = f"last round {time.strftime('%H:%M')}: {how}"

    def block(self) -> Group:
        """What is on the screen now."""
        lines: list[Text] = []
        if (status := self._status) is not None:
            full = min(WIDTH, WIDTH * status.new // max(status.needed, 1))
            lines.append(Text.assemble("waiting   ", ("━" * full, "green"), ("━" * (WIDTH - full), "dim"),
                                       f"  {waiting_line(status)}"))  # fmt: skip
        if self._last:
            lines.append(Text(self._last))
        if self._bars.tasks:
            return Group(*lines, self._bars)
        left = max(self._interval - (time.monotonic() - self._looked), 0.0)
        return Group(*lines, Text(f"looks again in {duration(left)}; Ctrl-C stops", style="dim"))


def waiting_line(event: WatchStatus) -> str:
    """What waits, and what a round waits for."""
    line = f"{event.new} new interactions wait, {event.needed} start a round"
    if event.not_ready:
        line += f"; {event.not_ready} more are of tasks without enough signal yet"
    return f"{line}; none begins before the canary of {event.canary} is decided" if event.canary else line
