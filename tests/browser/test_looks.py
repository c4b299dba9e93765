"""Seen by axe, by a ruler, by a keyboard: both themes, both languages, every width."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from modules.settings import ROOT
from tests.browser.conftest import PATIENCE_MS, SOUND_TAP, Site, start

AXE = (ROOT / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
WIDTHS = ((360, 740), (390, 844), (1024, 768), (1440, 900))
RULER = """() => {
  const small = [];
  for (const element of document.querySelectorAll('button, a, input, select, textarea, [role=button]')) {
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    const seen = box.width > 1 && box.height > 1 && style.visibility === 'visible' && !element.closest('[inert]') &&
      !element.classList.contains('skip');
    if (seen && (box.width < 39.5 || box.height < 39.5)) {
      const words = element.getAttribute('aria-label') ?? element.textContent;
      small.push(`${element.tagName} ${element.className} ${words}: ${box.width}x${box.height}`);
    }
  }
  const wide = [...document.querySelectorAll('#app *, dialog *')].filter((element) => {
    const box = element.getBoundingClientRect();
    const shown = !element.closest('[inert]') && getComputedStyle(element).visibility === 'visible';
    return shown && box.width > 1 && box.right > innerWidth + 0.5;
  }).map((element) => `${element.tagName} ${element.className}`);
  return { small, wide, scrolls: document.documentElement.scrollWidth > innerWidth };
}"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One program with takes in it, for every test that only looks."""
    made, stop = start(tmp_path_factory.mktemp("looks"))
    yield made
    made.engine.hold = None
    stop()


def fresh(chromium: Browser, site: Site, **options: Any) -> tuple[BrowserContext, Page]:
    settings: dict[str, Any] = {"locale": "en-GB", "color_scheme": "dark", "viewport": {"width": 1440, "height": 900}}
    context = chromium.new_context(**(settings | options))
    context.add_init_script(SOUND_TAP)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(site.url)
    page.wait_for_selector(".model-name")
    return context, page


def fill(page: Page, *, loop: bool = False) -> None:
    """A chat with takes (or loops) in it, one of them in the card, and the settings open."""
    page.locator(".labelled").nth(1).click()
    page.locator("#settings-toggle").click()
    page.locator(".field-head .number").nth(0).fill("2")
    page.locator(".field-head .number").nth(1).fill("2")
    page.locator(".field-head .number").nth(1).blur()
    page.locator("#set-loop").set_checked(loop)
    page.fill("#prompt", "a calm piece with a long name so that lines must break somewhere in the middle")
    page.keyboard.press("Enter")
    expect(page.locator(".take .link")).to_have_count(2)
    page.locator(".take .link").first.click()
    expect(page.locator("#card .wave > div")).to_have_count(1)


def violations(page: Page) -> list[str]:
    """What axe finds. It is evaluated by the debugger, which the page's policy does not bind."""
    page.wait_for_timeout(200)
    page.evaluate(AXE)
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [f"{item['id']}: {node['target']} {node['failureSummary']}" for item in found for node in item["nodes"]]


def dialogs(page: Page) -> Iterator[str]:
    """Each dialog in turn, open; named for the failure's message."""
    more, items, actions = (
        page.locator("#more"),
        page.locator("#more-menu button"),
        page.locator(".card-actions button"),
    )
    presses = {
        "models": [page.locator(".model-button")],
        "library": [page.locator(".labelled").first],
        "keys": [more, items.nth(4)],
        "clear": [more, items.nth(5)],
        "extend": [actions.nth(2)],
        "download": [actions.nth(4)],
        "delete": [actions.nth(5)],
    }
    for name, pressed in presses.items():
        for control in pressed:
            control.click()
        expect(page.locator("dialog[open]")).to_be_visible()
        yield name
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)


LOOKS = [("en-GB", "dark"), ("en-GB", "light"), ("ru-RU", "dark"), ("ru-RU", "light")]


@pytest.mark.parametrize(("locale", "scheme"), LOOKS)
def test_axe_finds_nothing(chromium: Browser, full: Site, locale: str, scheme: str) -> None:
    context, page = fresh(chromium, full, locale=locale, color_scheme=scheme)
    assert violations(page) == []
    fill(page, loop=True)
    assert violations(page) == []
    for name in dialogs(page):
        assert violations(page) == [], name
    context.close()


def test_nothing_scrolls_sideways_and_every_target_is_large_enough(chromium: Browser, full: Site) -> None:
    for locale in ("en-GB", "ru-RU"):
        context, page = fresh(chromium, full, locale=locale)
        fill(page, loop=True)
        for width, height in WIDTHS:
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(250)
            assert page.evaluate(RULER) == {"small": [], "wide": [], "scrolls": False}, (locale, width)
            if width < 900:
                page.locator(".card-back").click()
                page.wait_for_timeout(200)
                assert page.evaluate(RULER) == {"small": [], "wide": [], "scrolls": False}, (locale, width, "chat")
                page.locator(".labelled").first.click()
                expect(page.locator(".track-row").first).to_be_visible()
                assert page.evaluate(RULER) == {"small": [], "wide": [], "scrolls": False}, (locale, width, "library")
                page.keyboard.press("Escape")
                page.locator(".take .link").first.click()
        context.close()


def test_on_a_small_screen_the_card_slides_over_the_chat_and_escape_or_back_takes_it_away(
    chromium: Browser, full: Site
) -> None:
    context, page = fresh(chromium, full, viewport={"width": 390, "height": 844})
    page.locator(".labelled").nth(1).click()
    page.fill("#prompt", "small screen")
    page.keyboard.press("Enter")
    page.locator(".take .link").click()
    expect(page.locator("#card")).to_be_in_viewport()
    expect(page.locator("#chat")).to_have_attribute("inert", "")
    page.keyboard.press("Escape")
    expect(page.locator("#card .card-title")).to_have_count(0)
    expect(page.locator("#prompt")).to_be_in_viewport()
    page.locator(".take .link").click()
    page.get_by_role("button", name="Reuse").last.click()
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("small screen")
    page.locator(".take .link").click()
    expect(page.locator("#card .card-title")).to_have_count(1)
    page.go_back()
    expect(page.locator("#card .card-title")).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("small screen")
    page.locator(".take .link").click()
    page.get_by_role("button", name="Rerun").last.click()
    expect(page.locator("#card .card-title")).to_have_count(0)
    expect(page.locator(".take .link")).to_have_count(2)
    page.locator(".take .link").first.click()
    expect(page.locator("#card .card-title")).to_have_count(1)
    page.reload()
    expect(page.locator(".take .link")).to_have_count(2)
    # No way back to a card that is not there.
    full.wait(lambda: page.evaluate("() => history.state") is None)
    context.close()


NAME_LINES = """(heading, width) => {
  heading.style.flex = 'none';
  heading.style.width = `${width}px`;
  const lines = [];
  let top = null;
  for (const node of heading.childNodes) {
    for (let at = 0; at < (node.data ?? '').length; at += 1) {
      const range = document.createRange();
      range.setStart(node, at);
      range.setEnd(node, at + 1);
      const box = range.getBoundingClientRect();
      if (top === null || Math.abs(box.top - top) > 4) lines.push('');
      top = box.top;
      lines[lines.length - 1] += node.data[at];
    }
  }
  return lines;
}"""
"""A heading in a narrow place, line by line: a line begins where a character stands lower than the one before."""


def test_a_long_name_breaks_between_its_parts_and_stays_what_it_is(chromium: Browser, full: Site) -> None:
    context, page = fresh(chromium, full)
    fill(page)
    title = page.locator(".card-title")
    name = title.text_content()
    assert name == title.get_attribute("title")
    for width in range(120, 180, 10):
        lines: list[str] = title.evaluate(NAME_LINES, width)
        assert len(lines) > 1
        assert "".join(lines) == name
        pairs = itertools.pairwise(lines)
        assert all(line.endswith("_") or following.startswith(".") for line, following in pairs), lines
    context.close()


def test_the_language_changes_without_a_reload_and_is_remembered(chromium: Browser, full: Site) -> None:
    context, page = fresh(chromium, full, locale="ru-RU")
    expect(page.locator("#generate")).to_have_text("Создать")
    page.fill("#prompt", "a draft")
    page.evaluate("() => { window.__same = true; }")
    page.locator("#language").click()
    expect(page.locator("#generate")).to_have_text("Generate")
    expect(page.locator("#prompt")).to_have_value("a draft")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    assert page.evaluate("() => window.__same") is True
    page.reload()
    expect(page.locator("#generate")).to_have_text("Generate")
    expect(page.locator("#prompt")).to_have_value("a draft")
    context.close()


def test_the_theme_follows_the_system_until_one_is_chosen_which_is_remembered(chromium: Browser, full: Site) -> None:
    context, page = fresh(chromium, full, color_scheme="light")
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "light")
    page.emulate_media(color_scheme="dark")
    expect(root).to_have_attribute("data-theme", "dark")
    switch = page.get_by_role("button", name="Theme")
    switch.click()
    switch.click()
    expect(root).to_have_attribute("data-theme", "light")
    page.reload()
    expect(root).to_have_attribute("data-theme", "light")
    context.close()


def test_the_keyboard_plays_seeks_loops_and_finds_the_prompt_but_not_while_typing(
    chromium: Browser, full: Site
) -> None:
    context, page = fresh(chromium, full)
    fill(page)
    page.locator("#scroll").focus()
    page.keyboard.press("Space")
    expect(page.locator("#card .big")).to_have_attribute("aria-label", "Pause")
    page.keyboard.press("Space")
    expect(page.locator("#card .big")).to_have_attribute("aria-label", "Play")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".transport .time")).to_have_text("0:02 / 0:02")
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator(".transport .time")).to_have_text("0:01 / 0:02")
    page.keyboard.press("l")
    expect(page.get_by_role("button", name="Loop")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("l?/ 1")
    expect(page.locator("#prompt")).to_have_value("l?/ 1")
    expect(page.get_by_role("button", name="Loop")).to_have_attribute("aria-pressed", "true")
    page.locator("#scroll").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Play or pause")
    context.close()


def test_a_dialog_keeps_the_focus_inside_and_gives_it_back(chromium: Browser, full: Site) -> None:
    context, page = fresh(chromium, full)
    page.locator(".model-button").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "() => document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
    page.keyboard.press("Escape")
    expect(page.locator(".model-button")).to_be_focused()
    context.close()


def test_everything_is_reached_by_tab_with_a_focus_that_is_seen(chromium: Browser, full: Site) -> None:
    context, page = fresh(chromium, full)
    fill(page)
    page.locator("#skip").focus()
    reached: set[str] = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => {
              const element = document.activeElement;
              const { outlineStyle, outlineWidth } = getComputedStyle(element);
              const name = element === document.body ? 'BODY' : element.id || element.className || element.tagName;
              return [name, outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1];
            }"""
        )
        if at[0] == "BODY":
            break
        assert at[1], f"the focus on {at[0]} is not seen"
        reached.add(at[0])
    assert {
        "prompt",
        "generate",
        "settings-toggle",
        "language",
        "more",
        "scroll",
        "set-duration",
        "set-seed",
    } <= reached
    assert any("big" in name for name in reached)
    context.close()


def test_no_style_or_script_is_inline(full: Site, chromium: Browser) -> None:
    context, page = fresh(chromium, full)
    source = page.request.get(full.url).text()
    assert "<style" not in source
    assert " style=" not in source
    assert " onclick=" not in source
    assert page.locator("script:not([src]):not([type='application/json'])").count() == 0
    context.close()
