"""Losses of every recipe as they were before the slots were widened: a recipe of old must not change in silence.

`GOLDEN` holds (objective, norm of its gradient) of one step over the rows of `test_properties`' lab. A recipe whose
numbers change on purpose gets new ones here and a line on its page.
"""

from __future__ import annotations

import pytest
from tests.learn.test_properties import Lab, evaluate, lab, made

__all__ = ["lab"]

GOLDEN: dict[str, tuple[float, float]] = {
    "follow-ups": (3.033118242047907, 1.4181943270064759),
    "sdpo-interactions": (0.9864931706632915, 0.9030838601920117),
    "sdpo-interactions-offline": (-1.1278276989815972, 8.602256827055259),
    "sdpo-interactions-online": (1.8389995909507482, 6.774535445057024),
    "sdpo": (0.18812079498455916, 0.13267166782672823),
    "sdft": (1.072578886079482, 1.4986389888339064),
    "opsd": (0.21745204953478883, 0.16036554132890973),
    "opsd-clipped": (0.037377049151014106, 0.043831005176892424),
    "opcd": (0.7527713083747439, 1.1823568877079338),
    "gkd": (0.307310049842737, 0.07346611749775077),
    "minillm": (-1.4002278185483557, 4.2478670709471595),
    "opd": (-2.4492271414381204, 2.9991241497164283),
    "eopd": (1.467187397858932, 3.08276417213756),
    "veto": (0.9294048347032049, 0.5629116782653257),
    "stable-opd": (-1.3905588117419894, 3.376001833093248),
    "revisit-opd": (1.1419354896190639, 0.8925579173371518),
    "exopd": (-2.454503380891461, 3.641607422001469),
    "reopold": (-0.16645165347916535, 3.9188428612752264),  # 1.34, 1.84 until it was divided by the tokens of its gates
    "sft": (4.795502012804735, 2.7435239142573153),
    "grpo": (-3.456914674613488, 2.654177861087757),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recipe_of_old_has_the_losses_that_it_had(lab: Lab, name: str) -> None:
    one = made(name)
    rows = lab.rows(one)
    loss, gradient = evaluate(lab, one, rows, [range(len(rows))])
    assert (float(loss), float(gradient.norm())) == pytest.approx(GOLDEN[name], rel=1e-9, abs=1e-12)
