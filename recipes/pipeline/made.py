"""Records and a held-out task in a made-up language, small enough to learn in seconds.

A document names a thing and a property; a query asks for both in words that no document has.  So nothing is found by
shared words, and what a stage taught is seen: the weak pairs of stage 1 name one of the two, know a third of the
properties, and are sometimes wrong; the labelled ones of stage 2 name both, of half of the things, in two sources with
different properties.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qwen3_embedding.data import Record, write_records
from qwen3_embedding.whole import whole_folder

THINGS, PROPERTIES, FILLERS = 40, 24, 24
WEAK, A = range(8), range(8, 16)
"""Properties that weak pairs ask for, and that the first labelled source asks for; the second asks for the rest."""
WRONG = 0.15
"""Share of weak pairs whose document is another one."""
HELD_OUT = 160
TASK = "find it"


def make(folder: Path, seed: int = 0) -> None:
    """Write ``weak.jsonl``, ``labelled-{a,b}.jsonl`` and the task ``held-out``; all of it or nothing."""
    world = World(np.random.default_rng(seed))
    with whole_folder(folder) as beside:
        write_records(beside / "weak.jsonl", world.weak(1600))
        pairs = [(int(n) // PROPERTIES, int(n) % PROPERTIES) for n in world.rng.permutation(THINGS * PROPERTIES)]
        held_out, rest = pairs[:HELD_OUT], pairs[HELD_OUT:]
        labelled = [p for p in rest if p[0] < THINGS // 2 and p[1] not in WEAK]
        write_records(beside / "labelled-a.jsonl", world.labelled([p for p in labelled if p[1] in A]))
        write_records(beside / "labelled-b.jsonl", world.labelled([p for p in labelled if p[1] not in A]))
        world.task(beside / "held-out", held_out)


class World:
    """Words and documents."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        count = 2 * THINGS + 2 * PROPERTIES + FILLERS
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        words: list[str] = []
        while len(words) < count:
            word = "".join(rng.choice(syllables, 3))
            if word not in words:
                words.append(word)
        cut = np.cumsum([THINGS, THINGS, PROPERTIES, PROPERTIES])
        parts = [list(part) for part in np.split(np.array(words), cut)]
        self.ask_thing, self.thing, self.ask_property, self.property, self.fillers = parts
        self.documents = {(t, p): self.document(t, p) for t in range(THINGS) for p in range(PROPERTIES)}

    def filler(self) -> str:
        """A word without meaning."""
        return str(self.rng.choice(self.fillers))

    def document(self, thing: int, prop: int) -> str:
        """A text that names both."""
        return f"{self.filler()} {self.thing[thing]} {self.filler()} {self.property[prop]} {self.filler()}"

    def query(self, thing: int, prop: int) -> str:
        """A text that asks for both."""
        return f"{self.ask_thing[thing]} {self.ask_property[prop]}"

    def weak(self, count: int) -> list[Record]:
        """Pairs that name the thing, or one of half of the properties; some of them wrong."""
        records = []
        for _ in range(count):
            thing, prop = int(self.rng.integers(THINGS)), int(self.rng.integers(PROPERTIES))
            text = self.documents[thing, prop]
            if self.rng.random() < WRONG:
                text = self.documents[int(self.rng.integers(THINGS)), int(self.rng.integers(PROPERTIES))]
            known = prop in WEAK and self.rng.random() < 0.5
            query = (
                f"{self.filler()} {self.ask_property[prop]}" if known else f"{self.ask_thing[thing]} {self.filler()}"
            )
            records.append(Record(query, (text,), "retrieval", "weak", instruction=TASK))
        return records

    def labelled(self, pairs: list[tuple[int, int]]) -> list[Record]:
        """Pairs that name both."""
        return [Record(self.query(*p), (self.documents[p],), "retrieval", "labelled", instruction=TASK) for p in pairs]

    def task(self, folder: Path, pairs: list[tuple[int, int]]) -> None:
        """A retrieval task over all documents, in BEIR's layout."""
        (folder / "qrels").mkdir(parents=True)
        info = {"name": "held-out", "kind": "retrieval", "task_instruction": TASK, "main_metric": "ndcg@10"}
        (folder / "dataset.json").write_text(json.dumps(info) + "\n")
        corpus = [{"_id": f"d{t}-{p}", "text": text} for (t, p), text in self.documents.items()]
        queries = [{"_id": f"q{t}-{p}", "text": self.query(t, p)} for t, p in pairs]
        for name, rows in (("corpus", corpus), ("queries", queries)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        judged = "".join(f"q{t}-{p}\td{t}-{p}\t1\n" for t, p in pairs)
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
