"""Takes the pictures of docs/screens from the real console: `python dev/screens.py DIR`, the data directory of a demo.

Needs the extra `browser`, Chromium and its driver (`make test-browser` installs them). Starts `afterword serve` on DIR,
so that the heat map, the candidate and the chat are what the demo made, and ends it.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

from afterword.cli.demo_processes import serving
from afterword.records import AnswerAdvantages, Candidate, Interaction
from afterword.store import Store

SCREENS = Path(__file__).parents[1] / "docs" / "screens"
WIDTH, HEIGHT, PHONE = 1100, 760, 390
COLOURS = 96
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
         "--hide-scrollbars")  # fmt: skip
ASKED = "Why is the sky blue?"


def pages(directory: Path) -> dict[str, tuple[str, int, str]]:
    """File -> (path, width, colour scheme) of each picture."""
    with Store.open(directory / "afterword.db") as store:
        scored = store.newest(AnswerAdvantages)
        row = scored.interaction if scored else next(store.rows(Interaction, newest=True)).id
        candidate = store.newest(Candidate)
    found = {
        "overview": ("/console", WIDTH, "light"),
        "interaction": (f"/console/interactions/{row}", WIDTH, "light"),
        "review": ("/console/review", WIDTH, "dark"),
        "phone": ("/console", PHONE, "dark"),
        "chat": ("/chat", WIDTH, "light"),
    }
    return found | ({"candidate": (f"/console/candidates/{candidate.id}", WIDTH, "light")} if candidate else {})


def opened(profile: str) -> Any:
    """A headless browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def picture(browser: Any, url: str, width: int, scheme: str) -> Image.Image:
    """What a page looks like once it stands still."""
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    look = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": look})
    browser.get(url)
    if url.endswith("/chat"):
        _chat(browser)
    time.sleep(1.0)
    data = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def _chat(browser: Any) -> None:
    """Asks one question, so that the page shows an answer."""
    end = time.monotonic() + 60
    while not browser.find_elements("css selector", "#model option") and time.monotonic() < end:
        time.sleep(0.2)
    browser.find_element("css selector", "#words").send_keys(ASKED, "\ue007")
    while not browser.find_elements("css selector", ".tools") and time.monotonic() < end:
        time.sleep(0.2)


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", type=Path, help="data directory of a demo")
    directory = parser.parse_args().dir
    SCREENS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, serving(directory, tell=print) as url:
        browser = opened(profile)
        try:
            for name, (path, width, scheme) in pages(directory).items():
                shot = picture(browser, url + path, width, scheme)
                file = SCREENS / f"{name}.png"
                shot.quantize(COLOURS, method=Image.Quantize.MEDIANCUT).save(file, optimize=True)
                print(f"{file.name}: {file.stat().st_size // 1024} KB")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
