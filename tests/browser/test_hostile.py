"""What came from a person or a file is text, and the page's policy holds."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import FilePayload, Page, expect

PAYLOADS = (
    '<img src=x onerror="window.__owned=1">',
    '"><script>window.__owned=1</script>',
    "{{7*7}} javascript:alert(1)",
)


def owned(page: Page) -> object:
    return page.evaluate("() => window.__owned ?? null")


def test_markup_in_a_prompt_and_an_artist_is_shown_as_it_was_typed(page: Page) -> None:
    page.locator("#settings-toggle").click()
    page.fill("#set-artist", PAYLOADS[1])
    for number, payload in enumerate(PAYLOADS, start=1):
        page.fill("#prompt", payload)
        page.keyboard.press("Enter")
        expect(page.locator(".take .link")).to_have_count(number)
    expect(page.locator(".bubble-text")).to_have_text(list(PAYLOADS))
    page.locator(".take .link").first.click()
    expect(page.locator("#card .card-prompt")).to_have_text(PAYLOADS[0])
    page.get_by_role("button", name="Library", exact=True).click()
    expect(page.locator(".track-prompt")).to_have_text(list(reversed(PAYLOADS)))
    page.keyboard.press("Escape")
    page.locator(".card-actions").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.locator("#scroll img, #card img, dialog img").count() == 0
    assert owned(page) is None


def test_markup_in_a_file_name_is_shown_as_text(page: Page) -> None:
    name = "<img src=x onerror=window.__owned=1>.wav"
    page.locator(".composer input[type=file]").set_input_files(
        FilePayload(name=name, mimeType="audio/wav", buffer=b"not audio")
    )
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".file-name")).to_have_text(name)
    assert owned(page) is None
    dialog.get_by_role("button", name="Close").click()


@pytest.mark.complains  # of the 400
def test_an_unreadable_file_is_refused_in_words(page: Page) -> None:
    page.locator(".composer input[type=file]").set_input_files(
        FilePayload(name="broken.wav", mimeType="audio/wav", buffer=b"RIFF but no more")
    )
    page.get_by_role("dialog").get_by_role("button", name="A clip to continue").click()
    expect(page.locator(".toast.error")).to_contain_text("broken.wav could not be used")
    expect(page.locator(".chip")).to_have_count(0)


@pytest.mark.complains  # of the 404 for the track that the file speaks of
def test_a_chat_file_with_payloads_imports_as_text(page: Page) -> None:
    bad = '<img src=x onerror="window.__owned=1">'
    entry = {
        "id": "evil", "at": 1, "state": "done", "labels": {"continuation": bad, "source": bad}, "removed": [],
        "request": {"kind": "generate", "prompt": bad, "model": bad, "duration": "x", "continuation": {"track": bad}},
        "tracks": [{"name": bad, "file": bad, "duration_s": 1, "take": 1, "seed": 1}],
        "error": {"code": bad, "message": bad},
    }  # fmt: skip
    page.locator(".menu-host input[type=file]").set_input_files(
        FilePayload(
            name="chat.json", mimeType="application/json", buffer=json.dumps({"chat": [entry, {"id": 5}]}).encode()
        )
    )
    expect(page.locator(".bubble-text")).to_have_text(bad)
    expect(page.locator(".trouble-text")).to_contain_text(bad)
    expect(page.locator(".take.removed s")).to_have_text(bad)
    assert owned(page) is None
    assert page.locator("#scroll img").count() == 0
