"""What a day of traffic needs: a model of cost, from what we measured and from stated prices.

    python experiments/scale/model.py                 # the tables of docs/scale.md
    python experiments/scale/model.py --write         # write them into docs/scale.md
    python experiments/scale/model.py --measure       # measure this machine's rates again (measured.json, a minute)
    python experiments/scale/model.py --turns 3e6 --set parameters=32e9 --set learnable=0.02

Each stage of the loop is a rate of work and what one unit of it does: a GPU, a core, a database, a disk. Rates of the
gateway, the store and the collection are measured here; those of GPUs follow from peak arithmetic, memory bandwidth
and stated efficiencies, since none was at hand. Nothing of the loop is simulated: waiting, failures and idle machines
are not in it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "scale.md"
MEASURED = HERE / "measured.json"
BEGIN = "<!-- Written by experiments/scale/model.py --write -->\n"
END = "<!-- end of the tables -->\n"
DAY = 86_400.0
SCALES = (1e6, 1e7, 1e8, 1e9)
SAMPLE = 100_000.0
"""Interactions a day of the row that shows what sampling saves."""


@dataclass(frozen=True)
class Load:
    """What users send, and what of it is learned. Shares are of turns."""

    prompt_tokens: float = 1_000.0
    answer_tokens: float = 250.0
    characters_per_token: float = 4.0
    peak: float = 3.0
    """The busiest minute over the mean of the day."""
    feedback: float = 0.3
    """Feedback rows a turn: follow-ups, ratings, edits."""
    learnable: float = 0.1
    """Interactions a turn that pass the filters."""
    most_trained: float = math.inf
    """Interactions trained a day at most: the newest are sampled."""
    kept_days: float = 90.0


@dataclass(frozen=True)
class Model:
    """The served model, and the passes of one trained interaction."""

    parameters: float = 8e9
    weight_bytes: float = 2.0
    cache_bytes: float = 131_072.0
    """Keys and values of one token: 32 layers, 8 heads of 128, twice, bfloat16."""
    hindsight_tokens: float = 100.0
    passes: float = 2.0
    """Trained sequences an interaction: the stored answer and one fresh one."""


@dataclass(frozen=True)
class Hardware:
    """One GPU of the H100 class, and prices in US dollars. All stated, none measured here."""

    flops: float = 989e12
    bytes_per_s: float = 3.35e12
    batch: float = 64.0
    """Answers decoded at once."""
    decode_efficiency: float = 0.5
    prefill_efficiency: float = 0.4
    train_efficiency: float = 0.35
    gpu_hour: float = 2.50
    core_hour: float = 0.04
    disk_gb_month: float = 0.08
    disk_bytes: float = 4e12


@dataclass(frozen=True)
class Rates:
    """What one core or one database of our own code does. Measured (`--measure`, `benchmarks/results`)."""

    gateway_turns_per_core_s: float
    rows_per_s: float
    """Durable rows of the stated turn's size that one database takes."""
    collected_per_core_s: float
    row_bytes: float
    """Bytes of a row without text, ids and log-probabilities, its share of the indexes included."""
    text_bytes: float
    """Bytes a character of text."""
    id_bytes: float
    """Bytes a token id of prompt or answer."""
    logprob_bytes: float
    """Bytes a log-probability of an answer's token."""

    @classmethod
    def read(cls, path: Path = MEASURED) -> Rates:
        """The rates in the file that `--measure` writes.

        Args:
            path: A JSON object with one number a field.

        Raises:
            ValueError: A field is missing, or no positive number.
        """
        row = json.loads(path.read_text("utf-8"))
        values = {}
        for field in fields(cls):
            value = row.get(field.name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{path}: {field.name} is {value!r}, not a positive number. Run with --measure.")
            values[field.name] = float(value)
        return cls(**values)


def turn_bytes(load: Load, rates: Rates) -> float:
    """Bytes of the database that one turn with token ids takes."""
    tokens = load.prompt_tokens + load.answer_tokens
    text = tokens * load.characters_per_token * rates.text_bytes
    return rates.row_bytes + text + tokens * rates.id_bytes + load.answer_tokens * rates.logprob_bytes


def serving_seconds(load: Load, model: Model, gpu: Hardware) -> float:
    """GPU seconds of one answer: the prompt by arithmetic, the answer by memory bandwidth."""
    prefill = 2 * model.parameters * load.prompt_tokens / (gpu.flops * gpu.prefill_efficiency)
    context = load.prompt_tokens + load.answer_tokens / 2
    step_bytes = model.parameters * model.weight_bytes + gpu.batch * context * model.cache_bytes
    step = step_bytes / (gpu.bytes_per_s * gpu.decode_efficiency)
    return prefill + load.answer_tokens * step / gpu.batch


def training_seconds(load: Load, model: Model, gpu: Hardware) -> float:
    """GPU seconds of one interaction.

    A forward pass costs 2 operations a parameter and token. A LoRA step has no gradient of the base's weights: the
    student's forward and backward pass cost 4, the teacher's forward pass 2, over the hindsight, too. A fresh answer is
    decoded as a served one.
    """
    tokens = load.prompt_tokens + load.answer_tokens
    student = 4 * model.parameters * tokens
    teacher = 2 * model.parameters * (tokens + model.hindsight_tokens)
    arithmetic = model.passes * (student + teacher) / (gpu.flops * gpu.train_efficiency)
    return arithmetic + max(0.0, model.passes - 1) * serving_seconds(load, model, gpu)


@dataclass(frozen=True)
class Need:
    """What one stage needs for a day of traffic."""

    stage: str
    unit: str
    units: float
    limit: float
    """Units that the code can use together today."""
    dollars: float
    """A month of 30 days."""
    then: str
    """What has to change beyond the limit."""


def needs(turns: float, load: Load, model: Model, gpu: Hardware, rates: Rates) -> list[Need]:
    """What each stage needs for so many turns a day.

    Args:
        turns: Turns a day, above 0.
        load: What users send.
        model: What answers them.
        gpu: What it runs on, and prices.
        rates: What our own code does on one core or database.

    Raises:
        ValueError: `turns` is not a positive number.
    """
    if not (turns > 0 and math.isfinite(turns)):
        raise ValueError(f"turns a day: {turns} is not a positive number")
    at_peak = turns / DAY * load.peak
    trained = min(turns * load.learnable, load.most_trained)
    rows = 1 + load.feedback + load.learnable
    stored = turns * turn_bytes(load, rates) * load.kept_days
    month_hours = 30 * 24.0
    servers = at_peak * serving_seconds(load, model, gpu)
    gateways = at_peak / rates.gateway_turns_per_core_s
    collectors = turns / DAY / rates.collected_per_core_s
    trainers = trained * training_seconds(load, model, gpu) / DAY
    return [
        Need(
            "model servers", "GPU", servers, math.inf, servers * gpu.gpu_hour * month_hours,
            "more servers of the same kind"
        ),
        Need(
            "gateways", "core", gateways, math.inf, gateways * gpu.core_hour * month_hours,
            "more gateways of the same kind"
        ),
        Need(
            "writing rows", "database", at_peak * rows / rates.rows_per_s, 1, 0.0,
            "several databases, a conversation in one of them"
        ),
        Need(
            "keeping rows", "disk of 4 TB", stored / gpu.disk_bytes, 4,
            stored / 1e9 * gpu.disk_gb_month,
            "texts in an object store, rows with hashes in the database; a sample of the turns without feedback"
        ),
        Need(
            "collection", "core", collectors, 1, collectors * gpu.core_hour * month_hours,
            "partitions by conversation, a process each"
        ),
        Need(
            "training", "GPU", trainers, 1, trainers * gpu.gpu_hour * month_hours,
            "several workers, or a sample of the interactions"
        ),
    ]  # fmt: skip


def bottleneck(stages: list[Need]) -> Need | None:
    """The stage that is furthest beyond what today's code can use, if any is."""
    worst = max(stages, key=lambda need: need.units / need.limit)
    return worst if worst.units > worst.limit else None


def tables(load: Load, model: Model, gpu: Hardware, rates: Rates) -> str:
    """The tables of the page, as Markdown."""
    by_scale = {turns: needs(turns, load, model, gpu, rates) for turns in SCALES}
    heads = [f"10^{round(math.log10(turns))}" for turns in SCALES]
    lines = [f"| units at turns a day | {' | '.join(heads)} | today's limit |", f"|---|{'---|' * (len(SCALES) + 1)}"]
    for row in zip(*by_scale.values(), strict=True):
        limit = "none" if math.isinf(row[0].limit) else f"{row[0].limit:g}"
        cells = [f"**{number(need.units)}**" if need.units > need.limit else number(need.units) for need in row]
        lines.append(f"| {row[0].stage} ({row[0].unit}) | {' | '.join(cells)} | {limit} |")
    dollars = [sum(need.dollars for need in stages) for stages in by_scale.values()]
    lines.append(f"| dollars a month, all stages | {' | '.join(number(one) for one in dollars)} | |")
    training = [stages[-1].dollars / total for stages, total in zip(by_scale.values(), dollars, strict=True)]
    lines.append(f"| of it training | {' | '.join(f'{one:.0%}' for one in training)} | |")
    sampled = [needs(turns, replace(load, most_trained=SAMPLE), model, gpu, rates)[-1] for turns in SCALES]
    name = f"training on at most {SAMPLE:,.0f} interactions a day (GPU)"
    lines.append(f"| {name} | {' | '.join(number(need.units) for need in sampled)} | 1 |")
    lines += ["", "| turns a day | bottleneck | what changes there |", "|---|---|---|"]
    for head, stages in zip(heads, by_scale.values(), strict=True):
        worst = bottleneck(stages)
        beyond = [need for need in stages if need.units > need.limit]
        others = ", ".join(need.stage for need in beyond if need is not worst)
        name = "none: one of each is enough" if worst is None else worst.stage
        name += f" (also {others})" if others else ""
        lines.append(f"| {head} | {name} | {'; '.join(need.then for need in beyond) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Two digits that count, thousands apart."""
    if value >= 100:
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{float(f'{value:.2g}'):g}"


def write_turns(folder: Path, count: int, load: Load, ids: bool = True) -> tuple[float, float]:
    """Write made-up turns of the load's size into a new database, 64 a commit.

    Returns:
        Bytes a turn of the database, and durable rows a second.
    """
    from afterword.records import Turn
    from afterword.store import Store

    random.seed(0)
    vocabulary = [f"{random.randrange(10**8):x}" for _ in range(5_000)]

    def text(tokens: float) -> str:
        length = int(tokens * load.characters_per_token)
        return " ".join(random.choices(vocabulary, k=length // 6 + 1))[:length]

    prompt, answer = int(load.prompt_tokens), int(load.answer_tokens)

    def turn(i: int) -> Turn:
        return Turn(
            id=f"turn-{i:08}",
            messages=({"role": "user", "content": text(prompt)},),
            answer={"role": "assistant", "content": text(answer)},
            prompt_ids=tuple(random.choices(range(49_152), k=prompt)) if ids else None,
            completion_ids=tuple(random.choices(range(49_152), k=answer)) if ids else None,
            logprobs=tuple(-random.expovariate(1) for _ in range(answer)) if ids else None,
            user=f"user-{i % 97}",
        )

    seconds = 0.0
    path = folder / "afterword.db"
    store = Store.open(path)
    for start in range(0, count, 64):
        batch = [turn(i) for i in range(start, min(start + 64, count))]
        begin = time.perf_counter()
        store.write(*batch)
        seconds += time.perf_counter() - begin
    store.close()
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(path.name))
    return size / count, count / seconds


def measure(count: int = 2_000) -> dict[str, float]:
    """This machine's rates: the store's are measured now, the others stand in `benchmarks/results`."""
    results = HERE.parents[1] / "benchmarks" / "results"
    load = Load()

    def written(ids: bool, **changed: float) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            return write_turns(Path(folder), count, replace(load, **changed), ids)

    whole, rows_per_s = written(True)
    text, _ = written(False)
    half, _ = written(False, prompt_tokens=load.prompt_tokens / 2, answer_tokens=load.answer_tokens / 2)
    no_answer, _ = written(True, prompt_tokens=load.prompt_tokens + load.answer_tokens, answer_tokens=0.0)
    tokens = load.prompt_tokens + load.answer_tokens
    text_bytes = (text - half) / (tokens * load.characters_per_token / 2)
    id_bytes = (no_answer - text) / tokens
    gateway = json.loads((results / "gateway.json").read_text("utf-8"))
    collect = json.loads((results / "collect.json").read_text("utf-8"))
    return {
        "gateway_turns_per_core_s": gateway["throughput"]["requests_per_second"]["afterword"],
        "rows_per_s": round(rows_per_s),
        "collected_per_core_s": round(collect["collect"]["one_process_turns_per_cpu_s"]),
        "row_bytes": round(text - tokens * load.characters_per_token * text_bytes),
        "text_bytes": round(text_bytes, 3),
        "id_bytes": round(id_bytes, 2),
        "logprob_bytes": round((whole - text - tokens * id_bytes) / load.answer_tokens, 2),
    }


def main() -> None:
    """Print the tables, write them into the page, or measure the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=float, help="one day of so many turns, stage by stage")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change an assumption")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/scale.md")
    parser.add_argument("--measure", action="store_true", help="measure this machine's rates into measured.json")
    args = parser.parse_args()
    if args.measure:
        MEASURED.write_text(json.dumps(measure(), indent=1) + "\n", "utf-8")
    load, model, gpu, rates = changed(args.set)
    if args.turns:
        for need in needs(args.turns, load, model, gpu, rates):
            print(f"{need.stage}: {number(need.units)} x {need.unit}, {number(need.dollars)} dollars a month")
        return
    made = tables(load, model, gpu, rates)
    if args.write:
        page = PAGE.read_text("utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}{made}{END}{after}", "utf-8")
    print(made, end="")


def changed(settings: list[str]) -> tuple[Load, Model, Hardware, Rates]:
    """The assumptions with `NAME=VALUE` changes.

    Raises:
        SystemExit: A name that no assumption has, or a value that is no positive number.
    """
    parts: list[Load | Model | Hardware | Rates] = [Load(), Model(), Hardware(), Rates.read()]
    for setting in settings:
        name, _, value = setting.partition("=")
        place = next((i for i, part in enumerate(parts) if name in {field.name for field in fields(part)}), None)
        if place is None:
            known = ", ".join(field.name for part in parts for field in fields(part))
            raise SystemExit(f"{name}: no such assumption. Known: {known}.")
        try:
            new = float(value)
        except ValueError:
            new = math.nan
        if not new > 0:
            raise SystemExit(f"{setting}: {value!r} is not a positive number.")
        parts[place] = replace(parts[place], **{name: new})
    load, model, gpu, rates = parts
    assert isinstance(load, Load) and isinstance(model, Model) and isinstance(gpu, Hardware)
    assert isinstance(rates, Rates)
    return load, model, gpu, rates


if __name__ == "__main__":
    main()
