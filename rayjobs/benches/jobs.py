"""Bench `jobs`: `ray job submit` to the first training result, `ray job stop` to the last process, exit codes."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench import Bar, BenchContext, at_least, at_most, figure

FIRST_RESULT_S = 75.0
STOP_S = 15.0


def measure(context: BenchContext) -> Sequence[Bar]:
    """The bars of submitted jobs, on a head of its own; the live job only when not quick."""
    from rayjobs.bench_jobs import first_result_s, job_head, stop_live_s, wrong_option_code

    with job_head() as head:
        # The first job uploads the package and starts the first workers: only the second one finds a warm head.
        cold_s = first_result_s(head, "cold", context.work_dir / "cold")
        head.command("stop", "cold")
        context.log(f"first result of the first job after {cold_s:.1f} s")
        how = "the configuration train-quick: upload, start, observation, first training iteration"
        bars = [figure("ray job submit to first training result, first job of a head", cold_s, "s", how=how)]
        if context.quick:
            return bars
        warm_s = first_result_s(head, "warm", context.work_dir / "warm")
        head.command("stop", "warm")
        bars.append(at_most("ray job submit to first training result, warm head", warm_s, FIRST_RESULT_S, "s", how=how))
        stop_s, count = stop_live_s(head, "live", context.work_dir / "live")
        how = f"live training with {count} processes under its folder, stopped under load"
        bars.append(at_most("ray job stop to its last process", stop_s, STOP_S, "s", how=how))
        shown, real = wrong_option_code(head)
        how = "a typo in an option: 2 in the job's record; the command itself knows only 0 and 1"
        bars.append(at_least("real exit code of a job", float(real or 0), 2.0, "", how=how, reference=float(shown)))
    return bars
