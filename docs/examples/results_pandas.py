"""Reads what runs left, from any folder below which there are some, into pandas.

python docs/examples/results_pandas.py [FOLDER]
"""

import sys
from pathlib import Path

import pandas as pd


def tables(folder: Path, name: str) -> pd.DataFrame:
    """The tables of this name of all runs below the folder, with the run in front of every row.

    A run of several parts holds their rows in its own table; those of the parts are left out.
    """
    read = {".parquet": pd.read_parquet, ".csv": pd.read_csv}[Path(name).suffix]
    paths = sorted(folder.rglob(name))
    parts = {path for path in paths for above in paths if above != path and above.parent in path.parents}
    found = {str(path.parent.relative_to(folder)): read(path) for path in paths if path not in parts}
    return pd.concat(found, names=["run"]).reset_index(level="run") if found else pd.DataFrame()


def main(folder: str = "runs") -> dict[str, pd.DataFrame]:
    """The curve of every training, the results of every judgement, and the trials of every sweep."""
    names = {"curves": "progress.csv", "judged": "evaluation.parquet", "trials": "sweep.parquet"}
    return {kind: tables(Path(folder), name) for kind, name in names.items()}


if __name__ == "__main__":
    found = main(*sys.argv[1:])
    for kind, table in found.items():
        print(f"{kind}: {len(table)} rows; columns: {', '.join(table.columns)}")
    if len(found["curves"]):
        print(found["curves"].groupby("run")["episode_return"].last())
