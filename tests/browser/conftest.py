"""A real server with the real studio and Debian's Chromium; only the model and the separator are stand-ins.

With JITTER_MS=1000 in the environment every answer and every message of the server comes up to a second late, each by
another time: what must not hang on their order is found so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from modules.contract import DiffusionInfo, ModelInfo
from modules.settings import ROOT, Settings
from modules.studio import Studio
from modules.web.app import StudioServer, create_app
from tests.fakes import FakeEngine, FakeManager, FakeSeparator, model_info

CHROMIUM = "/usr/bin/chromium"
PATIENCE_MS = 20_000
"""A machine that does other work too is slow, not broken."""
expect.set_options(timeout=PATIENCE_MS)
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required", "--mute-audio",
]  # fmt: skip

LATE = """
// Answers come late and overtake each other; messages come late and in order.
((most) => {
  const nap = () => new Promise((done) => setTimeout(done, Math.random() * most));
  const plain = window.fetch;
  window.fetch = async (...asked) => {
    await nap();
    const answer = await plain.apply(window, asked);
    await nap();
    return answer;
  };
  window.WebSocket = class extends WebSocket {
    set onmessage(hear) {
      let before = Promise.resolve();
      super.onmessage = (message) => {
        before = Promise.all([before, nap()]).then(() => hear(message));
      };
    }
  };
})(%d);
"""
SOUND_TAP = """
// Everything that reaches the loudspeaker also reaches an analyser, so that a test can tell sound from silence.
(() => {
  const connect = AudioNode.prototype.connect;
  window.__taps = [];
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode && !(target.context instanceof OfflineAudioContext)) {
      const tap = target.context.createAnalyser();
      tap.fftSize = 2048;
      window.__taps.push(tap);
      connect.call(this, tap);
    }
    return connect.call(this, target, ...rest);
  };
  window.__level = () => {
    let level = 0;
    for (const tap of window.__taps) {
      const samples = new Float32Array(tap.fftSize);
      tap.getFloatTimeDomainData(samples);
      level = Math.max(level, Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length));
    }
    return level;
  };
})();
"""
if os.environ.get("JITTER_MS"):
    SOUND_TAP += LATE % int(os.environ["JITTER_MS"])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "complains: the browser's console is expected to complain in this test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def models() -> tuple[ModelInfo, ...]:
    return (
        model_info("fake", title="Sketch", sketch=True, params_m=12.0, licence="CC0", where="models/fake"),
        model_info(
            "fake-melody", title="Melody", melody=True, params_m=1500.0, licence="CC-BY-NC 4.0", where="models/melody",
            diffusion=DiffusionInfo(state="ready", licence="CC-BY-NC 4.0"),
        ),
        model_info(
            "large", title="Large", repo="facebook/musicgen-large", params_m=3300.0, licence="CC-BY-NC 4.0",
            state="downloadable", download_bytes=6_510_000_000, where="the Hugging Face cache",
        ),
    )  # fmt: skip


@dataclass
class Site:
    """One running program."""

    url: str
    studio: Studio
    manager: FakeManager
    engine: FakeEngine
    separator: FakeSeparator

    def wait(self, true: Any, timeout_s: float = PATIENCE_MS / 1000) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.02)

    def idle(self) -> None:
        """Until no job is going on."""
        final = ("done", "failed", "cancelled", "interrupted")
        self.wait(lambda: all(job.status in final for job in self.studio.jobs()))


def start(folder: Path, *, port: int = 0) -> tuple[Site, Any]:
    settings = Settings(
        port=port, data_dir=folder / "data", state_dir=folder / "state", cache_dir=folder / "cache", no_browser=True
    )
    engine = FakeEngine()
    manager = FakeManager(*models(), engine=engine)
    separator = FakeSeparator()
    studio = Studio(settings, manager=manager, separator=separator)
    studio.start()
    app = create_app(studio, settings)
    server = StudioServer(app, settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        app.extensions["broadcast"].stop()
        server.close_all()
        thread.join(5)
        studio.stop()

    return Site(f"http://127.0.0.1:{server.port}", studio, manager, engine, separator), stop


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium on this machine")
    if not (ROOT / "static/vendor/STAMP").exists():
        pytest.fail("static/vendor is empty: run node scripts/vendor.mjs")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made, stop = start(tmp_path)
    yield made
    made.engine.hold = None
    made.engine.step_s = 0
    stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test says what its pages showed and what its studios had done: seldom failures seldom come twice."""
    report = yield
    if report.failed and report.when != "setup":
        known = getattr(item, "funcargs", {}).values()
        contexts = {context for browser in known if isinstance(browser, Browser) for context in browser.contexts}
        contexts |= {context for context in known if isinstance(context, BrowserContext)}
        for page in (page for context in contexts for page in context.pages):
            report.sections.append((f"page {page.url}", shown(page)))
        for site in (site for site in known if isinstance(site, Site)):
            jobs = [f"{job.id} {job.client_id} {job.status} rev {job.rev} {job.tracks}" for job in site.studio.jobs()]
            report.sections.append((f"jobs of {site.url}", "\n".join(jobs)))
    return report


def shown(page: Page) -> str:
    try:
        said = [f"{message.type}: {message.text} ({message.location['url']})" for message in page.console_messages()]
        body = page.locator("body").inner_text(timeout=2000)
        kept = page.evaluate("() => JSON.stringify(localStorage, null, 1)")
    except PlaywrightError as error:
        return f"it does not answer: {error}"
    return "\n".join([*said, "-- text", body, "-- storage", kept[:8000]])


def watched(context: BrowserContext) -> tuple[Page, list[str]]:
    """A page, and what its console complains of."""
    complaints: list[str] = []
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.type}: {message.text} ({message.location['url']})")

    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    return page, complaints


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context(locale="en-GB", color_scheme="dark", viewport={"width": 1440, "height": 900})
    made.add_init_script(SOUND_TAP)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, site: Site, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, open and connected. It must leave no complaint in the console, unless marked otherwise."""
    made, complaints = watched(context)
    made.goto(site.url)
    made.wait_for_selector(".model-name")
    yield made
    allowed = request.node.get_closest_marker("complains")
    if allowed is None:
        assert complaints == []


def wait_until(page: Page, holds: Callable[[], bool], timeout_s: float = PATIENCE_MS / 1000) -> None:
    """Wait for what the page shows a frame or two after a key."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the page never showed it"
        page.wait_for_timeout(50)


def wait_for_sound(page: Page, *, louder_than: float = 0.01) -> None:
    # Asked from here: under the page's policy a condition in words cannot be evaluated there again and again.
    wait_until(page, lambda: page.evaluate("() => window.__level()") > louder_than)


def wait_for_silence(page: Page) -> None:
    wait_until(page, lambda: page.evaluate("() => window.__level()") < 0.001)
