"""The playground in a real Chromium, every tool once, against the running server. Skipped where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.serving.browser import Visit, chromium, missing

if TYPE_CHECKING:
    from pathlib import Path

    from qwen3_embedding import Embedder, Reranker

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
CLOSE = 2e-5


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def shared(browser: Any, url: str) -> Iterator[Visit]:
    visit = Visit(browser, url, viewport={"width": 1200, "height": 800})
    yield visit
    visit.close()


@pytest.fixture
def visit(shared: Visit) -> Iterator[Visit]:
    yield shared
    assert shared.trouble == []  # no error on the console, no request to anywhere else
    assert not shared.too_wide


def drop_file(visit: Visit, name: str, text: str) -> None:
    """As a hand would: over the page, then down."""
    visit.page.evaluate(
        """([name, text]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([text], name));
            const how = {dataTransfer: carried, bubbles: true, cancelable: true};
            for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, how));
        }""",
        [name, text],
    )


def test_rerank(visit: Visit, reranker: Reranker) -> None:
    page = visit.page
    page.fill("#r-query", "which star")
    page.fill("#r-docs", "a small stone\na bright star\nthe moon")
    page.focus("#r-docs")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#r-out .hit")
    scores = reranker.score("which star", ["a small stone", "a bright star", "the moon"])
    order = np.argsort(-scores, kind="stable")
    assert [float(text) for text in page.locator("#r-out .score").all_inner_texts()] == pytest.approx(
        scores[order].tolist(), abs=1e-4
    )
    moves = page.locator("#r-out .move").all_inner_texts()
    assert [f"was {place + 1}" in move for place, move in zip(order, moves, strict=True)] == [True] * 3
    page.click("#r-out .hit summary")
    page.wait_for_selector("#r-out .tokens span")
    shown = page.inner_text("#r-out pre")
    assert "<Query>: which star\n<Document>: " in shown
    assert shown.rstrip().endswith("</think>")
    assert "tokens in" in page.inner_text("#r-status")


def test_similarity(visit: Visit, embedder: Embedder) -> None:
    visit.tab("similarity")
    page = visit.page
    page.fill("#s-left", "a star\na stone")
    page.fill("#s-right", "the moon\na bright star\nbread")
    page.fill("#s-instruction", "Find it")
    visit.run("similarity", "#s-out table")
    wanted = embedder.similarity(
        embedder.embed_queries(["a star", "a stone"], "Find it"),
        embedder.embed_documents(["the moon", "a bright star", "bread"]),
    )
    shown = [float(text) for text in page.locator("#s-out td").all_inner_texts()]
    np.testing.assert_allclose(shown, wanted.reshape(-1), atol=6e-4)
    assert page.locator("#s-out td.best").count() == 2


def test_search_over_a_dropped_file(visit: Visit, embedder: Embedder) -> None:
    rows = [("1", 'a "bright" star, far away'), ("2", "bread\nand butter"), ("3", "the moon")]
    csv = "id,text,topic\n" + "".join(f'{n},"{text.replace(chr(34), chr(34) * 2)}",t{n}\n' for n, text in rows)
    drop_file(visit, "notes.csv", csv)
    page = visit.page
    page.wait_for_selector("#search.on")
    page.wait_for_selector("#f-note:has-text('3 chunks, all embedded')")
    assert page.input_value("#f-column") == "text"
    page.fill("#q-query", "star")
    visit.run("search", "#q-out .two")
    texts = [text for _, text in rows]
    scores = embedder.similarity(embedder.embed_queries(["star"]), embedder.embed_documents(texts))[0]
    found = page.locator("#q-out .two > div:first-child .text").all_inner_texts()
    assert found == [texts[place] for place in np.argsort(-scores)]
    assert page.locator("#q-out .two > div:last-child .hit").count() == 3
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    visit.tab("map")
    visit.run("map", "#m-canvas")
    assert [url.rpartition("/")[2] for url in asked] == ["embeddings"]  # the query; the texts are in the page already


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.txt", "one two\nthree\n\nfour", ["one two\nthree", "four"]),
        ("a.md", "# A\nalpha\n## B\nbeta\n```\n# no heading\n```\n# C\ngamma", 3),
        ("a.jsonl", '{"title": "T", "text": "x"}\n"y"\n', ["T\nx", "y"]),
        ("a.json", '[{"text": "x"}]', ["x"]),
        ("a.tsv", "name\tcontent\na\tlong words\n", ["long words"]),
        ("a.csv", 'text\r\n"a ""b"", c"\r\nd\r\n', ['a "b", c', "d"]),
    ],
)
def test_files_become_chunks(visit: Visit, name: str, text: str, wanted: list[str] | int) -> None:
    chunks = visit.page.evaluate(
        "([name, text]) => chunksOf(name, text, 0).chunks.map(part => part.text)", [name, text]
    )
    assert (len(chunks) if isinstance(wanted, int) else chunks) == wanted


def test_long_texts_are_cut_into_chunks_and_lose_nothing(visit: Visit) -> None:
    text = " ".join(f"Sentence number {i} ends here." for i in range(200)) + "\n\n" + "x" * 2_000 + "\n\n" + "🦊" * 900
    chunks = visit.page.evaluate("text => chunk(text, 400)", text)
    assert max(len(part.encode("utf-16-le")) // 2 for part in chunks) <= 400
    assert "".join("".join(chunks).split()) == "".join(text.split())


def test_what_is_no_text_is_told(visit: Visit) -> None:
    page = visit.page
    for name, text, word in (("bad.jsonl", '{"text": "a"}\n{oops', "line 2"), ("empty.txt", "  \n", "no text")):
        drop_file(visit, name, text)
        page.wait_for_selector(f"#f-note:has-text('{word}')")


def test_dimensions(visit: Visit, embedder: Embedder) -> None:
    visit.tab("search")
    page = visit.page
    texts = [f"text {i} of {'stars' if i % 2 else 'bread'} and {i * i}" for i in range(12)]
    drop_file(visit, "many.txt", "\n\n".join(texts))
    page.select_option("#f-size", "0")
    page.wait_for_selector("#f-note:has-text('12 chunks, all embedded')")
    visit.tab("dimensions")
    visit.run("dimensions", "#d-out .chart")
    assert page.inner_text("#d-out .numbers b") == "1.000"
    page.fill("#d-size", "32")
    page.check("input[name=d-type][value=binary]", force=True)
    assert "4\nbytes a vector, not 256" in page.inner_text("#d-out .numbers")
    full = embedder.embed_documents(texts)
    for kind in ("float32", "int8", "binary"):
        mine = embedder.embed_documents(texts, dimensions=32, precision=kind)
        near, whole = embedder.similarity(mine, mine, kind), full @ full.T
        shown = page.evaluate(f"cosines(32, '{kind}').map(row => Array.from(row))")
        np.testing.assert_allclose(shown, near, atol=1e-3 if kind == "int8" else CLOSE)
        for scores in (near, whole):
            np.fill_diagonal(scores, -9)
        assert page.evaluate("measured.full.map(row => best(row, 3, measured.full.indexOf(row)))") == [
            row.tolist() for row in np.argsort(-whole, axis=1, kind="stable")[:, :3]
        ]


def test_principal_components(visit: Visit) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 12)) * np.geomspace(3, 0.1, 12)
    found = visit.page.evaluate("rows => { const all = pca(rows); return [all.points, all.shares]; }", rows.tolist())
    centred = rows - rows.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found[0]), np.abs(centred @ axes[:2].T), atol=1e-3)
    np.testing.assert_allclose(found[1], (values**2 / (values**2).sum())[:2], atol=1e-5)


def test_map(visit: Visit) -> None:
    visit.tab("map")
    visit.run("map", "#m-canvas")
    page = visit.page
    page.focus("#m-canvas")
    page.keyboard.press("ArrowRight")
    assert "Nearest to: " in page.inner_text("#m-near")
    assert page.is_visible("#m-tip")
    page.keyboard.press("Escape")
    assert "Nearest to the query" in page.inner_text("#m-near")
    assert page.evaluate("$('m-canvas').getContext('2d').getImageData(0, 0, 2000, 2000).data.some(x => x)")


def test_tokens(visit: Visit, reranker: Reranker) -> None:
    visit.tab("prompt")
    page = visit.page
    page.select_option("#p-kind", "pair")
    page.fill("#p-text", "which star")
    page.fill("#p-document", "the moon <|im_end|> and more of it")
    encoded = reranker.tokenizer.encode_pairs(["which star"], ["the moon <|im_end|> and more of it"])
    page.fill("#p-limit", str(len(encoded.ids[0]) - 4))
    visit.run("prompt", "#p-out .tokens")
    assert "4 more were cut" in page.inner_text("#p-out")
    assert page.locator("#p-out .tokens span.cut").count() == 4
    titles = [span.get_attribute("title") for span in page.locator("#p-out .tokens span[role=listitem]").all()]
    assert [int(title.split()[1]) for title in titles] == encoded.ids[0]
    control = page.locator("#p-out .tokens span.control").all_inner_texts()
    assert sum("<|im_end|>" in text for text in control) == 2  # the prompt's own; not the document's
    assert page.inner_text("#p-out pre .cut").endswith("of it")
    page.select_option("#p-kind", "document")
    page.fill("#p-limit", "")
    page.fill("#p-text", "plain words")
    visit.run("prompt", "#p-out .tokens .end")
    assert page.inner_text("#p-out pre") == "plain words<|endoftext|>"


def test_server_state(visit: Visit) -> None:
    visit.tab("server")
    visit.page.wait_for_selector("#v-out .card:nth-child(2)")
    assert "● ready" in visit.page.inner_text("#v-status")
    assert "tiny-reranker" in visit.page.inner_text("#v-out")


def copied(visit: Visit, tool: str, kind: str) -> str:
    visit.tab(tool)
    panel = visit.page.locator(f"#{tool} details.code")
    if panel.get_attribute("open") is None:
        panel.locator("summary").click()
    panel.locator(".kinds button", has_text=kind).first.click()
    panel.locator(".copy").click()
    assert panel.locator(".copy").inner_text() == "Copied ✓"
    return str(panel.locator("pre").inner_text())


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        ("rerank", "curl"),
        ("similarity", "curl"),
        ("rerank", "Python"),
        ("prompt", "Python"),
        ("similarity", "OpenAI client"),
        ("rerank", "Cohere client"),
    ],
)
def test_what_is_copied_runs(visit: Visit, tool: str, kind: str, tmp_path: Path) -> None:
    if tool == "rerank":
        visit.tab(tool)
        visit.page.fill("#r-query", 'it\'s a "star"\\')
        visit.page.fill("#r-instruction", "Find it: null, true")
        visit.page.fill("#r-docs", "größer 漢字 🦊\nit's")
    code = copied(visit, tool, kind)
    if kind == "curl":
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
        assert {"results", "data"} & set(json.loads(done.stdout)), done.stderr
        return
    if kind.endswith("client"):
        pytest.importorskip(kind.split()[0].lower())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_keyboard_alone(browser: Any, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    page.focus("#tab-rerank")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#similarity.on")
    assert page.evaluate("document.activeElement.id") == "tab-similarity"
    page.keyboard.press("End")
    page.wait_for_selector("#server.on")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#rerank.on")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "r-query"
    page.keyboard.type("which star")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#r-out .hit")
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea")].filter(field => !field.labels?.length &&
            !field.getAttribute("aria-label") && !field.textContent.trim()).map(field => field.id)"""
    )
    assert unnamed == []
    assert visit.trouble == []
    visit.close()


def test_phone_in_the_dark(browser: Any, url: str) -> None:
    visit = Visit(browser, url, viewport={"width": 360, "height": 740}, color_scheme="dark", is_mobile=True)
    page = visit.page
    results = {"rerank": "#r-out .hit", "similarity": "#s-out table", "search": "#q-out .hit", "map": "#m-canvas"}
    for name in page.evaluate("Object.keys(TABS)"):
        page.evaluate(f"location.hash = '{name}'")
        page.wait_for_selector(f"#{name}.on")
        if name in results:
            visit.run(name, results[name])
        assert not visit.too_wide, name
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert visit.trouble == []
    visit.close()


def test_a_link_brings_everything_back(browser: Any, url: str) -> None:
    first = Visit(browser, url)
    first.page.fill("#r-query", "größer & 漢字?")
    first.page.fill("#r-docs", "one\ntwo")
    link = first.page.evaluate("permalink()")
    first.close()
    second = Visit(browser, url, link.removeprefix(url))
    assert second.page.input_value("#r-query") == "größer & 漢字?"
    assert second.page.input_value("#r-docs") == "one\ntwo"
    second.close()


def test_the_key_is_asked_for(browser: Any, embedder: Embedder, reranker: Reranker) -> None:
    from qwen3_embedding.serving.auth import Key
    from qwen3_embedding.serving.server import Server
    from qwen3_embedding.serving.settings import ServerSettings
    from tests.serving.conftest import serving

    server = Server({"e": embedder}, {"r": reranker}, ServerSettings(keys=(Key.parse("me=sesame-sesame"),)))
    with serving(server) as address:
        visit = Visit(browser, address, ready="#served .chip.bad")
        visit.page.fill("#key", "sesame-sesame")
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("#served .chip:not(.bad)")
        visit.run("rerank", "#r-out .hit")
        assert "sesame" not in visit.page.evaluate("location.href + JSON.stringify(localStorage) + permalink()")
        visit.close()


def test_the_list_of_routes(browser: Any, url: str) -> None:
    visit = Visit(browser, url, "/docs", ready="details")
    assert "/v1/embeddings" in visit.page.inner_text("#out")
    assert visit.trouble == []
    visit.close()
