"""Takes the pictures of docs/serving.md with the bundled models, in a headless Chromium. Not a test; by hand:

python -m tests.serving.take_screenshots docs/img     (needs playwright, pillow and a Chromium)
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.serving.server import Server
from tests.serving.browser import Visit, chromium, missing
from tests.serving.conftest import serving

MOST_BYTES = 200_000
WIDE: dict[str, Any] = {"viewport": {"width": 1200, "height": 760}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 780},
    "color_scheme": "dark",
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


def main(out: str) -> None:
    if missing():
        raise SystemExit(missing())
    folder = Path(out)
    server = Server(
        {"nano-embedding": Embedder.from_pretrained("nano-embedding")},
        {"nano-reranker": Reranker.from_pretrained("nano-reranker")},
    )
    with serving(server) as url, chromium() as browser:
        wide = Visit(browser, url, **WIDE)
        wide.run("rerank", "#r-out .hit")
        keep(wide, folder, "playground-rerank")
        wide.tab("search")
        wide.run("search", "#q-out .two")
        keep(wide, folder, "playground-search")
        wide.tab("dimensions")
        wide.run("dimensions", "#d-out .chart")
        wide.page.fill("#d-size", "64")
        keep(wide, folder, "playground-dimensions")
        wide.tab("map")
        wide.run("map", "#m-canvas")
        keep(wide, folder, "playground-map")
        wide.tab("prompt")
        wide.page.select_option("#p-kind", "pair")
        wide.page.fill("#p-limit", "110")
        wide.run("prompt", "#p-out .tokens")
        keep(wide, folder, "playground-tokens")
        phone = Visit(browser, url, **PHONE)
        phone.tab("similarity")
        phone.run("similarity", "#s-out table")
        phone.page.evaluate("document.getElementById('s-out').scrollIntoView({block: 'end'})")
        keep(phone, folder, "playground-phone-dark")
        for visit in (wide, phone):
            assert not visit.trouble, visit.trouble
            assert not visit.too_wide


def keep(visit: Visit, folder: Path, name: str) -> None:
    visit.page.mouse.move(0, 0)
    visit.page.wait_for_timeout(600)  # movements end
    file = folder / f"{name}.png"
    Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB").save(file, optimize=True)
    assert file.stat().st_size < MOST_BYTES, f"{file} is too large"
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
