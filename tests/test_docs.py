"""The documentation is what the program is: tables, links and commands are compared with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from modules.settings import Settings, flag_name

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "README.ru.md")
OWN_FLAGS = {"--prompt", "--out", "--audio-prompt", "--continue", "--append", "--from", "--conda", "--dev", "--check",
             "--fast", "--help"}  # fmt: skip
"""Flags that are not Settings: of the headless run and of the scripts."""


def test_the_tables_are_those_of_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_flag_is_described_in_russian_too() -> None:
    russian = json.loads((ROOT / "docs" / "flags.ru.json").read_text(encoding="utf-8"))
    assert set(russian) == {spec.name for spec in fields(Settings)}


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_the_text_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    known = {flag_name(spec.name) for spec in fields(Settings)} | OWN_FLAGS
    known |= {flag_name(spec) for spec in _parameter_names()}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


@pytest.mark.parametrize("page", PAGES)
def test_every_local_link_leads_to_a_file(page: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_two_languages_have_the_same_sections_and_commands() -> None:
    english, russian = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert len(re.findall(r"^## ", english, re.MULTILINE)) == len(re.findall(r"^## ", russian, re.MULTILINE))
    commands = [re.findall(r"^(?:\./|curl).*?(?=\s+#|$)", text, re.MULTILINE) for text in (english, russian)]
    assert commands[0] == commands[1]


def test_decisions_are_numbered_without_gaps_or_repeats() -> None:
    numbers = sorted(int(path.name[:3]) for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def _parameter_names() -> list[str]:
    from modules.contract import parameters

    return [parameter.name for parameter in parameters()]
