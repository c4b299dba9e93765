"""The program itself with the real embedded model, from typing to hearing; nothing stands in for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from modules import audio
from modules.settings import ROOT
from tests.browser.conftest import SOUND_TAP, wait_for_sound, watched

TINY = ROOT / "models" / "tiny"
PICTURE = ROOT / "docs" / "screenshot.png"
SLOW_START_MS = 120_000
"""Importing audiocraft and torch on a machine that does other work too."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TINY / "config.yaml").exists(), reason="the embedded model is not in this copy"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """webui.py in a process of its own, offline; gives its address and its data folder."""
    folder = tmp_path_factory.mktemp("whole")
    command = [
        sys.executable, str(ROOT / "webui.py"), "--port", "0", "--no-browser", "--offline", "--model", "tiny",
        "--data-dir", str(folder / "data"), "--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache"),
        "--threads", "2",
    ]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert running.stdout is not None
    said: list[str] = []
    for line in running.stdout:
        said.append(line)
        found = re.search(r"http://[\d.]+:\d+", line)
        if found:
            yield found.group(), folder / "data"
            break
    else:
        pytest.fail("the program did not say where it is: " + "".join(said))
    running.terminate()
    running.wait(20)


def test_typed_on_a_fresh_offline_machine_and_heard(chromium: Browser, program: tuple[str, Path]) -> None:
    url, data = program
    context = chromium.new_context(locale="en-GB", color_scheme="dark", viewport={"width": 1440, "height": 900})
    context.add_init_script(SOUND_TAP)
    page, complaints = watched(context)
    page.goto(url)
    page.wait_for_selector(".model-name")
    expect(page.get_by_text("Audio prompt", exact=True).first).to_be_attached()
    for number, prompt in enumerate(("warm lo-fi piano, slow", "driving techno with deep bass, 124 bpm"), start=1):
        page.fill("#prompt", prompt)
        page.keyboard.press("Enter")
        expect(page.locator(".take .link")).to_have_count(number, timeout=SLOW_START_MS)
        page.wait_for_timeout(600)
    page.fill("#prompt", "techno with a xyzzyphone")
    page.keyboard.press("Enter")
    expect(page.locator(".take .link")).to_have_count(3)
    expect(page.locator(".bubble .note").last).to_have_text("The sketch model does not know: xyzzyphone.")
    page.locator(".take .link").last.click()
    expect(page.locator("#card .card-title")).to_be_visible()
    page.locator("#card .transport").get_by_role("button", name="Play", exact=True).click()
    wait_for_sound(page)
    clip = audio.decode(next((data / "audio").glob("*.wav")))
    assert abs(clip.samples).max() > 0.05
    page.reload()
    expect(page.locator(".bubble .note").last).to_have_text("The sketch model does not know: xyzzyphone.")
    assert complaints == []
    if os.environ.get("UPDATE_SCREENSHOT"):
        page.mouse.move(700, 500)
        page.wait_for_timeout(400)
        page.screenshot(path=PICTURE)
    context.close()
