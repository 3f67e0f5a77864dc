"""`deepsched fetch JOB`: the results of a submitted job that stayed on the cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from actuators.files import writable_folder
from actuators.options import Options
from rayjobs.cli.main import Verb, run_verb


class FetchOptions(Options):
    """Which job, and where to."""

    job: str
    """The submission id that `ray job submit` printed, such as raysubmit_…; the job's own first lines name it, too."""
    address: str | None = None
    """Where the job was submitted: http://HOST:8265. When not given, RAY_API_SERVER_ADDRESS or RAY_ADDRESS names it;
    without them it is the Ray of this machine."""
    out: Path = Path("runs")
    """Folder that receives the job's folders; what is there already is not overwritten."""


def run(options: FetchOptions) -> int:
    """Writes the folders of the job's runs; prints where they are. Of a running job it fetches what is there now."""
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.fetch.transfer import answering, folders_of, job_client, packed, unpack

    client = job_client(options.address)
    folders = folders_of(client, options.job)
    with answering():
        status = client.get_job_status(options.job)
    if not status.is_terminal():
        console_err().print(f"the job is {status.value.lower()}: its results are not complete", markup=False)
    into = writable_folder(options.out)
    with console_err().status("") as shown:
        for folder in folders:
            shown.update(f"packing {folder}")
            target = unpack(packed(client, options.job, folder, shown.update), into)
            console_out().print(f"results: {target}", markup=False, soft_wrap=True)
    return 0


VERB = Verb(
    name="fetch",
    example="deepsched fetch raysubmit_9Xb2kYcQ3v1mZt7E --address http://127.0.0.1:8265",
    options=FetchOptions,
    run=run,
    positional=("job",),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
