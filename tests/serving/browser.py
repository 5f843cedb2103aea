"""A real Chromium without a window, for the playground's tests and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

LOADED = "#served .chip"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def missing() -> str:
    """Why there is no browser here; empty where there is one."""
    if find_spec("playwright") is None:
        return "needs playwright: pip install 'qwen3-embedding[browser]'"
    if executable() is None:
        return f"needs a Chromium on the PATH ({', '.join(NAMES)}), for example Debian's package chromium"
    return ""


def executable() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    with import_module("playwright.sync_api").sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page, and everything that went wrong on it: errors, and requests to anywhere but the server."""

    def __init__(self, browser: Any, url: str, path: str = "/", ready: str = LOADED, **options: Any) -> None:
        self.trouble: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("request", lambda asked: self._asked(asked.url, url))
        self.page.goto(url + path)
        self.page.wait_for_selector(ready, state="attached")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.trouble.append(f"console: {message.text}")

    def _asked(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.trouble.append(f"asked for {asked}")

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}")
        self.page.wait_for_selector(f"#{name}.on")

    def run(self, name: str, result: str) -> None:
        """Press the tool's button and wait for what it shows."""
        self.page.click(f"#{name} button.go")
        self.page.wait_for_selector(result)

    @property
    def too_wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def close(self) -> None:
        self.context.close()
