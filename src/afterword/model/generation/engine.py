"""Runs continuous batching: one thread steps the model over all active requests. Owns requests from queue to
last token, the cache's rows and the loaded adapters; knows nothing of HTTP or JSON.

Each step feeds one token of every request that is writing and a bounded chunk of the prompts still being
read, so that a long prompt never stalls the others. Requests join and leave between steps. A request that
outgrows the cache's budget sends the youngest back to the queue, which later reads its own text again.

Requests of background work (an evaluation) have steps of their own, which take a fifth of the time while others run and
are given up when another request arrives: nothing of a step counts before its tokens are chosen. Their answers stay the
same, for a request's bits do not depend on the rows beside it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from afterword.model.generation import sampler
from afterword.model.generation.adapters import Adapter, AdapterBank
from afterword.model.generation.cached_attention import Interrupted, Plan
from afterword.model.generation.prefix_cache import PrefixCache
from afterword.model.generation.repetition import Repetition
from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.model.generation.runner import Runner
from afterword.model.generation.shaping import Shaping
from afterword.model.generation.text import Codec, Detokenizer, Stopper
from afterword.sharing import Phase

log = logging.getLogger("afterword.engine")
T = TypeVar("T")

_BACKGROUND_SHARE = 0.2
"""Of the time of other requests' steps, what steps of background requests take beside them."""
_MOST_OWED = 0.5
"""Seconds of such time that add up."""


class Request:
    """One answer in the making. `limit` is the largest number of new tokens that fits and was asked for."""

    def __init__(
        self,
        number: int,
        ask: GenerationRequest,
        prompt: list[int],
        limit: int,
        adapter: Adapter | None,
        codec: Codec | None,
    ) -> None:
        self.number, self.ask, self.limit, self.adapter = number, ask, limit, adapter
        self.tokens = list(prompt)
        self.prompt = len(prompt)
        self.stored = 0
        self.long = False
        self.row = -1
        self.cancelled = False
        self.random = random.Random(ask.seed)
        self.shaping: Shaping | None = None
        """What changes its logits; made when the model's end tokens are known."""
        self.repetition = Repetition() if ask.stop_repetition else None
        self.uniform: float | None = None
        """What the next token is drawn with, until it is chosen: a step that is repeated draws the same."""
        self.detokenizer = None if codec is None else Detokenizer(codec)
        """None where only the ids are wanted."""
        self.stopper = Stopper(ask.stop)

    @property
    def written(self) -> int:
        """Number of tokens answered so far."""
        return len(self.tokens) - self.prompt

    def draw(self) -> float:
        """The uniform number in [0, 1) of the next token."""
        if self.uniform is None:
            self.uniform = self.random.random()
        return self.uniform


class ModelBroken(RuntimeError):
    """The model no longer computes; its process has to be started again."""


Deliver = Callable[[list[tuple[Request, TokenOutput]]], None]


class Engine:
    """Runs requests on a Runner. `deliver` is called once a step, on the model thread, with all new pieces.

    `max_batch`: requests at once. `chunk`, tokens of prompts read a step, is what a step can bear without
    stalling those who write (256 are about 80 ms at the 3,300 tokens/s that two CPU cores read).
    `working` is called with the phase before each step, and when no request is left.
    `prefix_bytes` bounds the keys that are kept of prompts, 0 keeps none. Reuse changes no bit of an answer on a CPU.
    """

    def __init__(
        self,
        runner: Runner,
        deliver: Deliver,
        *,
        max_batch: int = 32,
        working: Callable[[Phase], object] | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        self.runner = runner
        self.max_batch = max_batch
        self.chunk = 2048 if runner.device.type == "cuda" else 256
        self.generated = 0
        self.repetitions = 0
        self.read = self.reused = 0
        """Tokens of prompts that were computed, and that were taken from prompts before."""
        self.prefixes = PrefixCache(runner.cache, prefix_bytes) if prefix_bytes and runner.cache.reusable else None
        self._deliver = deliver
        self._working = working or (lambda phase: None)
        self._bank = AdapterBank(runner.lines, runner.mask, runner.device)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._inbox: deque[Callable[[], None]] = deque()
        self._retired: list[Adapter] = []
        self._owed = 0.0
        """Seconds that background requests may compute beside others."""
        self._urgent = False
        """A request arrived that is not in the background."""
        self._wake = threading.Condition()
        self._stop = self._ended = False

    # -- any thread ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End `run` after its current step."""
        with self._wake:
            self._stop = True
            self._wake.notify()

    def submit(self, request: Request) -> None:
        """Put a request in line; it fails at once when the model thread has ended."""
        if not self._post(lambda: self._waiting.append(request), urgent=not request.ask.background):
            self._deliver([(request, TokenOutput(finish="error"))])

    def cancel(self, request: Request) -> None:
        """Stop working for a request, wherever it is; harmless when it is done."""
        request.cancelled = True
        self._post(lambda: None)

    def add_adapter(self, adapter: Adapter) -> Future[None]:
        """Make an adapter usable; done when the future is."""
        return self._call(lambda: self._bank.add(adapter))

    def remove_adapter(self, adapter: Adapter) -> Future[None]:
        """Take an adapter out once the requests that use it are done; no new one may name it."""
        return self._call(lambda: self._retired.append(adapter))

    def drop_adapters(self) -> None:
        """Take all adapters out of the layers, once `run` has ended."""
        self._bank.clear()

    @property
    def alive(self) -> bool:
        """False once the model thread has ended."""
        return not self._ended

    def counts(self) -> dict[str, int]:
        """Requests running and waiting; since the start: tokens generated, tokens of prompts computed and reused,
        answers ended for repetition."""
        running, waiting = len(self._running), len(self._waiting)
        return {
            "running": running,
            "waiting": waiting,
            "tokens_generated": self.generated,
            "prompt_tokens_read": self.read,
            "prompt_tokens_reused": self.reused,
            "repetitions": self.repetitions,
        }

    def _post(self, action: Callable[[], None], *, urgent: bool = False) -> bool:
        """Have the model thread do something between two steps; False when it has ended."""
        with self._wake:
            if not self._ended:
                self._inbox.append(action)
                self._urgent |= urgent
                self._wake.notify()
            return not self._ended

    def _call(self, action: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except Exception as error:  # noqa: BLE001  (handed to the caller; the model thread goes on)
                future.set_exception(error)

        if not self._post(run):
            future.set_exception(RuntimeError("the model thread has ended"))
        return future

    # -- the model thread ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Work on the calling thread until `stop`. An internal error ends all waiting requests."""
        try:
            self._loop()
        finally:
            with self._wake:
                self._ended = True
                inbox, self._inbox = self._inbox, deque()
            for action in inbox:
                action()
            left = [*self._running, *self._waiting]
            self._deliver([(request, TokenOutput(finish="error")) for request in left])

    @torch.inference_mode()
    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stop or self._inbox or self._running or self._waiting)
                if self._stop:
                    return
                inbox, self._inbox, self._urgent = self._inbox, deque(), False
            for action in inbox:
                action()
            self._drop_cancelled()
            self._drop_retired()
            self._admit()
            self._working(self._phase())
            if self._running:
                self._guarded_step(self._next())
                if not self._running and not self._waiting:
                    self._working(Phase.IDLE)

    def _phase(self) -> Phase:
        """What is done for requests that are not in the background: reading, when a prompt is not yet read."""
        others = [r for r in self._running if not r.ask.background]
        if not others:
            return Phase.IDLE
        return Phase.READING if any(len(r.tokens) - r.stored > 1 for r in others) else Phase.WRITING

    def _next(self) -> list[Request]:
        """The requests of the next step: those in the background only when no other runs, or at their turn."""
        others = [r for r in self._running if not r.ask.background]
        behind = [r for r in self._running if r.ask.background]
        turn = self._owed > 0.0 and self._phase() != Phase.READING
        return behind if behind and (not others or turn) else others

    def _guarded_step(self, requests: list[Request]) -> None:
        """One step. One that fails is repeated for each request alone: only those that fail by themselves are ended.

        Raises ModelBroken when no request passes and the model fails on a known token, too.
        """
        began = time.perf_counter()
        try:
            pieces = self._step(requests)
        except Interrupted:
            return
        except Exception:
            log.exception("a step of %d requests failed; each of them is tried alone", len(requests))
            pieces = self._one_by_one(requests)
        self._account(requests, time.perf_counter() - began)
        for request, piece in pieces:
            if piece.finish is not None:
                self._leave(request)
        self._deliver(pieces)
        if pieces and all(piece.finish == "error" for _, piece in pieces):
            self._check_model()

    def _account(self, requests: list[Request], seconds: float) -> None:
        """Notes the time of a step, in favour of the background or at its expense."""
        if all(r.ask.background for r in self._running) or all(not r.ask.background for r in self._running):
            self._owed = 0.0
        elif requests and requests[0].ask.background:
            self._owed -= seconds
        else:
            self._owed = min(_MOST_OWED, self._owed + _BACKGROUND_SHARE * seconds)

    def _one_by_one(self, requests: list[Request]) -> list[tuple[Request, TokenOutput]]:
        """The step of each of these requests by itself: nothing of a failed step counts, for a request changes only
        once its token is chosen."""
        pieces: list[tuple[Request, TokenOutput]] = []
        for request in list(requests):
            try:
                self.runner.free_memory()
                pieces += self._step([request])
            except Interrupted:
                pass
            except Exception:
                log.exception("request %d failed alone and is ended", request.number)
                pieces.append((request, TokenOutput(finish="error")))
        return pieces

    def _check_model(self) -> None:
        """Nothing in this process mends a GPU whose context is broken; whoever started it starts it again."""
        try:
            self._bank.select([(None, 1)])
            self.runner.check()
        except Exception as error:
            raise ModelBroken(f"the model fails on a known token after a request failed: {error!r:.300}") from error

    def _drop_cancelled(self) -> None:
        self._waiting = deque(request for request in self._waiting if not request.cancelled)
        for request in [request for request in self._running if request.cancelled]:
            self._leave(request)

    def _drop_retired(self) -> None:
        used = {id(request.adapter) for request in (*self._running, *self._waiting)}
        for adapter in [adapter for adapter in self._retired if id(adapter) not in used]:
            self._retired.remove(adapter)
            self._bank.remove(adapter)
            if self.prefixes is not None:
                self.prefixes.drop(adapter)

    def _ends(self, request: Request) -> frozenset[int]:
        return self.runner.ends.union(t for t in request.ask.stop_token_ids if t < self.runner.vocabulary)

    def _admit(self) -> None:
        """Those in the background last, and into half of the rows: the others are for whoever comes."""
        while self._waiting and len(self._running) < self.max_batch:
            request = next((r for r in self._waiting if not r.ask.background), self._waiting[0])
            if request.ask.background and 2 * sum(r.ask.background for r in self._running) >= self.max_batch:
                return
            longest = max((len(r.tokens) for r in (*self._running, request)), default=0)
            if self._running and not self.runner.cache.fits(len(self._running) + 1, longest + 1):
                return
            self._waiting.remove(request)
            request.row = len(self._running)
            if request.shaping is None and not request.written:
                request.shaping = Shaping.of(request.ask, request.tokens, self._ends(request))
            self._running.append(request)

    def _leave(self, request: Request) -> None:
        """Give the row free; the last row moves into it, so that rows in use stay the first ones."""
        last = self._running.pop()
        if last is not request:
            self.runner.cache.move(last.row, request.row, last.stored)
            last.row = request.row
            self._running[request.row] = last
        request.row = -1

    def _make_room(self) -> None:
        cache = self.runner.cache
        while True:
            longest = max(len(request.tokens) for request in self._running)
            alone = len(self._running) == 1
            if alone or cache.fits(len(self._running), longest):
                try:
                    return cache.reserve(len(self._running), longest)
                except RuntimeError:  # out of memory
                    if alone:
                        raise
                    log.exception("no memory for %d requests of %d tokens: one waits", len(self._running), longest)
                    self.runner.free_memory()
            youngest = min(self._running, key=lambda request: (not request.ask.background, request.written))
            self._leave(youngest)
            youngest.stored = 0
            self._waiting.appendleft(youngest)

    def _block(self, request: Request, start: int) -> int:
        """The end of the block of a prompt that begins at `start`: whole blocks of half a step, whatever else is read,
        because attention adds in another order where a block ends elsewhere. The last leaves no three tokens or fewer
        behind: a single one would be read as one that is written, and attention of two takes another kernel."""
        size = max(1, self.chunk // 2)
        end, last = (start // size + 1) * size, len(request.tokens)
        return last if last - end < 4 else end

    def _shares(self, requests: list[Request]) -> list[tuple[Request, int, int]]:
        """(request, begin, end): the blocks of prompts that are read in this step, about `chunk` tokens in all.

        The shortest first, so that a long prompt holds up nobody who asks a short question; half of a step is kept for
        the longest, so that it goes on however many short ones come.
        """
        unread = sorted(
            (r for r in requests if len(r.tokens) - r.stored > 1), key=lambda r: (len(r.tokens) - r.stored, r.row)
        )
        left, reading = self.chunk, []
        for request in unread:
            room = left if request is unread[-1] else left - self.chunk // 2
            at = request.stored
            while room > 0 and at < len(request.tokens):
                end = self._block(request, at)
                reading.append((request, at, end))
                room, left, at = room - (end - at), left - (end - at), end
        return reading

    def _read_again(self) -> None:
        """A sequence that grew over the model's switch has other rotary factors from its first token on: its keys are
        computed again."""
        switch = self.runner.switch
        if switch is None:
            return
        for request in self._running:
            long = len(request.tokens) > switch
            if request.stored and long != request.long:
                request.stored = 0
            request.long = long

    def _reuse(self, requests: list[Request]) -> None:
        """Take the keys of the beginning of each unread prompt from prompts before. Four tokens are left to read, as
        `_block` leaves them."""
        if self.prefixes is None:
            return
        for request in requests:
            if request.stored == 0:
                request.stored = self.prefixes.fetch(request.adapter, request.tokens[:-4], request.row)
                self.reused += request.stored

    def _step(self, requests: list[Request]) -> list[tuple[Request, TokenOutput]]:
        """Feed these running requests, all or one, and choose their next tokens."""
        self._make_room()
        self._read_again()
        requests = [request for request in requests if request.row >= 0]  # one may have gone back to the queue
        if not requests:
            return []
        self._reuse(requests)
        decoding = [r for r in requests if len(r.tokens) - r.stored == 1]
        reading = self._shares(requests)
        plan = Plan(
            self.runner.cache,
            [(request.row, request.stored) for request in decoding],
            [(request.row, begin, end) for request, begin, end in reading],
        )
        if requests[0].ask.background:
            plan.interrupted = lambda: self._urgent
        self._bank.select(
            [(request.adapter, 1) for request in decoding] + [(r.adapter, end - begin) for r, begin, end in reading]
        )
        ids, lengths = [r.tokens[-1] for r in decoding], [len(r.tokens) for r in decoding]
        ends, ready = list(range(len(decoding))), list(decoding)
        for request, begin, end in reading:
            ids += request.tokens[begin:end]
            lengths += [len(request.tokens)] * (end - begin)
            if end == len(request.tokens):
                ends.append(len(ids) - 1)
                ready.append(request)
        logits = self.runner.forward(ids, plan, ends, lengths)
        chosen = self._choose(ready, logits) if ready else []
        for request in decoding:
            request.stored += 1
        for request, begin, end in reading:
            request.stored = end
            self.read += end - begin
            if end == len(request.tokens) and self.prefixes is not None:
                self.prefixes.keep(request.adapter, request.tokens, request.row)
        self.generated += len(ready)
        return [(request, self._written(request, piece)) for request, piece in zip(ready, chosen, strict=True)]

    def _choose(self, ready: list[Request], logits: torch.Tensor) -> list[TokenOutput]:
        """The next token of each request, which it does not yet have: what fails here can be done again."""
        raw = logits
        shaped = {i: r.shaping for i, r in enumerate(ready) if r.shaping is not None and r.shaping.active}
        if shaped:
            logits = logits.clone()
            for i, shaping in shaped.items():
                logits[i] = shaping.apply(raw[i])
        draws = [sampler.Draw(r.ask.temperature, r.ask.top_p, r.draw(), r.ask.top_k, r.ask.min_p) for r in ready]
        chosen = sampler.sample(logits, draws)
        tokens: list[int] = chosen.tolist()
        wanted = any(r.ask.logprobs for r in ready)
        values: list[Any] = sampler.logprobs(raw, chosen) if wanted else [None] * len(ready)
        drawn, support = list(values), [1.0] * len(ready)
        odd = [
            i
            for i, d in enumerate(draws)
            if wanted and (i in shaped or d.cuts or d.temperature != 1.0 or d.top_p < 1.0)
        ]
        if odd:
            found = sampler.sampled_logprobs(raw[odd], logits[odd], [draws[i] for i in odd], chosen[odd])
            for i, logprob, share in zip(odd, *found, strict=True):
                drawn[i], support[i] = logprob, share
        pieces = []
        for i, request in enumerate(ready):
            piece = TokenOutput(token=tokens[i])
            if request.ask.logprobs:
                piece.logprob, piece.sampled_logprob, piece.support = values[i], drawn[i], support[i]
                if request.ask.top_logprobs:
                    piece.top = sampler.top_logprobs(raw[i], request.ask.top_logprobs)
            pieces.append(piece)
        return pieces

    def _written(self, request: Request, piece: TokenOutput) -> TokenOutput:
        """The piece with its text; text that cannot be made ends this request alone."""
        try:
            return self._advance(request, piece)
        except Exception:
            log.exception("the text of request %d failed; it is ended", request.number)
            return TokenOutput(finish="error")

    def _advance(self, request: Request, piece: TokenOutput) -> TokenOutput:
        """Append a token and see whether it ends the answer."""
        token = piece.token
        assert token is not None
        request.tokens.append(token)
        request.uniform = None
        if request.shaping is not None:
            request.shaping.push(token)
        ended = token in request.ask.stop_token_ids or (token in self.runner.ends and not request.ask.ignore_eos)
        text = "" if request.detokenizer is None else request.detokenizer.push(token)
        repeats = request.repetition is not None and request.repetition.push(token) and not ended
        repeats = repeats and request.written >= request.ask.min_tokens
        full = repeats or request.written >= request.limit
        if (ended or full) and request.detokenizer is not None:
            text += request.detokenizer.flush()
        stopped = False
        if request.written >= request.ask.min_tokens:
            text, stopped = request.stopper.push(text)
        if (ended or full) and not stopped:
            text += request.stopper.flush()
        piece.text = text
        piece.finish = "stop" if ended or stopped else "length" if full else None
        if piece.finish == "length" and repeats:
            self.repetitions += 1
            piece.stop_reason = "repetition"
        return piece
