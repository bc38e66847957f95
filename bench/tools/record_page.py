"""Records the page in use for the README: Chromium, real mouse and keys, a drawn pointer, an animated WebP; and stills
of it for docs/serve.md.  The milliseconds that the page shows are hidden: those of a recording mean nothing.

    python -m bench.tools.record_page [--out docs/serve] [--width 900]

Needs Chromium (CHROMIUM=/path/to/it if it is not /usr/bin/chromium) and Playwright: pip install playwright.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
LESION = ROOT / "examples" / "images" / "ISIC_0014809.jpg"
NUCLEI = ROOT / "docs" / "serve" / "nuclei.jpg"
VIEW = {"width": 1080, "height": 680}
POINTER = [(0, 0), (0, 19), (4.5, 15), (7.5, 22), (10.5, 20.6), (7.6, 14), (13.5, 14)]
STEPS, STEP_MS = 4, 60  # of a move of the pointer


class Film:
    """The frames so far, and the page that they are taken of."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._at = (540.0, 560.0)
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def hold(self, ms: int) -> None:
        """Show the page as it is for so long."""
        self._add(self._shot(), ms)

    def move(self, x: float, y: float) -> None:
        """The pointer goes there."""
        before, shot = self._at, self._shot()
        for step in range(1, STEPS + 1):
            share = step / STEPS
            self._at = before[0] + (x - before[0]) * share, before[1] + (y - before[1]) * share
            self._add(shot, STEP_MS)
        self._page.mouse.move(x, y)

    def click(self, x: float, y: float, count: int, button: str = "left") -> None:
        """A click on a pixel of the picture; waits until it is the `count`-th that is answered."""
        box = self._page.locator("#picture").bounding_box()
        width = self._page.evaluate("document.querySelector('#picture').naturalWidth")
        self.move(box["x"] + x * box["width"] / width, box["y"] + y * box["width"] / width)
        self._page.mouse.click(*self._at, button=button)
        until(self._page, f"document.querySelectorAll('.point:not(.waiting)').length === {count}")
        time.sleep(1.5)  # the suggestion follows the mask
        self.hold(1300)

    def key(self, key: str, ms: int) -> None:
        """A key, and what it does."""
        self._page.keyboard.press(key)
        time.sleep(1)
        self.hold(ms)

    def open(self, picture: Path) -> None:
        """A picture by the page's own file chooser."""
        with Image.open(picture) as image:
            width = image.width
        self._page.locator("#file").set_input_files(picture)
        until(self._page, f"document.querySelector('#picture').naturalWidth === {width}")
        until(self._page, "document.querySelector('#link').classList.contains('on')")
        self.hold(900)

    def _shot(self) -> Image.Image:
        return Image.open(io.BytesIO(self._page.screenshot(animations="disabled"))).convert("RGB")

    def _add(self, shot: Image.Image, ms: int) -> None:
        frame = shot.copy()
        outline = [(self._at[0] + x, self._at[1] + y) for x, y in POINTER]
        ImageDraw.Draw(frame).polygon(outline, fill="white", outline="black", width=2)
        self.frames.append(frame)
        self.times.append(ms)


def until(page: Any, test: str) -> None:
    """Wait for an expression; the page's policy forbids Playwright's own way of waiting for one."""
    deadline = time.monotonic() + 120
    while not page.evaluate(test):
        if time.monotonic() > deadline:
            raise SystemExit(f"never came true: {test}")
        time.sleep(0.02)


def play(film: Film, still: Callable[[str], None]) -> None:
    """What is shown."""
    film.hold(900)
    film.open(LESION)
    film.click(175, 215, 1)
    film.click(60, 330, 2, button="right")
    still("light")
    film.key("u", 1500)
    film.key("u", 300)
    film.open(NUCLEI)
    for number, (x, y) in enumerate(((153, 23), (230, 67), (290, 157))):
        if number:
            film.key("n", 200)
        film.click(x, y, 1)
    film.hold(1200)
    film.key("u", 1500)


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "serve")
    parser.add_argument("--width", type=int, default=900)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "activefreq_engine.cli", "serve", "--port", "0", "--no-journal"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        found = re.match(r"activefreq serves on (http://\S+)", server.stdout.readline() if server.stdout else "")
        if found is None:
            raise SystemExit("the server did not start")
        with sync_playwright() as p:
            flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
            browser = p.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=flags)
            page = browser.new_page(viewport=VIEW, color_scheme="light")
            page.goto(found[1])
            until(page, "document.querySelector('#link').textContent !== 'connecting'")
            page.evaluate("document.querySelector('#numbers').style.visibility = 'hidden'")
            film = Film(page)

            def still(name: str) -> None:
                page.screenshot(path=arguments.out / f"{name}.jpg", type="jpeg", quality=88, animations="disabled")

            play(film, still)
            page.emulate_media(color_scheme="dark")
            still("dark")
            page.emulate_media(color_scheme="light")
            page.set_viewport_size({"width": 390, "height": 780})
            time.sleep(1)
            still("phone")
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
    size = arguments.width, round(VIEW["height"] * arguments.width / VIEW["width"])
    small = [frame.resize(size, Image.Resampling.LANCZOS) for frame in film.frames]
    out = arguments.out / "page.webp"
    small[0].save(out, save_all=True, append_images=small[1:], duration=film.times, loop=0, quality=80, method=4)
    print(f"{out}: {len(small)} frames, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
