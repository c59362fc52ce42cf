"""One user, one data directory, the real loop: serve, chat through the gateway, collect, train, release, serve again.

Owns what every experiment of this folder does; measures only by what comes back through the gateway. Releases pass
the gate by an override that says so: an experiment wants to see what training did, also where a gate would refuse.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from book import kept_by
from variants import holds

from afterword import cycle
from afterword.chat.render import encode, end_of_turn_ids, render_prompt
from afterword.chat.text_metrics import loops
from afterword.cli.demo import wait_for_release
from afterword.cli.demo_processes import serving
from afterword.config import EvaluateConfig
from afterword.evaluate.scoring.adapter_scorer import AdapterScorer
from afterword.evaluate.suites.forgetting import PREFIX, general
from afterword.feedback.settings import CollectSettings
from afterword.learn.recipes import Recipe, recipe
from afterword.model.loading import EMBEDDED, base_hash, load_tokenizer, resolve_model
from afterword.records import Candidate, Feedback, Interaction, Report, Turn, Verdict, content_hash, new_id
from afterword.release.publish import publish, rollback
from afterword.simulate import Persona, ServedAnswer, TaskPrompt, Wish, ask_heldout, simulate_users
from afterword.simulate.checkers import substance
from afterword.store import Store
from afterword.store.files import folder_hash
from afterword.train.artifact import candidate_record
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate

HOLDOUT = 0.15
"""Share of conversations that are never trained on."""
KEPT = Path(__file__).parent / "results" / "interactions"
"""What cells share; not kept in the repository."""


@dataclass(slots=True)
class Lab:
    """A running server on a data directory, and what has been trained so far."""

    directory: Path
    url: str
    store: Store
    model: str
    seed: int
    max_tokens: int
    device: str = "auto"
    trained: set[str] = field(default_factory=set)
    """Interactions that some candidate of this lab has learned."""
    clock: dict[str, int] = field(default_factory=dict)
    """User -> number of their next conversation."""
    reactions: int = 0
    """Answers that users did something about so far."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""

    def settings(self) -> cycle.Settings:
        """What the stages need."""
        state = json.loads((self.directory / "server.json").read_text("utf-8"))
        return cycle.Settings(
            directory=self.directory, model=self.model, device=self.device, engine=state["upstream"],
            collect=CollectSettings(holdout=HOLDOUT), evaluate=EvaluateConfig(max_tokens=self.max_tokens),
        )  # fmt: skip

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add to the stage's seconds."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.spent[stage] = round(self.spent.get(stage, 0.0) + time.monotonic() - started, 1)

    def chat(self, persona: Persona, reactions: int, prompts: Sequence[TaskPrompt], *, at: int = 0) -> None:
        """Let the persona react to `reactions` answers, then collect; its first conversation is number `at`."""
        user = f"sim-{persona.name}"
        with self.timed("chat"):
            summary = simulate_users(
                self.url, persona, interactions=reactions, seed=self.seed, first=at + self.clock.get(user, 0),
                prompts=prompts, max_tokens=self.max_tokens,
            )  # fmt: skip
            self.clock[user] = self.clock.get(user, 0) + summary.conversations
            self.reactions += summary.interactions
            cycle.collect_stage(self.store, self.settings())

    def gather(self, persona: Persona, wanted: int, prompts: Sequence[TaskPrompt]) -> list[Example]:
        """Let the persona talk until `wanted` interactions with words can be trained; fewer when nothing new comes any
        more. With those that only say yes in between."""
        user, found, before = f"sim-{persona.name}", 0, -1
        while before < found < wanted:
            before = found
            self.chat(persona, max(4, math.ceil(1.4 * (wanted - before))), prompts)
            found = len(self.fresh(user))
        last = ([e.interaction.id for e in self.fresh(user)][:wanted] or [""])[-1]
        rows = self.fresh(user, held=True)
        return rows[: 1 + next((i for i, e in enumerate(rows) if e.interaction.id == last), -1)]

    def fresh(self, user: str, *, gated: bool = True, held: bool = False) -> list[Example]:
        """Interactions with words of this user that were not trained yet, oldest first; with `held` also those that
        only say yes."""
        rows = self.store.usable("train") if gated else self._ungated()
        new = [
            row for row in rows
            if row.user == user and row.id not in self.trained and (row.hindsight or (held and row.polarity > 0))
        ]  # fmt: skip
        return [Example(row, self.store.get(Turn, row.turn)) for row in new]

    def _ungated(self) -> list[Interaction]:
        """Every follow-up as an interaction of full weight: what training would see without detectors."""
        rows = [row for row in self.store.rows(Feedback) if row.kind == "follow_up" and row.text]
        return [
            Interaction(
                id=content_hash("ungated", row.id), turn=row.turn, feedback=(row.id,), kind="follow_up",
                hindsight=row.text or "", polarity=-1, weight=1.0, split="train", user=row.user,
            )
            for row in rows
        ]  # fmt: skip

    def learn(
        self, examples: Sequence[Example], made: Recipe | None = None, *, parent: Candidate | None = None
    ) -> Candidate:
        """Train on `examples`, going on from `parent`."""
        name = new_id("cand")
        with self.timed("train"):
            result = train_candidate(
                examples, model=self.model, out=self.directory / "adapters" / name, seed=self.seed, device=self.device,
                recipe=made or recipe("follow-ups"), run_dir=self.directory / "runs" / name,
                parent=self.directory / parent.path if parent else None, cache=self.directory / "cache" / "teacher",
            )  # fmt: skip
        candidate = candidate_record(result, id=name, path=f"adapters/{name}", parent=parent.id if parent else None)
        self.store.write(candidate)
        self.trained |= {example.interaction.id for example in examples}
        return candidate

    def release(self, candidate: Candidate) -> None:
        """Serve it, and wait until it answers."""
        current = self.store.release("default")
        about = {
            "adapter_hash": folder_hash(self.directory / candidate.path),
            "base_hash": base_hash(resolve_model(self.model)),
        }
        against = current.candidate if current else None
        report = Report(id=new_id("rep"), candidate=candidate.id, against=against, suites={}, about=about)
        verdict = Verdict(
            id=new_id("ver"), candidate=candidate.id, report=report.id, passed=False, reasons=("not judged",),
            override={"by": "experiment", "why": "to see what training did"},
        )  # fmt: skip
        self.store.write(report)
        self.store.write(verdict)
        with self.timed("release"):
            release = publish(self.store, candidate, verdict)
            wait_for_release(self.url, [TaskPrompt("any", "Hello?")], str(release.adapter))

    def serve_base(self) -> None:
        """Take every release back."""
        current = self.store.release("default")
        if current is not None and current.candidate is not None:
            with self.timed("release"):
                rollback(self.store, to="base")
                started = time.monotonic()
                while ask_heldout(self.url, [TaskPrompt("any", "Hello?")], max_tokens=1)[0].adapter not in (
                    None,
                    "base",
                ):
                    if time.monotonic() - started > 15:
                        raise TimeoutError("the base model does not answer after a rollback")
                    time.sleep(0.2)

    def ask(
        self, prompts: Sequence[TaskPrompt], system: str | None = None, *, seed: int = 0, temperature: float = 0.0
    ) -> list[ServedAnswer]:
        """Answers through the gateway; nothing is kept."""
        with self.timed("ask"):
            return ask_heldout(
                self.url, prompts, max_tokens=self.max_tokens, system=system, temperature=temperature, seed=seed
            )

    def of_base(self, prompts: Sequence[TaskPrompt], *, seed: int = 0, temperature: float = 0.0) -> list[ServedAnswer]:
        """What the base answers: asked by the first cell of a commit that needs it and kept beside the results, unless
        the code was edited since. Before the first release only."""
        code = kept_by()
        if code is None:
            return self.ask(prompts, seed=seed, temperature=temperature)
        about = (code, base_hash(resolve_model(self.model)), self.max_tokens, temperature, seed)
        file = KEPT / f"base-{content_hash(*map(str, about), *(p.text for p in prompts))}.json"
        if not file.is_file():
            answers = self.ask(prompts, seed=seed, temperature=temperature)
            file.parent.mkdir(parents=True, exist_ok=True)
            work = file.with_suffix(f".{new_id('new')}")
            work.write_text(json.dumps([dataclasses.asdict(answer) for answer in answers]), encoding="utf-8")
            work.replace(file)
        return [ServedAnswer(**answer) for answer in json.loads(file.read_text("utf-8"))]

    def general(self, candidate: Candidate) -> dict[str, float]:
        """What training did to general text and chats: relative rise of the loss against the base, and the drift."""
        tokenizer = load_tokenizer(self.model)
        end = end_of_turn_ids(tokenizer)[0]
        pairs = []
        for entry in general():
            if "text" in entry:
                ids = encode(tokenizer, entry["text"])
                pairs.append((ids[:PREFIX], ids[PREFIX:]))
            else:
                prompt = render_prompt(tokenizer, entry["messages"]).ids
                pairs.append((prompt, (*encode(tokenizer, entry["answer"]), end)))
        with self.timed("general"):
            models = AdapterScorer.load(self.model, self.device)
            models.add("candidate", self.directory / candidate.path)
            sums = [sum(column) for column in zip(*models.drift("candidate", pairs), strict=True)]
        tokens = sum(len(scored) for _, scored in pairs)
        return {"loss_rise": round(sums[2] / sums[1] - 1, 4), "drift": round(sums[0] / tokens, 4)}

    def judge(self, candidate: Candidate) -> dict[str, Any]:
        """The product's own suites on a candidate that is not served yet, and what the gate would say."""
        with self.timed("evaluate"):
            report = cycle.evaluate_stage(
                self.store, candidate, self.settings(), cycle.Progress(),
                suites=("holdout", "collapse", "forgetting", "earlier-wins"),
            )  # fmt: skip
        verdict = cycle.decide(report, dataclasses.replace(self.settings().gate, required=("holdout", "collapse")))
        forgetting = report.suites.get("forgetting", {})
        return {
            "passed": verdict.passed, "reasons": list(verdict.reasons),
            "loss_rise_base": forgetting.get("loss_rise_base"), "accuracy": forgetting.get("accuracy"),
        }  # fmt: skip


@contextmanager
def open_lab(seed: int, *, model: str = EMBEDDED, max_tokens: int = 64, device: str = "auto") -> Iterator[Lab]:
    """A server on a fresh data directory, which goes when the experiment's cell is done."""
    with tempfile.TemporaryDirectory(prefix="afterword-lab-") as folder:
        directory = Path(folder)
        (directory / "afterword.toml").write_text(
            f'[serve]\nmodel = "{model}"\ndevice = "{device}"\n', encoding="utf-8"
        )
        with serving(directory) as url, Store.open(directory / "afterword.db") as store:
            yield Lab(directory, url, store, model, seed, max_tokens, device)


def worded(examples: Sequence[Example]) -> list[Example]:
    """Those of a user who said something; the others only accepted an answer."""
    return [example for example in examples if example.interaction.hindsight]


def taught(examples: Sequence[Example], made: Recipe) -> list[Example]:
    """Those that the recipe learns from: without words only one that holds what was accepted."""
    return list(examples) if holds(made) else worded(examples)


Wanted = Persona | Wish


def marks(wanted: Wanted, answers: Sequence[ServedAnswer], prompts: Sequence[TaskPrompt], at: int = 0) -> list[float]:
    """The grade of each answer."""
    if isinstance(wanted, Persona):
        return [wanted.mark(a.text, p.text, at).grade for a, p in zip(answers, prompts, strict=True)]
    return [wanted.mark(a.text, p.text).grade for a, p in zip(answers, prompts, strict=True)]


def passed(wanted: Wanted, answers: Sequence[ServedAnswer], prompts: Sequence[TaskPrompt], at: int = 0) -> float:
    """Share of answers that grant what is wanted."""
    if isinstance(wanted, Persona):
        return mean([wanted.mark(a.text, p.text, at).passed for a, p in zip(answers, prompts, strict=True)])
    return mean([wanted.mark(a.text, p.text).passed for a, p in zip(answers, prompts, strict=True)])


def compared(
    wanted: Wanted,
    answers: Sequence[ServedAnswer],
    base: Sequence[ServedAnswer],
    prompts: Sequence[TaskPrompt],
    at: int = 0,
) -> dict[str, float]:
    """Win rate against the base (ties half), pass rates, and whether the answers are still answers."""
    after, before = marks(wanted, answers, prompts, at), marks(wanted, base, prompts, at)
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(after, before, strict=True)]
    texts = [answer.text for answer in answers]
    return {
        "win": mean(wins), "passed": passed(wanted, answers, prompts, at),
        "base_passed": passed(wanted, base, prompts, at), "grade": mean(after), "n": len(wins),
        "poor": mean([substance(t, p.text) < 0.5 for t, p in zip(texts, prompts, strict=True)]),
        "loops": mean([loops(t) for t in texts]), "words": mean([len(t.split()) for t in texts]),
    }  # fmt: skip


def oracles(
    lab: Lab, persona: Persona, base: Sequence[ServedAnswer], prompts: Sequence[TaskPrompt], at: int = 0
) -> dict[str, Any]:
    """The base model that is simply told: in the system message, or by the user at the end of each request."""
    wishes = persona.wished(at)
    told = lab.ask(prompts, system=" ".join(wish.wants for wish in wishes))
    requested = [
        dataclasses.replace(p, text=f"{p.text}\n\n{' '.join(w.requests[i % len(w.requests)] for w in wishes)}")
        for i, p in enumerate(prompts)
    ]
    asked = lab.ask(requested)
    return {
        "system": compared(persona, told, base, prompts, at), "request": compared(persona, asked, base, prompts, at)
    }  # fmt: skip


def respaced(persona: Persona, phase: int) -> Persona:
    """The same persona with its changes at conversations 0, `phase`, 2 x `phase` ...: a phase never runs out."""
    times = sorted({0} | {t for w in persona.wishes for t in (w.after, w.until) if t is not None})
    place = {t: i * phase for i, t in enumerate(times)}
    moved = [
        dataclasses.replace(w, after=place[w.after], until=None if w.until is None else place[w.until])
        for w in persona.wishes
    ]
    return dataclasses.replace(persona, wishes=tuple(moved))


def mean(values: Sequence[float]) -> float:
    """Their mean; 0 for none."""
    return round(sum(values) / len(values), 4) if values else 0.0
