"""Keeps the import paths of version 0.1 for one release: each gives the names of its new home, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "engine.adapters": ("model.generation.adapters",),
    "engine.attention": ("model.generation.cached_attention",),
    "engine.cache": ("model.generation.kv_cache",),
    "engine.core": ("model.generation.engine",),
    "engine.cores": ("model.generation.thread_tuner",),
    "engine.modules": ("model.generation.fused_linear",),
    "engine.remote": ("engine.worker_client",),
    "engine.repetition": ("model.generation.repetition",),
    "engine.runner": ("model.generation.runner",),
    "engine.sampler": ("model.generation.sampler",),
    "engine.text": ("model.generation.text",),
    "evaluate.answers": ("evaluate.comparison.answers",),
    "evaluate.cache": ("evaluate.comparison.answers",),
    "evaluate.cases": ("evaluate.comparison.comparison",),
    "evaluate.changes": ("evaluate.stats.changes",),
    "evaluate.checks": ("evaluate.scoring.task_checks",),
    "evaluate.choices": ("evaluate.scoring.multiple_choice",),
    "evaluate.heatmap": ("evaluate.report.heatmap",),
    "evaluate.heatmap_stage": ("evaluate.report.heatmap",),
    "evaluate.heldout": ("evaluate.comparison.heldout",),
    "evaluate.hindsight": ("evaluate.scoring.hindsight",),
    "evaluate.html": ("evaluate.report.pages",),
    "evaluate.judge": ("evaluate.scoring.judge",),
    "evaluate.looks": ("evaluate.stats.interim",),
    "evaluate.models": ("evaluate.scoring.adapter_scorer",),
    "evaluate.power": ("evaluate.stats.power",),
    "evaluate.relevance": ("evaluate.signal_ratio",),
    "evaluate.report_html": ("evaluate.report.report_html",),
    "evaluate.room": ("evaluate.comparison.heldout",),
    "evaluate.secrets": (
        "evaluate.suites.privacy",
        "evaluate.comparison.heldout",
    ),
    "evaluate.sequential": ("evaluate.stats.group_sequential",),
    "evaluate.statistics": ("evaluate.stats.statistics",),
    "evaluate.text": (
        "chat.text_metrics",
        "chat.refusals",
    ),
    "feedback.branches": ("feedback.importing.branches",),
    "feedback.children": ("feedback.collect.workers",),
    "feedback.cues": ("feedback.text.followup_classifier",),
    "feedback.decide": ("feedback.collect.decide",),
    "feedback.detect": ("feedback.text.followup_classifier",),
    "feedback.edits": ("feedback.text.edits",),
    "feedback.files": ("feedback.importing.files",),
    "feedback.formats": ("formats.registry",),
    "feedback.funnel": ("feedback.collect.collect",),
    "feedback.guards": ("feedback.text.guards",),
    "feedback.imports": ("feedback.importing.imports",),
    "feedback.kinds": ("kinds",),
    "feedback.lane": ("feedback.select.review_queue",),
    "feedback.langfuse": ("formats.langfuse",),
    "feedback.left_behind": ("feedback.collect.neighbours",),
    "feedback.mark": ("feedback.importing.import_progress",),
    "feedback.outputs": ("feedback.collect.signals",),
    "feedback.own": ("formats.native",),
    "feedback.patterns": ("feedback.text.patterns",),
    "feedback.peers": ("feedback.collect.neighbours",),
    "feedback.readings": ("feedback.collect.signals",),
    "feedback.rejects": ("feedback.importing.rejects",),
    "feedback.sink": ("feedback.importing.sink",),
    "feedback.sketch": ("feedback.text.minhash",),
    "feedback.tensorzero": ("formats.tensorzero",),
    "feedback.unfold": ("feedback.importing.unfold",),
    "gateway.boundary": ("gateway.middleware",),
    "gateway.door": ("gateway.origin_policy",),
    "gateway.info": ("gateway.status_routes",),
    "gateway.watcher": (
        "gateway.model_routing",
        "gateway.release_follower",
    ),
    "gateway.who": ("gateway.requester",),
    "gateway.wire.served": ("gateway.wire.response",),
    "learn.advantages": ("learn.parts.advantages",),
    "learn.anchors": ("learn.parts.anchors",),
    "learn.attention": ("model.attention",),
    "learn.blocks": ("model.attention_kernel",),
    "learn.configured": ("learn.recipes.from_config",),
    "learn.contexts": ("learn.parts.contexts",),
    "learn.conversion": ("model.conversion",),
    "learn.deltas": ("model.lora",),
    "learn.distances": ("learn.loss.loss_stage",),
    "learn.divergences": ("learn.parts.divergences",),
    "learn.embedded": ("model.embedded",),
    "learn.forward": ("model.packing",),
    "learn.head": ("model.head",),
    "learn.implied": ("learn.hindsight_score",),
    "learn.leaner": ("model.module_patching",),
    "learn.lora": ("model.lora",),
    "learn.loss_stage": ("learn.loss.loss_stage",),
    "learn.models": ("model.loading",),
    "learn.monitors": ("learn.loss.loss_stage",),
    "learn.products": ("model.matmul",),
    "learn.recipes.spelling": ("learn.recipes.spec",),
    "learn.rotary": ("model.rotary",),
    "learn.routes": ("learn.parts.weights",),
    "learn.rows": ("learn.loss.token_batch",),
    "learn.schedules": ("learn.parts.schedules",),
    "learn.sizes": ("model.loading",),
    "learn.supports": ("learn.parts.supports",),
    "learn.targets": ("learn.parts.targets",),
    "learn.teachers": ("learn.parts.teachers",),
    "learn.terms": ("learn.loss.terms",),
    "learn.threads": ("model.openmp",),
    "learn.tiles": ("learn.loss.tiles",),
    "learn.updates": ("learn.parts.advantages",),
    "learn.validate": ("learn.recipes.validate",),
    "learn.weights": ("learn.parts.weights",),
    "release.chain": ("release.signed_chain",),
    "release.figures": ("release.canary_metrics",),
    "release.manifest": ("release.checks",),
    "release.quarantine": ("release.publish",),
    "release.sequential": ("release.always_valid",),
    "release.signing": ("release.signed_chain",),
    "release.standing": ("release.channel_status",),
    "release.watch": ("release.canary_monitor",),
    "sampling.answer": ("sampling.stream",),
    "sampling.places": ("sampling.urls",),
    "simulate.model_user": ("simulate.llm_user",),
    "simulate.persona_checks": ("simulate.persona_schema",),
    "simulate.talk": ("simulate.conversations",),
    "store.containers": ("formats.containers",),
    "store.erase": ("store.erasure.erase",),
    "store.export": ("formats.export",),
    "store.figures": ("store.feedback_stats",),
    "store.live": ("store.polling",),
    "store.users": ("store.attribution",),
    "store.view": ("formats.export_filter",),
    "store.withheld": ("store.consent",),
    "store.words": ("store.erasure.erasure_search",),
    "train.alignment": ("train.monitoring.alignment",),
    "train.answers": (
        "train.generation.generation_metrics",
        "chat.text_metrics",
    ),
    "train.batches": (
        "train.data.batches",
        "train.runtime.teacher_cache",
    ),
    "train.encoded": ("train.data.examples",),
    "train.events": ("train.monitoring.events",),
    "train.examples": ("train.data.examples",),
    "train.fresh": ("train.generation.generation",),
    "train.kept": ("train.runtime.teacher_cache",),
    "train.marks": ("train.data.token_spans",),
    "train.memory": ("train.runtime.malloc",),
    "train.metrics": ("train.monitoring.metrics",),
    "train.output": ("train.artifact",),
    "train.policy": ("train.runtime.policy",),
    "train.revise": ("train.generation.revise",),
    "train.rules": ("train.monitoring.alerts",),
    "train.served": ("train.data.examples",),
    "train.state": ("train.run_state",),
    "train.steps": ("train.runtime.steps",),
    "train.teaching": ("train.runtime.teacher_runtime",),
    "train.watch": ("train.monitoring.alerts",),
    "train.wishes": ("train.data.examples",),
    "train.world": ("train.runtime.distributed",),
}
"""Old module -> the modules that have its names now, both below `afterword`."""
RENAMED = {
    "Average": "EMA",
    "Block": "FusedLinear",
    "Case": "FeedbackCase",
    "Decision": "CaseDecision",
    "Door": "OriginPolicy",
    "Figures": "FeedbackStats",
    "Identity": "IdentityTarget",
    "Index": "DuplicateIndex",
    "Kept": "KeyValues",
    "Ledger": "ArmTracker",
    "Left": "Excluded",
    "Line": "FusedSlice",
    "Mark": "ImportProgress",
    "ModelUser": "LLMUser",
    "Models": "AdapterScorer",
    "PER_SEQUENCE": "SEQUENCE_MEAN",
    "PER_TOKEN": "TOKEN_MEAN",
    "Passes": "Rollouts",
    "PerSequence": "SequenceMean",
    "PerToken": "TokenMean",
    "Product": "LoraLinearWeights",
    "Reading": "FollowUpReading",
    "Refusal": "SkipReason",
    "Rules": "StopRules",
    "Seen": "TurnOutcome",
    "Served": "UpstreamAnswer",
    "Teaching": "TeacherRuntime",
    "Update": "PolicyClip",
    "Watch": "CanaryMonitor",
    "Way": "AttentionLayout",
    "Who": "Requester",
    "World": "Distributed",
    "changed_places": "changed_positions",
    "clear_fresh": "clear_rollouts",
    "fresh_rows": "rollout_rows",
    "judge_of": "reward_function",
    "lane": "review_queue",
    "lean": "patch_lora_layers",
    "leaner": "patch_modules",
    "private_places": "private_positions",
    "product": "matmul",
    "product_of": "linear_weights",
    "repetition": "zlib_ratio",
    "served_logprobs": "sampler_logprobs",
    "told": "summary_lines",
    "verifier_of": "load_verifier",
    "way_of": "attention_layout",
}
"""Old name -> name of today, where it changed with the move."""


class MovedModules(MetaPathFinder, Loader):
    """Finds modules by their paths of version 0.1. It is asked last, so that it costs nothing where nothing is old."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of an old path, None for any other."""
        known = fullname.startswith("afterword.") and fullname.removeprefix("afterword.") in MOVED
        return ModuleSpec(fullname, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the module give the names of its new home."""
        homes = [f"afterword.{home}" for home in MOVED[module.__name__.removeprefix("afterword.")]]
        warnings.warn(
            f"{module.__name__} is now {' and '.join(homes)}: the old path ends with the next release",
            DeprecationWarning,
            stacklevel=2,
        )

        def name_of(name: str) -> Any:
            if not name.startswith("__"):
                for home in map(importlib.import_module, homes):
                    for now in (name, RENAMED.get(name, name)):
                        if hasattr(home, now):
                            return getattr(home, now)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = name_of


def install() -> None:
    """Find old paths from now on."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
