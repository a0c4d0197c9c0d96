"""Draws docs/search_page.png and docs/search_page_dark.png: the page of `serve` in Chromium.

    python benchmarks/page_pictures.py --index=demo/index --output=docs

`serve` runs for it on a free port. Needs a Chromium of the operating system, and Playwright.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PICTURES = (("light", 845, "search_page.png"), ("dark", 910, "search_page_dark.png"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUERY = "a large striped yellow star is blinking on navy"
TIMEOUT = 120_000  # milliseconds; the first explanation is compiled


@contextmanager
def served(index: str) -> Iterator[str]:
    """The address of the page, until the end."""
    command = [sys.executable, os.path.join(ROOT, "run.py"), "serve", f"--index={index}"]
    process = subprocess.Popen([*command, "--port=0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines = iter(process.stderr.readline, "")
    found = next(filter(None, (re.search(r"http://127\S+", line) for line in lines)), None)
    if found is None:
        raise SystemExit(f"serve ended with status {process.wait()}")
    try:
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def results(page: Page, query: str) -> None:
    """The results of a query, with the pictures of all clips that are seen."""
    page.fill("#query", query)
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    page.locator("#query").blur()
    page.wait_for_load_state("networkidle")


def explanation(page: Page, query: str, word: str) -> None:
    """The explanation of the best clip, for a word of the query."""
    results(page, query)
    page.locator(".card .why").first.click()
    page.locator("#words span", has_text=re.compile(f"^{re.escape(word)}$")).first.click()
    page.mouse.move(0, 0)
    page.wait_for_load_state("networkidle")


def draw(address: str, output: str, query: str, word: str) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"there is no {' or '.join(BROWSERS)}: install one")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for scheme, height, name in PICTURES:
            page = chromium.new_page(
                viewport={"width": 1200, "height": height},
                color_scheme=scheme,
                reduced_motion="reduce",
                base_url=address,
            )
            page.set_default_timeout(TIMEOUT)
            page.goto("/")
            if scheme == "light":
                results(page, query)
            else:
                explanation(page, query, word)
            path = os.path.join(output, name)
            page.screenshot(path=path)
            Image.open(path).convert("RGB").save(path, optimize=True)
            page.close()
        chromium.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", required=True, help="an index of the clips of `make demo`")
    parser.add_argument("--output", default=os.path.join(ROOT, "docs"))
    parser.add_argument("--query", default=QUERY)
    parser.add_argument("--word", default="star", help="the word that is explained")
    values = parser.parse_args()
    with served(values.index) as address:
        draw(address, values.output, values.query, values.word)


if __name__ == "__main__":
    main()
