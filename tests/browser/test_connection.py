"""The server goes away and comes back; a model is fetched; the page is older than the server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from modules import contract
from modules.contract import Decoder
from tests.browser.conftest import Site, start, wait_until, watched
from tests.fakes import FakeLoaded


@pytest.mark.complains  # of the connection
def test_a_lost_connection_is_said_quietly_and_everything_is_right_again_by_itself(page: Page, tmp_path: Path) -> None:
    one, stop = start(tmp_path / "own")
    page.goto(one.url)
    page.fill("#prompt", "before")
    page.keyboard.press("Enter")
    expect(page.locator(".take .link")).to_have_count(1)
    one.engine.step_s = 0.02
    page.fill("#prompt", "cut off")
    page.keyboard.press("Enter")
    expect(page.locator("progress")).to_be_visible()
    stop()
    expect(page.locator("#banner")).to_contain_text("connection to the studio is lost")
    page.fill("#prompt", "while away")
    page.keyboard.press("Enter")
    away = page.locator(".entry").nth(2)
    expect(away.locator(".trouble")).to_contain_text("does not answer")
    two, stop_two = start(tmp_path / "own", port=int(one.url.rpartition(":")[2]))
    try:
        expect(page.locator("#banner")).to_be_empty()
        expect(page.locator(".entry").nth(1).locator(".trouble")).to_contain_text("Interrupted")
        away.get_by_role("button", name="Retry").click()
        expect(away.locator(".take .link")).to_have_count(1)
        assert [job.request["prompt"] for job in two.studio.jobs()].count("while away") == 1
    finally:
        stop_two()


def test_a_request_that_overtakes_the_list_of_the_connection_is_not_taken_for_lost(
    chromium: Browser, site: Site
) -> None:
    context = chromium.new_context(locale="en-GB")
    page, complaints = watched(context)
    held: list[str | bytes] = []
    free = threading.Event()
    sockets: list[WebSocketRoute] = []

    def between(socket: WebSocketRoute) -> None:
        def forward(message: str | bytes) -> None:
            # From the list on, nothing comes through: it was made before the request, and is late.
            if not free.is_set() and (held or '"hello"' in str(message)):
                held.append(message)
            else:
                socket.send(message)

        sockets.append(socket)
        socket.connect_to_server().on_message(forward)

    estimates: list[str] = []
    page.on("request", lambda request: estimates.append(request.url) if "/api/estimate" in request.url else None)
    page.route_web_socket("**/socket.io/**", between)
    page.goto(site.url)
    wait_until(page, lambda: bool(held))
    page.wait_for_timeout(1000)
    assert estimates == [], "no model is known yet that could be asked about"
    page.fill("#prompt", "faster than the list")
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/api/jobs")):
        page.keyboard.press("Enter")
    expect(page.locator(".entry")).to_have_count(1)
    free.set()
    for message in held:
        sockets[0].send(message)
    expect(page.locator(".take .link")).to_have_count(1)
    expect(page.locator(".trouble")).to_have_count(0)
    assert complaints == []
    context.close()


def test_a_page_older_than_the_server_offers_to_reload(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = site.studio.hello()
    monkeypatch.setattr(site.studio, "hello", lambda: hello.model_copy(update={"protocol": contract.PROTOCOL + 1}))
    page.reload()
    expect(page.locator("#banner")).to_contain_text("The studio was updated")
    expect(page.get_by_role("button", name="Reload the page")).to_be_visible()


def test_a_model_is_fetched_with_its_progress_and_answers_when_it_is_here(
    page: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    known = site.manager.catalog._models
    whole = site.manager.ensure

    def ensure(
        model_id: str, progress: Callable[[Any, float, float, float | None], None], decoder: Decoder = "codec"
    ) -> FakeLoaded:
        if model_id == "large":
            progress("downloading", 2_000_000_000, 6_510_000_000, 50_000_000.0)
            while not go_on.wait(0.05):
                progress("downloading", 2_000_000_000, 6_510_000_000, 50_000_000.0)
            known["large"] = known["large"].model_copy(update={"state": "ready", "download_bytes": 0})
        return whole(model_id, progress, decoder)

    monkeypatch.setattr(site.manager, "ensure", ensure)
    expect(page.locator(".model-button")).to_contain_text("Sketch")
    page.locator(".model-button").click()
    row = page.locator("[data-model=large]")
    expect(row).to_contain_text("CC-BY-NC 4.0")
    expect(row).to_contain_text("Will be kept in the Hugging Face cache")
    row.get_by_role("button", name="Download 6.5 GB").click()
    expect(row).to_contain_text("2 GB of 6.5 GB")
    expect(row).to_contain_text("50 MB/s")
    row.get_by_role("button", name="Cancel").click()
    expect(row.get_by_role("button", name="Download 6.5 GB")).to_be_visible()
    row.get_by_role("button", name="Download 6.5 GB").click()
    expect(row).to_contain_text("2 GB of 6.5 GB")
    go_on.set()
    expect(row.locator(".chosen-mark")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".model-button")).to_contain_text("Large")
