"""Can what the model answers be trained? Asked before a week of answers is collected, without loading its weights.

Owns `doctor`'s line on the model. It reads only what is on this machine: nothing is downloaded or converted for it.
"""

from __future__ import annotations

from pathlib import Path

from afterword.cli.context import Context
from afterword.cli.dry_run import forecast
from afterword.cli.stages import stage_settings
from afterword.cli.target_model import served_model
from afterword.cycle import select_stage
from afterword.errors import AfterwordError
from afterword.store import Store


def check_model(context: Context) -> tuple[bool, str]:
    """Whether the model can be trained, with the conversations that its template refuses and what a run would exclude
    of what waits now."""
    try:
        from afterword.chat.render import template_faults, template_limits
        from afterword.model.embedded import EMBEDDED, embedded_folder, is_whole
        from afterword.model.loading import load_tokenizer
    except ModuleNotFoundError:
        return True, "not checked: the packages for models are missing"
    try:
        ref = served_model(context)
    except AfterwordError as error:
        return True, f"not checked: {error.message}"
    if not (is_whole(embedded_folder()) if ref == EMBEDDED else Path(ref).expanduser().is_dir()):
        return True, f"{ref} is not on this machine yet; it is checked when `afterword serve` loads it"
    try:
        tokenizer = load_tokenizer(ref)
        faults = template_faults(tokenizer)
    except AfterwordError as error:
        return False, error.message
    if faults:
        return False, "; ".join(faults)
    notes = [f"what {ref} answers can be trained", *template_limits(tokenizer), *_waiting(context)]
    return True, "; ".join(notes)


def _waiting(context: Context) -> list[str]:
    """What a run would do with the interactions that wait; nothing where there are none or the store cannot be read."""
    path = context.dir / "afterword.db"
    if not path.exists():
        return []
    try:
        settings = stage_settings(context)
        with Store.open(path) as store:
            found = forecast(store, select_stage(store, settings), settings)
    except AfterwordError:  # other lines speak of the settings and the database
        return []
    told = [f"{one['interactions']} {one['reason']} ({one['detail']})" for one in found.excluded]
    return [found.says + (f": {', '.join(told)}" if told else "")]
