"""`loopscale pursue`: a question and an allowance in, an answer out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from model.config_validation import ConfigError
from sweeps.cli.help import Command
from sweeps.config.folders import CONF, STUDY
from sweeps.config.next_command import next_command
from sweeps.config.study import StudyConfig
from sweeps.state.profile import study_of

if TYPE_CHECKING:
    from sweeps.pursuit.record import PursuitRecord, Round


def run_pursuit(study: StudyConfig) -> PursuitRecord | None:
    """Pursue the study's question to its end, or continue; return the record, None if a person refused."""
    from sweeps.pursuit.offer import named
    from sweeps.pursuit.pursue import pursue, train

    study = named(study)

    def ask(now: Round, first: bool) -> bool:
        if not (study.confirm_rounds or (first and study.confirm)):
            return True
        if not sys.stdin.isatty():
            raise ConfigError(
                "pursue asks before it starts and there is no terminal to ask: add confirm=false"
                + (" and leave confirm_rounds out" if study.confirm_rounds else "")
            )
        print("start? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return pursue(study, lambda line: print(line, file=sys.stderr, flush=True), ask, train)


def _pursue(overrides: list[str]) -> str | None:
    from sweeps.pursuit.offer import named

    study = study_of(overrides)
    if study.detach:
        raise ConfigError(
            "detach=true is not there yet: start pursue where it may run for days, as in tmux on a login "
            "node; it holds no GPU, asks the scheduler once a minute and continues after any stop"
        )
    if study.dry_run:
        from sweeps.cli.progress import stage_progress
        from sweeps.pursuit.dry_run import dry_run

        with stage_progress() as progress:
            results = dry_run(named(study), progress)
        return "\n".join([one.summary() for one in results])
    record = run_pursuit(study)
    if record is None:
        return None
    from sweeps.pursuit.pursue import summary

    name = str(named(study).sweep.name)
    at = [f"sweep={name}", *(text for text in overrides if text.startswith("root="))]
    return "\n".join([summary(record), next_command("report", at)])


def _keys() -> list[str]:
    """Return the lines of the help on the keys of a pursuit, from the end of conf/loopscale.yaml."""
    text = (CONF / f"{STUDY}.yaml").read_text(encoding="utf-8")
    return ["", *text[text.index("# of pursue") :].strip().splitlines()]


COMMANDS = {
    "pursue": Command(
        run=_pursue,
        summary="a question and an allowance in, an answer out: rounds of runs until it is narrow enough",
        example="loopscale pursue question=exponent target_width=0.1 allowance=300h cluster=mine",
        more=_keys,
    )
}
