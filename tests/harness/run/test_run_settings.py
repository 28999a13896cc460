"""Settings of a run that cannot be: refused before anything is allocated, in one line with the way out."""

from __future__ import annotations

import pytest

import loopscale
from harness.run.length import solve
from model.config_validation import ConfigError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.parallel=dp", r"training.parallel=dp: must be 'ddp' or 'fsdp'"),
        ("training.micro_batch=9", r"micro_batch=9 is more than batch_sequences=4: at most 4"),
        ("training.micro_batch=0", r"training.micro_batch=0: must be greater than 0"),
        ("training.checkpoint_at=[0]", r"training.checkpoint_at.0=0: must be greater than 0"),
        (
            "training.device_peaks={H100: fast}",
            r"training.device_peaks.*=fast: must be a number, as",
        ),
        ("guardrails.max_skiped_steps=3", r"unknown key guardrails.max_skiped_steps \(did you mean "),
        ("guardrails.average_steps=1", r"guardrails.average_steps=1: must be greater than 1"),
        ("guardrails.max_rise_nats=-1", r"guardrails.max_rise_nats=-1: must be greater than 0"),
        ("schedule.warmup_steps=20", r"schedule.warmup_steps=20 leaves nothing of steps=20: at most 19"),
        ("schedule.cooldown_fraction=1", r"schedule.cooldown_fraction=1: must be less than 1"),
        ("optimizer.newton_schulz_steps=6", r"optimizer.newton_schulz_steps=6: must be less than 6"),
    ],
)
def test_what_cannot_be_is_refused(tiny, setting, message):
    with pytest.raises(ConfigError, match=message) as refused:
        solve(next(iter(loopscale.compose([*tiny, "steps=20", setting]).runs.values())))
    assert "\n" not in str(refused.value)
