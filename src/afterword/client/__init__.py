"""A client for applications: tells a gateway what users did with its answers. Standard library alone.

    from afterword.client import Afterword

    told = Afterword("http://127.0.0.1:8400", queue="events.jsonl")
    told.rate(answer.id, -1, "too long")

Events go out in the background, in batches. While the gateway cannot be reached they wait, with `queue` also over a
restart; their ids make a second delivery count once. `js/` holds the same client for browsers and Node.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

log = logging.getLogger("afterword.client")
MOST = 100
"""Events of one request."""
NEVER = (400, 409, 413, 422)
"""Statuses of events that will never be taken; with any other (a wrong key, a wrong address, a busy gateway) they
wait."""
Event = dict[str, Any]


class ClientError(Exception):
    """The gateway rejected a request; `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Afterword:
    """Sends feedback.

    Args:
        url: Address of the gateway, with or without /v1.
        key: API key with the scope `feedback`, once keys exist.
        user: Who reacts; a call may name another one.
        queue: File in which events wait; None keeps them in memory.
        wait: Seconds that events wait for others.
        timeout: Seconds for one request.
        on_error: Gets what the gateway rejected; logs it by default.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8400",
        *,
        key: str | None = None,
        user: str | None = None,
        queue: str | Path | None = None,
        wait: float = 0.5,
        timeout: float = 10.0,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.key, self.user, self.wait, self.timeout = key, user, wait, timeout
        self._file = None if queue is None else Path(queue)
        self._on_error = on_error or (lambda text: log.warning("%s", text))
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._waiting: list[Event] = self._read()
        self._woken = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="afterword-client", daemon=True)
        self._thread.start()
        if self._waiting:
            self._woken.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # ---- what the user did

    def accept(self, turn: str, **more: Any) -> str:
        """The user took the answer as it is."""
        return self.send(turn, "accepted", **more)

    def edit(self, turn: str, final: str, **more: Any) -> str:
        """The user changed the answer to `final`."""
        return self.send(turn, "edited", final_text=final, **more)

    def retry(self, turn: str, **more: Any) -> str:
        """The user asked again."""
        return self.send(turn, "retried", **more)

    def copy(self, turn: str, **more: Any) -> str:
        """The user copied the answer."""
        return self.send(turn, "copied", **more)

    def undo(self, turn: str, **more: Any) -> str:
        """The user undid the answer's effect."""
        return self.send(turn, "reverted", **more)

    def rate(self, turn: str, value: float, comment: str | None = None, **more: Any) -> str:
        """A vote from -1 to 1, with words beside it."""
        return self.send(turn, "rating", value=value, **({"text": comment} if comment else {}), **more)

    def comment(self, turn: str, text: str, **more: Any) -> str:
        """Words about the answer."""
        return self.send(turn, "comment", text=text, **more)

    def wanted(self, turn: str, text: str, **more: Any) -> str:
        """The answer that the user wanted."""
        return self.send(turn, "demonstration", text=text, **more)

    def ran(self, turn: str, exit_code: int, output: str | None = None, **more: Any) -> str:
        """The answer's code was run."""
        return self.send(turn, "executed", exit_code=exit_code, **({"output": output} if output else {}), **more)

    def send(self, turn: str, kind: str, **fields: Any) -> str:
        """Queue an event.

        Args:
            turn: Id of the answer.
            kind: Kind of feedback.
            fields: Further fields of the event.

        Returns:
            The event's id.

        Raises:
            ValueError: No turn is named, or the client is closed.
        """
        if not turn:
            raise ValueError(f"the event {kind!r} names no turn: pass the answer's id")
        event: Event = {"id": f"py-{uuid.uuid4()}", "turn": turn, "kind": kind, "occurred_at": time.time()}
        event |= ({"user": self.user} if self.user else {}) | fields
        with self._lock:
            if self._closed:
                raise ValueError("the client is closed")
            self._waiting.append(event)
            self._on_disk(lambda file: _append(file, event))
        self._woken.set()
        return str(event["id"])

    def retract(self, event_id: str) -> None:
        """Take an event back: from the queue, or at the gateway.

        Raises:
            ClientError: The gateway rejected it.
            OSError: It cannot be reached.
        """
        with self._sending, self._lock:
            left = [event for event in self._waiting if event["id"] != event_id]
            if len(left) < len(self._waiting):
                self._waiting = left
                self._write()
                return
        self._request("DELETE", f"/v1/feedback/{quote(event_id, safe='')}")

    # ---- the queue

    @property
    def waiting(self) -> int:
        """Events that the gateway does not have yet."""
        with self._lock:
            return len(self._waiting)

    def flush(self) -> bool:
        """Send what waits now.

        Returns:
            True when nothing waits afterwards.
        """
        with self._sending:
            while batch := self._first():
                try:
                    answer = self._request("POST", "/v1/feedback", {"events": batch})
                    for one in answer.get("results", []):
                        if one.get("status") == "rejected":
                            self._on_error(f"{one.get('id')}: {one.get('why')}")
                except ClientError as error:
                    if error.status not in NEVER:
                        self._on_error(f"feedback waits: {error}")
                        return False
                    self._on_error(f"{len(batch)} events were rejected: {error}")
                except OSError:
                    return False
                gone = {event["id"] for event in batch}
                with self._lock:
                    self._waiting = [event for event in self._waiting if event["id"] not in gone]
                    self._write()
        return True

    def close(self) -> None:
        """Send what waits, once; the rest stays in the queue's file."""
        with self._lock:
            self._closed = True
        self._woken.set()
        self._thread.join(timeout=self.timeout + self.wait + 1)

    def _run(self) -> None:
        pause = 1.0
        while True:
            self._woken.wait()
            self._woken.clear()
            if not self._closed:
                time.sleep(self.wait)
            done = self.flush()
            if self._closed:
                return
            pause = 1.0 if done else min(60.0, 2 * pause)
            if not done and not self._woken.wait(pause):
                self._woken.set()

    def _first(self) -> list[Event]:
        with self._lock:
            return self._waiting[:MOST]

    def _read(self) -> list[Event]:
        if self._file is None or not self._file.is_file():
            return []
        found = []
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                log.warning("half a line in %s was left out", self._file)
        return found

    def _write(self) -> None:
        """The file as the queue is; the caller holds the lock."""
        self._on_disk(lambda file: _replace(file, self._waiting))

    def _on_disk(self, change: Callable[[Path], None]) -> None:
        """A disk that is full or gone costs the file, not the events: they are sent from memory."""
        if self._file is None:
            return
        try:
            change(self._file)
        except OSError as error:
            self._on_error(f"the queue's file cannot be written, events wait in memory alone: {error}")

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except urllib.error.HTTPError as error:
            with error:
                try:
                    said = json.loads(error.read())["error"]["message"]
                except (ValueError, KeyError, TypeError):
                    said = error.reason
            raise ClientError(error.code, str(said)) from None


def _append(file: Path, event: Event) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(event) + "\n")


def _replace(file: Path, events: list[Event]) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    new.replace(file)
