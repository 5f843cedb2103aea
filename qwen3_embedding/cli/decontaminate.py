"""``decontaminate``: training records without what the evaluation sets ask and answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from qwen3_embedding.cli.common import Json


def command(
    records: Annotated[list[Path], typer.Argument(help="Record files, or folders of them.")],
    against: Annotated[list[Path], typer.Option(help="Evaluation tasks, or folders of them; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Folder of the clean records, under the files' own names.")],
    run_words: Annotated[int, typer.Option(help="A shared run of so many words is a match; 0: look for none.")] = 13,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Look for near duplicates.")] = True,
    samples: Annotated[int, typer.Option(help="Examples of each reason in the report.")] = 20,
    as_json: Json = False,
) -> None:
    """Leave out records that hold texts of evaluation sets; OUT/decontamination.json has counts and samples."""
    from qwen3_embedding.data.decontaminate import DecontaminationSettings, Decontaminator, clean_files
    from qwen3_embedding.data.files import record_files
    from qwen3_embedding.data.near_duplicates import MinHashSettings
    from qwen3_embedding.evaluation.run import find_tasks
    from qwen3_embedding.evaluation.texts import evaluation_texts

    settings = DecontaminationSettings(run_words=run_words, near=MinHashSettings() if near else None, samples=samples)
    check = Decontaminator(settings)
    for folder, info in find_tasks(against):
        check.add(info.name, evaluation_texts(folder))
    files = [file for path in records for file in record_files(path)]
    report = clean_files(files, out, check, lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(report.to_mapping(), ensure_ascii=False, indent=2))
        return
    print(f"{report.seen} records, {report.dropped} dropped; report and samples in {out / 'decontamination.json'}")
    for title, counts in (
        ("reason", report.by_reason),
        ("evaluation set", report.by_set),
        ("source", report.by_source),
    ):
        for name, count in counts.most_common():
            print(f"  {title} {name}: {count}")
