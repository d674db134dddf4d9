"""Takes the README's pictures in a real browser, from a server that really answers.

    python docs/screenshots.py                              # its own server on a fresh home
    python docs/screenshots.py --url http://127.0.0.1:8000  # a running one, such as the demo's

The demo's server has been through a cycle, so its adapters page has something to show.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
QUESTION = "What are your opening hours?"
FOLLOW_UP = "And on Sundays?"
CORRECTED = "Do you offer express delivery?"
CORRECTION = "Express delivery arrives the next working day and costs £7.50."


def main() -> None:
    """Take chat.png, review.png and adapters.png and halve their size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running server; default: one of its own")
    parser.add_argument("--out", type=Path, default=IMAGES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with server(args.url) as url, browser() as page:
        page.goto(url)
        page.wait_for_selector("#tb-composer textarea", timeout=120_000)
        have_conversation(page)
        page.screenshot(path=args.out / "chat.png")
        for name in ("review", "adapters"):
            page.goto(f"{url}/{name}")
            page.wait_for_selector("#tb-case h2" if name == "review" else "#tb-adapter h2")
            page.wait_for_timeout(500)
            page.screenshot(path=args.out / f"{name}.png")
    for picture in sorted(args.out.glob("*.png")):
        Image.open(picture).quantize(256).save(picture, optimize=True)  # half the size, same look
        print(f"{picture}  {picture.stat().st_size // 1024} KB")


def have_conversation(page: Page) -> None:
    """Have a conversation whose answer is corrected, and one whose answer is liked."""
    ask(page, CORRECTED)
    page.locator("#tb-chat button[title=Edit]").last.click()
    page.locator("#tb-chat textarea").fill(CORRECTION)
    page.click("#tb-chat button[title=Submit]")
    expect(page.locator(".tb-note")).to_be_visible()
    page.click("#tb-new")
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    ask(page, QUESTION)
    ask(page, FOLLOW_UP)
    page.locator("#tb-chat button[title=Like]").last.click()
    page.locator("#tb-rated button", has_text="Skip").click()
    page.mouse.move(640, 620)
    page.wait_for_timeout(4000)  # until the toasts are gone


def ask(page: Page, text: str) -> None:
    """Send a message and wait for the whole answer."""
    page.fill("#tb-composer textarea", text)
    page.press("#tb-composer textarea", "Enter")
    expect(page.locator("#tb-chat .user-row", has_text=text)).to_be_visible(timeout=30_000)
    expect(page.locator("#tb-chat button[title=Retry]")).to_be_visible(timeout=60_000)
    expect(page.locator("#tb-composer .submit-button")).to_be_visible(timeout=60_000)


@contextmanager
def browser() -> Iterator[Page]:
    """Open a page of 1280 by 800 points in chromium."""
    flags = ["--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        size = {"width": 1280, "height": 800}
        context = chromium.new_context(locale="en-US", viewport=size, color_scheme="light")
        yield context.new_page()
        chromium.close()


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """Yield the address of a server: the given one, or a new one on a fresh home."""
    if url:
        yield url.rstrip("/")
        return
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "chatbot.server", "--home", home, "--port", "0"]
        environment = os.environ | {"TALKBACK_CHAT_TITLE": "Willow & Finch"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        try:
            yield next(match[1] for line in process.stdout if (match := _match_address(line)))
        finally:
            process.terminate()
            process.wait(30)


def _match_address(line: str) -> re.Match[str] | None:
    return re.search(r" speaks at (\S+),", line)


if __name__ == "__main__":
    main()
