"""Drives the playground in headless Chromium and takes the two pictures of docs/serving.md. Not a test; by hand:

python tests/serving/take_screenshots.py EMBEDDER RERANKER docs/img     (needs playwright and a Chromium)
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.serving.server import Server
from tests.serving.conftest import serving

LOADED = "#served:has-text('float32')"


def main(embedder: str, reranker: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(
        {Path(embedder).name: Embedder.from_pretrained(embedder)},
        {Path(reranker).name: Reranker.from_pretrained(reranker)},
    )
    with serving(server) as url, import_module("playwright.sync_api").sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        trouble: list[str] = []
        wide = open_page(browser, url, trouble, viewport={"width": 1000, "height": 760})
        visit_every_tab(wide)
        wide.click("#tab-rerank")
        wide.evaluate("scrollTo(0, 0)")
        wide.screenshot(path=folder / "playground-rerank.png")
        phone = open_page(browser, url, trouble, viewport={"width": 390, "height": 780}, color_scheme="dark")
        phone.click("#tab-similarity")
        phone.click("#s-go")
        phone.wait_for_selector("#s-out table")
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than a phone"
        phone.evaluate("document.getElementById('s-out').scrollIntoView({block: 'end'})")
        phone.screenshot(path=folder / "playground-phone-dark.png")
        routes = open_page(browser, url + "/docs", trouble, ready="details")
        assert "/v1/embeddings" in routes.inner_text("#out")
        browser.close()
        assert not trouble, trouble


def open_page(browser: Any, url: str, trouble: list[str], ready: str = LOADED, **options: Any) -> Any:
    page = browser.new_context(**options).new_page()
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(("http://127.0.0.1:", "data:")) else trouble.append(asked.url),
    )
    page.goto(url)
    page.wait_for_selector(ready)
    return page


def visit_every_tab(page: Any) -> None:
    """Use each tab once, and read back what it shows."""
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".hit")
    page.click(".hit details summary")
    page.wait_for_selector(".tokens span")
    page.click(".hit details summary")
    page.click("#tab-similarity")
    page.click("#s-go")
    page.wait_for_selector("#s-out table")
    page.click("#tab-dimensions")
    page.click("#d-go")
    page.wait_for_selector("#d-out table")
    page.fill("#d-size", "32")
    page.select_option("#d-type", "binary")
    assert "4 bytes a vector" in page.inner_text("#d-note")
    page.click("#tab-prompt")
    page.select_option("#p-kind", "pair")
    page.click("#p-go")
    page.wait_for_selector("#p-out pre")
    assert "<Document>: The capital of China is Beijing." in page.inner_text("#p-out")
    page.click("#tab-server")
    page.wait_for_selector("#v-out table")


if __name__ == "__main__":
    main(*sys.argv[1:4])
