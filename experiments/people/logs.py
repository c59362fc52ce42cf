"""offline_logs and heatmaps: training on imported conversations, and 24 pictures of the signal.

After arXiv 2603.12273, Tables 2 and 3 and Figures 7 and 8.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from book import percent, table
from common import Experiment, Options, Row
from lab import open_lab
from learning import seeds

from afterword.chat.render import encode, end_of_turn_ids
from afterword.cli.demo_processes import run_json
from afterword.errors import UsageError
from afterword.evaluate.comparison.heldout import CONTEXT
from afterword.evaluate.report.heatmap import Heatmap, heatmap_fragment, mean_size
from afterword.evaluate.report.pages import page
from afterword.learn.diagnostics import TokenAdvantage, token_advantages
from afterword.metrics import current
from afterword.model.loading import load_model, load_tokenizer
from afterword.records import Turn
from afterword.simulate import load_persona, load_prompts

LOGGED = 400
"""Interactions of a log that are trained on."""


def offline(cell: Row, options: Options) -> Row:
    """Import, collect, train on text (off-policy), measure against the base."""
    with tempfile.TemporaryDirectory(prefix="afterword-logs-") as folder:
        directory = Path(folder)
        file = next(file for file in options.files if Path(file).name == cell["file"])
        imported = run_json(directory, "import", str(Path(file).resolve()))
        collected = run_json(directory, "collect")
        sizes = (
            f"train.max_interactions={options.sized(LOGGED)}",
            "train.max_tokens=512",
            f"train.seed={cell['seed']}",
        )
        device = (f"serve.model={options.model}", f"serve.device={options.device}")
        trained = run_json(directory, "train", "--off-policy", overrides=(*sizes, *device))
        suites = ("holdout", "collapse", "forgetting", *(("ifeval",) if _ifeval() else ()))
        words = [word for suite in suites for word in ("--suite", suite)]
        found = run_json(directory, "evaluate", *words, overrides=device, fine=(0, 3))
        return {
            "imported": [{k: v for k, v in one.items() if k not in {"file", "rejects"}} for one in imported["files"]],
            "collected": collected, "interactions": len(trained["interactions"]),
            "training": {k: v for k, v in trained["metrics"].items() if isinstance(v, int | float | str)},
            "suites": found["report"]["suites"], "verdict": found["verdict"]["reasons"],
        }  # fmt: skip


def _ifeval() -> bool:
    """Are IFEval's own checkers installed?"""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("langdetect", "nltk", "immutabledict"))


def offline_cells(options: Options) -> list[Row]:
    """A cell for each file and seed."""
    if not options.files:
        raise UsageError("offline_logs needs logs of conversations: --files FILE ... (formats: docs/import-export.md)")
    return seeds(options, file=list(dict.fromkeys(Path(file).name for file in options.files)))


def offline_report(rows: list[Row]) -> tuple[str, None]:
    """What training on each log did."""
    body = []
    for row in rows:
        cells: list[object] = [row["cell"]["file"], row["cell"]["seed"], row["interactions"]]
        for suite, name in (("holdout", "hindsight_kl_drop"), ("holdout", "gain"), ("forgetting", "loss_rise_base"),
                            ("ifeval", "prompt_loose")):  # fmt: skip
            shown = current(row["suites"].get(suite, {})).get(name)
            cells.append(f"{shown['value']:+.3f} [{shown['low']:+.3f}, {shown['high']:+.3f}]" if shown else "")
        body.append([*cells, f"{row['seconds'] / 60:.1f}"])
    head = ["log", "seed", "interactions", "correction needed less by, nats", "gain, nats", "loss on general text",
            "IFEval, difference", "minutes"]  # fmt: skip
    return table(head, body), None


CASES = (
    "brief", "numbered", "spanish", "tutor", "greeting", "plain", "pirate", "emojis", "french", "formal", "bullets",
    "no_lecture",
)  # fmt: skip
"""A complaint of each about an answer of the base model, and an off-topic message about the same answer."""


def heatmaps(cell: Row, options: Options) -> Row:
    """Token advantages of twelve answers under a relevant and under an irrelevant message."""
    prompts = load_prompts("train", ["question"])[: len(CASES)]
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        answers = lab.ask(prompts, temperature=1.0, seed=cell["seed"])
    model, tokenizer = load_model(options.model, device=options.device), load_tokenizer(options.model)
    cases = []
    for i, (name, prompt, answer) in enumerate(zip(CASES, prompts, answers, strict=True)):
        persona, k = load_persona(name), cell["seed"] + i
        ids = tuple(encode(tokenizer, answer.text))
        turn = Turn(
            id=f"case-{i}", messages=({"role": "user", "content": prompt.text},),
            answer={"role": "assistant", "content": answer.text},
            completion_ids=(*ids, end_of_turn_ids(tokenizer)[0]),
        )  # fmt: skip
        said = {
            "relevant": persona.complaints[k % len(persona.complaints)],
            "irrelevant": persona.off_topic[k % len(persona.off_topic)],
        }
        maps = {kind: token_advantages(model, tokenizer, turn, text, CONTEXT) for kind, text in said.items()}
        cases.append({
            "persona": name, "asked": prompt.text, "said": said, "size": {k: mean_size(v) for k, v in maps.items()},
            "tokens": {k: [(t.text, t.without, t.with_hindsight, t.advantage) for t in v] for k, v in maps.items()},
        })  # fmt: skip
    return {"cases": cases}


def heatmaps_report(rows: list[Row]) -> tuple[str, str]:
    """Mean |advantage| of both kinds, and the first seed's maps as a page."""
    kinds = ("relevant", "irrelevant")
    sizes = {k: sum(c["size"][k] for r in rows for c in r["cases"]) / (len(rows) * len(CASES)) for k in kinds}
    larger = [sum(c["size"][kinds[0]] > c["size"][kinds[1]] for c in r["cases"]) / len(CASES) for r in rows]
    body = [[c["persona"], *(cell for k in kinds for cell in (c["said"][k], f"{c['size'][k]:.3f}"))]
            for c in rows[0]["cases"]]  # fmt: skip
    text = (
        f"Mean |log p with - log p without|, nats a token: relevant {sizes['relevant']:.3f}, irrelevant "
        f"{sizes['irrelevant']:.3f}; larger under the relevant message in {percent(larger)} % of the cases, "
        f"{len(rows)} seeds.\n\n" + table(["persona", "relevant", "nats", "irrelevant", "nats"], body)
    )
    maps = [_fragment(i, case) for i, case in enumerate(rows[0]["cases"])]
    return text, page("Twelve answers, each under a relevant and an irrelevant message", "\n".join(maps))


def _fragment(i: int, case: Row) -> str:
    tokens = {kind: [TokenAdvantage(*t) for t in rows] for kind, rows in case["tokens"].items()}
    return heatmap_fragment(
        Heatmap(
            turn=f"case-{i}", question=case["asked"], hindsight=case["said"]["relevant"], tokens=tokens["relevant"],
            control_hindsight=case["said"]["irrelevant"], control=tokens["irrelevant"],
        )
    )  # fmt: skip


OFFLINE = Experiment(
    "training on an import of real conversations: hold-out, forgetting, IFEval (paper: Tables 2 and 3)",
    offline_cells, offline, offline_report,
)  # fmt: skip
HEATMAPS = Experiment(
    "24 heat maps, relevant and irrelevant messages about the same answers (paper: Figures 7 and 8)",
    seeds, heatmaps, heatmaps_report,
)  # fmt: skip
