"""What serving costs: clicks over the WebSocket beside the same clicks on a session, and many sessions at once.

    python -m bench.speed.serve [--clicks 60] [--sessions 1 4 16 32] [--model NAME] [--browser]

All clients run in a process of their own on the same machine.  `--browser` adds the page in Chromium: from the click
to the frame after the mask was painted.  Times are wall time; on a busy machine only ratios within a run mean much.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.files import write_file

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "examples" / "images" / "ISIC_0014809.jpg"
SIDE = 384
PAUSE_S = 0.5
"""Before the next click of a single person.  The server prepares it meanwhile."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=60)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--seconds", type=float, default=20, help="of each number of sessions at once")
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="shipped model, or checkpoint")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    report: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(Path(folder), arguments.model)
        try:
            report["clicks"] = single(url, arguments.clicks, arguments.model)
            if arguments.browser:
                report["page"] = page(url, arguments.clicks)
            report["sessions"] = [many(url, n, arguments.seconds, process.pid) for n in arguments.sessions]
        finally:
            process.terminate()
            process.wait(30)
    print(text(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())


def start(journal: Path, model: str) -> tuple[subprocess.Popen[str], str]:
    """A server with a journal and fsync, as a user starts it."""
    command = [
        sys.executable,
        "-m",
        "activefreq_engine.cli",
        "serve",
        "--model",
        model,
        "--port",
        "0",
        "--journal",
        str(journal),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    found = re.match(r"activefreq serves on (http://\S+?)/\n", process.stdout.readline())
    if found is None:
        raise SystemExit("the server did not start")
    return process, found[1]


def correction(mask: NDArray[np.bool_], rng: random.Random) -> tuple[float, float, bool]:
    """A click that disagrees with the mask, so that the network is asked; the first is inside the lesion."""
    if not mask.any():
        return 160.5, 230.5, True
    x, y = rng.randrange(20, SIDE - 20), rng.randrange(20, SIDE - 20)
    return x + 0.5, y + 0.5, not mask[y, x]


def single(url: str, clicks: int, model: str) -> dict[str, Any]:
    """One session over the WebSocket, and beside it, click by click in turn, a session in this process."""
    from activefreq_engine import Session
    from tests.serve.client import Client

    served, server, here = [], [], []
    session = Session(model)
    with Client(url) as client:
        for start in range(0, clicks, 12):  # a new picture each dozen, as people do
            client.begin(PICTURE.read_bytes(), PICTURE.name)
            session.set_image(PICTURE)
            session.prepare()
            time.sleep(PAUSE_S)
            rng = random.Random(start)
            for _ in range(12):
                x, y, positive = correction(client.mask(), rng)
                begin = time.perf_counter()
                done = client.ask("click", x=x, y=y, positive=positive)
                served.append((time.perf_counter() - begin) * 1e3)
                server.append(done["ms"])
                begin = time.perf_counter()
                session.click(x, y, positive)
                here.append((time.perf_counter() - begin) * 1e3)
                client.take("suggestions")
                session.prepare()
                time.sleep(PAUSE_S)
    extra = [a - b for a, b in zip(served, server, strict=True)]
    return {
        "websocket": spread(served),
        "in_server": spread(server),
        "session": spread(here),
        "transport": spread(extra),
    }


_PAINTED = """() => { window.painted = new Promise(done => new PerformanceObserver((_, observer) => {
    observer.disconnect(); done(); }).observe({ type: 'measure' })); }"""
"""Makes a promise that the next mask keeps once it was painted.  Asking the page again and again would take the
processor from the server in the middle of the click."""


def page(url: str, clicks: int) -> dict[str, Any]:
    """The page in Chromium: click to painted pixel, and how much of it is not the server's."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=flags)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        found: list[list[float]] = []
        for start in range(0, clicks, 12):
            tab.goto(url)
            tab.locator("#file").set_input_files(PICTURE)
            _until(tab, f"document.querySelector('#picture').naturalWidth === {SIDE}")
            box = tab.locator("#picture").bounding_box()
            assert box is not None
            time.sleep(PAUSE_S)
            rng = random.Random(start)
            for _ in range(12):
                x, y, positive = correction(_shown(tab), rng)
                where = box["x"] + x * box["width"] / SIDE, box["y"] + y * box["height"] / SIDE
                tab.evaluate(_PAINTED)
                tab.mouse.click(*where, button="left" if positive else "right")
                tab.evaluate("painted")
                time.sleep(PAUSE_S)
            found += tab.evaluate(
                "performance.getEntriesByName('click-to-paint').map(e => [e.duration, e.detail.drawn, e.detail.server])"
            )
            tab.goto("about:blank")
        browser.close()
    total, drawn, server = (list(column) for column in zip(*found, strict=True))
    rest = [a - b for a, b in zip(drawn, server, strict=True)]
    return {"click_to_paint": spread(total), "click_to_canvas": spread(drawn), "transport_and_page": spread(rest)}


def _shown(tab: Any) -> NDArray[np.bool_]:
    """The mask on the page's canvas."""
    bits = tab.evaluate(
        """() => { const c = document.querySelector('#mask'), out = [];
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        for (let i = 3; i < d.length; i += 4) out.push(d[i] ? 1 : 0); return out.join(''); }"""
    )
    return (np.frombuffer(bits.encode(), np.uint8) == ord("1")).reshape(SIDE, SIDE)


def _until(tab: Any, test: str) -> None:
    while not tab.evaluate(test):
        time.sleep(0.002)


def many(url: str, count: int, seconds: float, server: int) -> dict[str, Any]:
    """So many sessions at once, each clicking again as soon as it is answered."""
    queue: multiprocessing.Queue[list[float]] = multiprocessing.get_context("spawn").Queue()
    before = _resident(server)
    process = multiprocessing.get_context("spawn").Process(target=_clients, args=(url, count, seconds, queue))
    process.start()
    times, during = None, []
    while times is None:
        try:
            times = queue.get(timeout=max(1.0, seconds / 20))
        except Empty:
            during.append(_resident(server))
    process.join()
    return {
        "sessions": count,
        "clicks_per_s": len(times) / seconds,
        **spread(times),
        "server_mb_before": before,
        "server_mb_during": during,
        "server_mb_after": _resident(server),
    }


def _clients(url: str, count: int, seconds: float, queue: Any) -> None:
    from tests.serve.client import Client

    times: list[float] = []
    ready = threading.Barrier(count)

    def work(seed: int) -> None:
        with Client(url) as client:
            identity = client.begin(PICTURE.read_bytes(), PICTURE.name)
            ready.wait()
            end = time.perf_counter() + seconds
            rng = random.Random(seed)
            for n in itertools.count():
                x, y, positive = correction(client.mask(), rng)
                begin = time.perf_counter()
                if begin > end:
                    break
                client.ask("click", x=x, y=y, positive=positive)
                times.append((time.perf_counter() - begin) * 1e3)
                if n % 20 == 19:
                    client.ask("reset")
            client.hang_up()
            client.http.delete(f"/v1/sessions/{identity}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.put(times)


def _resident(process: int) -> float | None:
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
    return None if found is None else int(found[1]) / 1024


def spread(values: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (25, 50, 75, 95)}


def text(report: dict[str, Any]) -> str:
    lines = [report["machine"], "", "| ms | p50 | p25 to p75 | p95 |", "|---|---|---|---|"]
    names = {
        "websocket": "click over the WebSocket, to its answer",
        "in_server": "of which within the server",
        "transport": "of which transport and client",
        "session": "the same click on a session in this process",
        "click_to_paint": "the page: click to the end of the frame with the mask",
        "click_to_canvas": "the page: click to the mask on the canvas, before the next frame",
        "transport_and_page": "of which transport and page",
    }
    for key, row in {**report["clicks"], **report.get("page", {})}.items():
        lines.append(f"| {names[key]} | {row['p50']:.1f} | {row['p25']:.1f} to {row['p75']:.1f} | {row['p95']:.1f} |")
    lines += [
        "",
        "| sessions at once | clicks a second | p50 ms | p95 ms | server MB: before, start, middle, end, after |",
        "|---|---|---|---|---|",
    ]
    for row in report["sessions"]:
        during = row["server_mb_during"] or [row["server_mb_after"]]
        held = [row["server_mb_before"], during[0], during[len(during) // 2], during[-1], row["server_mb_after"]]
        memory = "; ".join(f"{mb:.0f}" for mb in held) if row["server_mb_before"] else "-"
        lines.append(
            f"| {row['sessions']} | {row['clicks_per_s']:.1f} | {row['p50']:.0f} | {row['p95']:.0f} | {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
