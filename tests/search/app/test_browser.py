"""The page of `serve` in Chromium: search, play, explain, by mouse and by keyboard."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from playwright.sync_api import expect, sync_playwright

from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search.building.build import build
from hvp_jax.search.query import Index
from tests.helpers.clips import numbered, write_video
from tests.helpers.command import COMPILED, ROOT
from tests.helpers.random_runs import write_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "apt-get update -q && apt-get install -y -q --no-install-recommends chromium"
ODD = "a b/ü? 50% #1&.mp4"
LONG, OLD = "long.mp4", "old.avi"  # 8 s; a browser does not play AVI
CAPTION = "<img src=x onerror=alert(1)> & more"
QUERIES = ("a dog", "two men play chess", "grey", "a plate of food on a table", "night")
WIDE, PHONE = {"width": 1100, "height": 800}, {"width": 360, "height": 740}


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def chromium():
    if find_chromium() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(INSTALL, shell=True, timeout=600, capture_output=True)
    if (path := find_chromium()) is None:
        reason = f"no {' or '.join(NAMES)} here, and `{INSTALL}` did not bring one"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory, quick_compile) -> Index:
    """Nine clips, three of them stretches of one file."""
    folder = tmp_path_factory.mktemp("page")
    videos = folder / "videos"
    write_video(videos / ODD, numbered(30))
    write_video(videos / OLD, numbered(30), "mpeg4")
    write_video(videos / LONG, numbered(32), rate=4)
    for i in range(4):
        write_video(videos / f"clip{i}.mp4", numbered(60)[15 * i :][:15])
    (videos / ODD).with_suffix(".txt").write_text(CAPTION)
    run = write_run(folder / "run", **{"data.max_frames": 2})
    retriever = Retriever.load(run, batch_size=8)
    build(retriever, videos, folder / "index", segment_seconds=4)
    return Index(folder / "index", retriever)


@pytest.fixture(scope="module")
def address(index, chromium):
    """Where `serve` answers; Ctrl-C ends it at once, without a traceback."""
    command = [sys.executable, "run.py", "serve", f"--index={index.uri}", "--port=0"]
    inherited = {key: os.environ[key] for key in os.environ if key != "JAX_NUM_CPU_DEVICES"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=inherited | COMPILED, stderr=subprocess.PIPE, text=True
    )
    lines = []
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", "".join(lines))):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    yield found[0]
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in rest, rest


@pytest.fixture
def page(chromium, address):
    with chromium.new_context(viewport=WIDE, base_url=address) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        faults, asked = [], []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        yield page
        assert faults == []
        assert all(url.startswith((address, "data:")) for url in asked)


expect.set_options(timeout=60_000)


def paths_of(page) -> list[str]:
    return page.locator(".card .path").all_text_contents()


def search(page, text: str) -> None:
    page.fill("#query", text)
    page.keyboard.press("Enter")
    page.wait_for_function("text => document.title.startsWith(text)", arg=text)
    expect(page.locator("#status")).to_contain_text("The best 9 clips")


def screen_of(page, path: str):
    card = page.locator(".card", has=page.get_by_text(path, exact=True))
    return card.locator(".screen").first


def test_type_and_the_right_clip_is_first(page, index):
    expected = {
        text: [hit.path for hit in hits]
        for text, hits in zip(QUERIES, index.search(QUERIES, k=12), strict=True)
    }
    one, other = (
        QUERIES[0],
        next(text for text in QUERIES if expected[text][0] != expected[QUERIES[0]][0]),
    )
    page.goto("/")
    expect(page.locator("#query")).to_be_focused()
    for text in (one, other):
        page.locator("#query").blur()
        page.keyboard.press("/")
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        expect(page.locator(".card .path").first).to_have_text(expected[text][0])
        assert paths_of(page) == expected[text]
    page.go_back()
    expect(page.locator(".card .path").first).to_have_text(expected[one][0])
    expect(page.locator("#query")).to_have_value(one)
    page.reload()
    expect(page.locator(".card .path").first).to_have_text(expected[one][0])
    assert page.locator(".captions", has_text="onerror").text_content() == CAPTION


def test_a_clip_plays_at_its_stretch(page):
    page.goto("/?q=grey")
    screen = screen_of(page, LONG)
    start = float(screen.get_attribute("aria-label").split(LONG)[1].split()[0].split(":")[1])
    screen.hover()
    video = "document.querySelector('video')"
    page.wait_for_function(f"() => {video}?.currentTime > {start} + 0.3")
    assert page.evaluate(f"[{video}.muted, {video}.videoWidth]") == [True, 64]
    assert page.evaluate(f"{video}.currentTime") <= start + 4.5
    screen.click()
    assert page.evaluate(f"{video}.muted") is False
    page.mouse.move(0, 0)
    before = page.evaluate(f"{video}.currentTime")
    page.wait_for_function(f"() => {video}.currentTime != {before}")  # it plays on
    screen.click()
    expect(page.locator("video")).to_have_count(0)


def test_what_the_browser_cannot_play_moves_all_the_same(page):
    page.goto("/?q=grey")
    screen_of(page, OLD).hover()
    page.wait_for_function("() => document.querySelector('img.moving-picture')?.naturalWidth == 64")
    assert "/api/preview/old.avi" in page.get_attribute("img.moving-picture", "src")
    screen_of(page, ODD).hover()
    page.wait_for_function("() => document.querySelector('video')?.currentTime > 0")


def test_the_explanation_of_a_clip(page, index):
    page.goto("/?q=two+men+play+chess")
    page.locator(".card .why").first.click()
    words = page.locator("#words button")
    expect(words).to_have_count(7)  # the whole sentence, four words, start and end
    score = index.search(["two men play chess"], k=1)[0][0].score
    assert float(page.text_content("#total").replace("−", "-")) == pytest.approx(score, abs=1e-3)
    cells = page.locator("#parts tbody tr td:last-child").all_text_contents()
    parts = sum(float(cell.replace("−", "-")) for cell in cells)
    assert parts == pytest.approx(score, abs=1e-3)
    lit = 0
    for i in range(1, 7):
        words.nth(i).click()
        expect(words.nth(i)).to_have_attribute("aria-pressed", "true")
        lit += page.locator("#frames .lit").count()
        assert words.nth(i).locator("span").text_content() in page.text_content("#caption")
    assert lit > 0
    page.get_by_role("radio", name="Layer 1").click()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Layer 2")).to_have_attribute("aria-checked", "true")
    page.get_by_role("radio", name="Concepts, stage 1").click()
    assert page.locator("#frames i[data-concept]").count() > 0
    page.keyboard.press("Escape")
    expect(page.locator("#why")).to_be_hidden()


def test_everything_by_the_keyboard(page):
    page.goto("/?q=grey")
    expect(page.locator(".card")).to_have_count(9)
    press = page.keyboard.press
    press("ArrowDown")
    screens = page.locator(".screen")
    expect(screens.nth(0)).to_be_focused()
    press("ArrowRight")
    press("ArrowRight")
    press("ArrowLeft")
    expect(screens.nth(1)).to_be_focused()
    expect(screens.nth(1)).to_have_attribute("aria-pressed", "true")  # it plays
    press("Escape")
    expect(screens.nth(1)).to_have_attribute("aria-pressed", "false")
    press("Enter")
    expect(screens.nth(1)).to_have_attribute("aria-pressed", "true")
    press("w")
    expect(page.locator("#words button").first).to_be_visible()
    press("Escape")
    expect(page.locator("#why")).to_be_hidden()
    expect(screens.nth(1)).to_be_focused()
    example = paths_of(page)[1]
    press("m")
    expect(page.locator("#like strong")).to_contain_text(example)
    assert page.locator(".card").count() > 0
    press("/")
    expect(page.locator("#query")).to_be_focused()


def test_an_error_is_shown_and_the_page_goes_on(page):
    page.goto("/?q=grey&where=nothing+%3D+1")
    expect(page.locator("#error")).to_contain_text("nothing")
    expect(page.locator("#where")).to_be_visible()
    page.fill("#where", f"path LIKE '%{OLD}'")
    page.keyboard.press("Enter")
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator(".card .path")).to_have_text([OLD])
    page.fill("#where", "")
    page.fill("#query", "word " * 500)
    page.keyboard.press("Enter")
    expect(page.locator("#error")).to_contain_text("shorten it")
    search(page, "grey")
    expect(page.locator("#error")).to_be_hidden()


# The least contrast of WCAG AA for text of ordinary size.
CONTRAST = """() => {
  const level = (c) => [0, 1, 2].map((i) => c[i] / 255)
    .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const numbers = (colours) => {
    pixel.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    return pixel.getImageData(0, 0, 1, 1).data;
  };
  const worst = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || !element.checkVisibility() || element.matches("option, .skip")) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement)
      behind.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [numbers(behind), numbers([...behind, getComputedStyle(element).color])];
    const [low, high] = [level(a), level(b)].sort((x, y) => x - y);
    worst.push([(high + 0.05) / (low + 0.05), element.outerHTML.slice(0, 90)]);
  }
  return worst.sort((x, y) => x[0] - y[0])[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_is_readable_on_every_screen(page, scheme, size):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(size)
    page.goto("/")
    looks = []

    def look() -> None:
        looks.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        contrast, where = page.evaluate(CONTRAST)
        assert contrast >= 4.5, where
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.evaluate("document.querySelector('#why').scrollWidth") <= size["width"]

    look()
    page.click("#toggle-filter")
    search(page, "grey")
    look()
    page.locator(".card .why").first.click()
    expect(page.locator("#words button").first).to_be_visible()
    look()
    light = all(int(x) > 200 for x in re.findall(r"\d+", looks[0])[:3])
    assert light == (scheme == "light") and len(set(looks)) == 1


def test_less_motion_means_that_nothing_plays_unasked(page):
    page.emulate_media(reduced_motion="reduce")
    page.goto("/?q=grey")
    screen = screen_of(page, ODD)
    screen.hover()
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert page.locator("video").count() == 0
    screen.click()
    page.wait_for_function("() => document.querySelector('video')?.currentTime > 0")
