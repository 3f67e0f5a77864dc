"""`deepsched onboard`: watch a system, fit a simulator to it, train and judge on that, and say what would be gained."""

from __future__ import annotations

import sys
from typing import Any

from rayjobs.cli.main import Verb, run_verb
from rayjobs.onboard.options import OnboardOptions

EXIT_CHECK_FAILED = 1


def run(options: OnboardOptions) -> int:
    """0 when a page and a bundle were written, with or without a gain; 1 when a necessary check failed."""
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.cli.progress import Progress
    from rayjobs.onboard.kept import STEPS, Kept
    from rayjobs.onboard.page import PAGE, short
    from rayjobs.onboard.steps import Onboarding, stages, step_options

    kept = Kept(options.folder, step_options(options))
    with kept.locked():
        done = [step for step in STEPS if kept.result(step) is not None]
        for line in (kept.restarted, f"kept from before: {', '.join(done)}" if done else ""):
            if line:
                console_err().print(line, markup=False, soft_wrap=True)
        with Progress(stages(options)) as progress:
            onboarding = Onboarding(options, kept, progress)
            failed = onboarding.preflight()
            found = None if failed else onboarding.finish()
    if found is None:
        for check in failed:
            console_err().print(_failure(check), markup=False, soft_wrap=True)
        return EXIT_CHECK_FAILED
    for line in short(found):
        console_out().print(line, markup=False, soft_wrap=True)
    console_out().print(f"page: {kept.folder / PAGE}", markup=False, soft_wrap=True)
    return 0


def _failure(check: dict[str, Any]) -> str:
    remedy = f"; {check['remedy']}" if check["remedy"] else ""
    return f"deepsched onboard: {check['name']}: {check['what']}{remedy}"


VERB = Verb(
    name="onboard",
    example="deepsched onboard --status-url http://127.0.0.1:8081/status/format/json --nginx-conf /etc/nginx/nginx.conf"
    " --folder /var/lib/deepsched",
    options=OnboardOptions,
    run=run,
    common=(
        "status_url", "nginx_conf", "control_url", "token_file", "folder", "groups", "method", "load_balancers",
        "watch_s", "train_steps", "promise.measure_s",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
