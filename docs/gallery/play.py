"""Take the pictures of docs/play.md: each view of ``gpt2lab play`` at 390 and 1,280 pixels.

    python docs/gallery/play.py RUN OTHER OUT

RUN and OTHER are trained on the same data, RUN with samples during training. Needs Playwright and chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

HEIGHTS = {390: 844, 1280: 900}
COLORS = 255


def main(run: Path, other: Path, out: Path) -> None:
    """Start the server, open each view, use it a little, and save what it looks like."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gpt2lab", "play", str(run), str(other), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = server.stdout.readline().split()[2]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            for width, height in HEIGHTS.items():
                for view, (address, use) in VIEWS.items():
                    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
                    page.goto(f"{url}#/{address.format(run=run.name, other=other.name)}")
                    use(page)
                    save(page.screenshot(), out / f"{view}-{width}.png")
        finally:
            server.terminate()


def save(picture: bytes, path: Path) -> None:
    """Save a picture with few colors: it is a page, not a photograph."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def listed(page: Page) -> None:
    """Wait for the runs."""
    expect(page.locator(".run")).to_have_count(2)


def written(page: Page) -> None:
    """Wait for the text, and point at a token that could have been another."""
    expect(page.locator(".status").first).to_contain_text("tokens in", timeout=60_000)
    names = page.locator(".tok").filter(has_text=re.compile("^ [A-Z][a-z]{2}"))
    names.first.click()


def looked(page: Page) -> None:
    """Switch a part off, and show what that changes."""
    expect(page.locator(".status")).to_contain_text("mean loss", timeout=60_000)
    page.get_by_role("group", name="Layer 0").get_by_role("button", name="feed-forward").click()
    expect(page.locator(".status")).to_contain_text("everything on")
    page.evaluate("document.querySelector('.heads-and-change').scrollIntoView()")


def patched(page: Page) -> None:
    """Wait for the result."""
    expect(page.get_by_role("region", name="Effect of restoring each state")).to_be_visible(timeout=60_000)


def watched(page: Page) -> None:
    """Wait for the curves."""
    expect(page.locator(".curve.val").first).to_be_visible()


def compared(page: Page) -> None:
    """Let both write."""
    expect(page.locator(".parting")).to_contain_text("Both get", timeout=60_000)
    page.get_by_role("button", name="Write", exact=True).click()
    for status in (0, 1):
        expect(page.locator(".status").nth(status)).to_contain_text("tokens in", timeout=60_000)


VIEWS = {
    "runs": ("", listed),
    "write": ("run/{run}/write", written),
    "inside": ("run/{run}/inside", looked),
    "patch": ("run/{run}/patch", patched),
    "watch": ("run/{run}/watch", watched),
    "compare": ("compare/{run}/{other}", compared),
}

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
