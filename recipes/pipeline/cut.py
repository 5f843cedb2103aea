"""A smaller cut of a folder of training records, for a machine that the whole does not fit on.

    python recipes/pipeline/cut.py RECORDS OUT --records 40000 --characters 1000 [--only tatoeba_multi=100000 ...]

Each file keeps a random choice of its records in their order, texts cut to so many characters; ``--only NAME=COUNT``
sets one file's number (0 leaves the file out).  The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from pathlib import Path


def main() -> None:
    """Cut every file."""
    from qwen3_embedding.data.files import read_records, record_files, write_records

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of record files")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--records", dest="count", type=int, default=40_000, help="of a file, at most")
    parser.add_argument("--characters", type=int, default=1000, help="of a text, at most")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME=COUNT", help="another number for a file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = {name: int(count) for name, _, count in (entry.partition("=") for entry in arguments.only)}
    files = {file.name.split(".")[0]: file for file in record_files(arguments.records)}
    if unknown := sorted(counts.keys() - files.keys()):
        parser.error(f"--only names {', '.join(unknown)}; there are {', '.join(files)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        count = counts.get(name, arguments.count)
        output = arguments.out / file.name
        if count == 0 or output.exists():
            continue
        records = list(read_records(file))
        if count < len(records):
            kept = sorted(random.Random(f"{arguments.seed} {name}").sample(range(len(records)), count))
            records = [records[place] for place in kept]
        end = arguments.characters
        write_records(
            output,
            (
                dataclasses.replace(
                    record,
                    query=record.query[:end],
                    positives=tuple(text[:end] for text in record.positives),
                    negatives=tuple(text[:end] for text in record.negatives),
                )
                for record in records
            ),
        )
        print(f"{output}: {len(records):,} records, {output.stat().st_size / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
