"""Documents × configurations → pairs, many at a time, resumable at every answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from qwen3_embedding.data.record import to_mapping
from qwen3_embedding.errors import RemoteError
from qwen3_embedding.synthesis.completion import (
    Completion,
    LanguageModel,
    RefusedError,
    Request,
    UnavailableError,
)
from qwen3_embedding.synthesis.document import Document
from qwen3_embedding.synthesis.draws import Draws
from qwen3_embedding.synthesis.ledger import Answer, Ledger
from qwen3_embedding.synthesis.parse import AnswerError, Parsed, parse_answer
from qwen3_embedding.synthesis.personas import Persona, PersonaIndex, library_hash
from qwen3_embedding.synthesis.tasks import KINDS, TASKS, USED_TEMPLATES, Ask, Craft, Draft, Kind, Unit, to_record
from qwen3_embedding.synthesis.template import Template

_DOCUMENTS_AT_ONCE = 64
_RETRY = """{prompt}

Your last answer could not be used: {problem}. Answer again, with exactly one JSON object and nothing else."""


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """How many units of each kind a document gets; a fraction is the share of documents that get one more."""

    retrieval: float = 1.0
    bitext: float = 0.0
    sts: float = 0.0
    classification: float = 0.0
    clustering: float = 0.0
    code: float = 0.0

    def __post_init__(self) -> None:
        if any(self.of(kind) < 0 for kind in KINDS) or not any(self.of(kind) > 0 for kind in KINDS):
            raise ValueError(f"units are {asdict(self)}; wanted 0 or more of each kind and more than 0 of one")

    def of(self, kind: Kind) -> float:
        """Units of one kind per document."""
        value: float = getattr(self, kind)
        return value


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run makes."""

    source: str
    """The ``source`` of the records."""
    seed: int = 0
    units: UnitSettings = field(default_factory=UnitSettings)
    attempts: int = 2
    """Answers before a question is given up; from the second on, the model is told what was wrong."""
    budget: float | None = None
    """Stop beginning units when the answers of the ledger have cost this much."""
    patience: int = 20
    """Stop when so many units in a row got no answer."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.patience < 1:
            raise ValueError(f"attempts is {self.attempts} and patience {self.patience}; wanted 1 or more")


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    done: int = 0
    """Units that ended in this run, and …"""
    skipped: int = 0
    """… before it."""
    failed: int = 0
    """Of ``done``, those without pairs."""
    unavailable: int = 0
    """Units that got no answer; they stay open."""
    pairs: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    stale: int = 0
    """Answers in the ledger to a question that is worded otherwise now; asked anew."""
    out_of_budget: bool = False


class _UnitFailed(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Generator:
    """Runs units through a model and notes everything in a ledger.

    Args:
        settings: what to make.
        craft: languages and templates.
        personas: the candidates of each document.
        model: answers.
        ledger: remembers.
        cost: price of (input, output) tokens.
    """

    def __init__(
        self,
        settings: RunSettings,
        craft: Craft,
        personas: PersonaIndex,
        model: LanguageModel,
        ledger: Ledger,
        cost: Callable[[int, int], float] = lambda _input, _output: 0.0,
    ) -> None:
        self.progress = Progress()
        self._settings = settings
        self._craft = craft
        self._personas = personas
        self._model = model
        self._ledger = ledger
        self._cost = cost
        self._in_a_row = 0

    async def run(
        self, documents: Iterable[Document], concurrency: int, watch: Callable[[Progress], None] = lambda _: None
    ) -> Progress:
        """Bring every unit of the documents to its end.

        Units that ended before are skipped; of a unit that was begun, the answers that are there are used.

        Args:
            documents: read as they are needed.
            concurrency: units at a time.
            watch: called after every unit.

        Raises:
            RemoteError: the server refuses everything, or has not answered many units in a row.  What is in the ledger
                stays; repeat the call to go on.
        """
        queue: asyncio.Queue[Unit | None] = asyncio.Queue(2 * concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(documents, queue, concurrency))
                for _ in range(concurrency):
                    group.create_task(self._work(queue, watch))
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return self.progress

    async def _feed(self, documents: Iterable[Document], queue: asyncio.Queue[Unit | None], workers: int) -> None:
        async for unit in self._open_units(documents):
            if self._over_budget():
                self.progress.out_of_budget = True
                break
            await queue.put(unit)
        for _ in range(workers):
            await queue.put(None)

    async def _open_units(self, documents: Iterable[Document]) -> AsyncIterator[Unit]:
        """The units that have not ended, with their personas, a batch of documents at a time."""
        stream = iter(documents)
        while batch := await asyncio.to_thread(lambda: list(islice(stream, _DOCUMENTS_AT_ONCE))):
            wanted: list[tuple[Document, list[tuple[Kind, int]]]] = []
            for document in batch:
                configurations = list(plan(document, self._settings))
                rest = [item for item in configurations if unit_id(document, *item) not in self._ledger.ended]
                self.progress.skipped += len(configurations) - len(rest)
                if rest:
                    wanted.append((document, rest))
            if not wanted:
                continue
            people = await asyncio.to_thread(
                self._personas.candidates, [doc.text for doc, _ in wanted], [doc.hash for doc, _ in wanted]
            )
            for (document, rest), candidates in zip(wanted, people, strict=True):
                for kind, number in rest:
                    yield make_unit(document, kind, number, self._settings.seed, candidates)

    async def _work(self, queue: asyncio.Queue[Unit | None], watch: Callable[[Progress], None]) -> None:
        while (unit := await queue.get()) is not None:
            if self._over_budget():
                self.progress.out_of_budget = True
                continue
            await self._run_unit(unit)
            watch(self.progress)

    def _over_budget(self) -> bool:
        totals, budget = self._ledger.totals, self._settings.budget
        return budget is not None and self._cost(totals.input_tokens, totals.output_tokens) >= budget

    async def _run_unit(self, unit: Unit) -> None:
        log: list[dict[str, Any]] = []
        try:
            drafts = await self._drafts(unit, log)
            pairs = [self._pair(unit, draft, log) for draft in drafts]
        except UnavailableError as error:
            self.progress.unavailable += 1
            self._in_a_row += 1
            if self._in_a_row >= self._settings.patience:
                raise RemoteError(
                    f"{self._in_a_row} units in a row got no answer, the last: {error}; nothing that was answered is "
                    "lost; repeat the command when the server is well"
                ) from error
            return
        except RefusedError as error:
            self._fail(unit, "refused", str(error))
        except _UnitFailed as error:
            self._fail(unit, error.reason, str(error))
        except AnswerError as error:
            self._fail(unit, error.kind, str(error))
        else:
            self._ledger.end(unit.id, pairs)
            self.progress.pairs += len(pairs)
        self._in_a_row = 0
        self.progress.done += 1

    def _fail(self, unit: Unit, reason: str, detail: str) -> None:
        self._ledger.fail(unit.id, reason, detail)
        self.progress.failed += 1

    async def _drafts(self, unit: Unit, log: list[dict[str, Any]]) -> list[Draft]:
        script = TASKS[unit.kind](unit, self._craft)
        try:
            ask = next(script)
            while True:
                parsed = await self._answer(unit, ask, log)
                ask = script.send(parsed.value)
        except StopIteration as stop:
            drafts: list[Draft] = stop.value
            return drafts

    async def _answer(self, unit: Unit, ask: Ask, log: list[dict[str, Any]]) -> Parsed:
        """The checked answer to one question: out of the ledger where it is there, else from the model."""
        template = self._craft.templates[ask.template]
        prompt = question = template.render(ask.values)
        for attempt in range(self._settings.attempts):
            answer = self._noted(unit, ask.template, attempt, prompt)
            if answer is None:
                answer = await self._ask_model(unit, template, attempt, prompt)
            try:
                parsed = parse_answer(answer.text, template.schema, answer.truncated)
                if ask.check:
                    ask.check(parsed.value)
            except AnswerError as error:
                problem: AnswerError = error
                prompt = _RETRY.format(prompt=question, problem=error)
                continue
            log.append(_step(answer, template, parsed))
            return parsed
        raise _UnitFailed(problem.kind, f"{ask.template}: {problem}")

    def _noted(self, unit: Unit, step: str, attempt: int, prompt: str) -> Answer | None:
        noted = [a for a in self._ledger.answers(unit.id) if a.step == step and a.attempt == attempt]
        if not noted:
            return None
        asked = _hash(prompt)
        fitting = next((answer for answer in noted if answer.prompt_hash == asked), None)
        self.progress.stale += fitting is None
        return fitting

    async def _ask_model(self, unit: Unit, template: Template, attempt: int, prompt: str) -> Answer:
        seed = unit.draws.seed(f"model/{template.name}/{attempt}")
        key = f"{unit.id}-{template.name}-{attempt}"
        request = Request(prompt, template.system, seed, template.schema, template.name, key)
        completion = await self._model.complete(request)
        answer = _to_answer(unit, template.name, attempt, prompt, seed, completion)
        self._ledger.add_answer(answer)
        self.progress.requests += completion.tries
        self.progress.input_tokens += completion.input_tokens
        self.progress.output_tokens += completion.output_tokens
        return answer

    def _pair(self, unit: Unit, draft: Draft, log: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            record = to_record(draft, self._settings.source)
        except ValueError as error:
            raise _UnitFailed("content", str(error)) from None
        provenance = {
            "unit": unit.id,
            "kind": unit.kind,
            "number": unit.number,
            "document": unit.document.id,
            "document_hash": unit.document.hash,
            "model": self._model.name,
            "seed": self._settings.seed,
            "settings": self._ledger.settings,
            "personas": self._personas.how,
            "steps": log,
            "choices": dict(draft.choices),
            "query_language": draft.query_language,
            "positive_language": draft.positive_language,
            "length": draft.length,
        }
        return {"record": to_mapping(record), "provenance": provenance}


def plan(document: Document, settings: RunSettings) -> Iterator[tuple[Kind, int]]:
    """Which units a document gets: a function of the seed and the document's text alone."""
    draws = Draws(f"{settings.seed}/{document.hash}")
    for kind in KINDS:
        wanted = settings.units.of(kind)
        count = int(wanted) + (draws.uniform(f"units/{kind}") < wanted % 1)
        for number in range(count):
            yield kind, number


def unit_id(document: Document, kind: Kind, number: int) -> str:
    """16 hex digits."""
    return _hash(f"{document.hash}/{kind}/{number}")


def make_unit(document: Document, kind: Kind, number: int, seed: int, personas: Iterable[Persona]) -> Unit:
    """A unit with its draws."""
    draws = Draws(f"{seed}/{document.hash}/{kind}/{number}")
    return Unit(unit_id(document, kind, number), kind, number, document, draws, tuple(personas))


def fingerprint(
    settings: RunSettings,
    craft: Craft,
    personas: PersonaIndex,
    library: Iterable[Persona],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """What the answers of a ledger depend on; a ledger does not mix two of them.

    How many units, retries or requests at a time do not count: they may change between runs.
    """
    used = sorted({name for kind in KINDS if settings.units.of(kind) > 0 for name in USED_TEMPLATES[kind]})
    return {
        "seed": settings.seed,
        "source": settings.source,
        **{f"template {name}": craft.templates[name].hash for name in used},
        "languages": asdict(craft.languages),
        "instruction_variants": craft.instruction_variants,
        "personas": library_hash(list(library)),
        "persona_retrieval": personas.how,
        **{f"model {name}": value for name, value in model.items()},
    }


def _to_answer(unit: Unit, step: str, attempt: int, prompt: str, seed: int, completion: Completion) -> Answer:
    return Answer(
        unit=unit.id,
        step=step,
        attempt=attempt,
        prompt_hash=_hash(prompt),
        text=completion.text,
        seed=seed,
        input_tokens=completion.input_tokens,
        output_tokens=completion.output_tokens,
        estimated=completion.estimated,
        truncated=completion.truncated,
        tries=completion.tries,
        seconds=round(completion.seconds, 3),
    )


def _step(answer: Answer, template: Template, parsed: Parsed) -> dict[str, Any]:
    return {
        "template": template.name,
        "template_hash": template.hash,
        "seed": answer.seed,
        "attempt": answer.attempt,
        "repairs": list(parsed.repairs),
        "tokens": [answer.input_tokens, answer.output_tokens],
    }


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
