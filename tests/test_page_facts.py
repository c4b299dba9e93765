"""What the page is told of the contract is the golden file that the node tests read too."""

from __future__ import annotations

import json
import os
from pathlib import Path

from modules import contract

GOLDEN = Path(__file__).parent / "golden" / "page_facts.json"


def test_the_facts_given_to_the_page_are_those_its_own_tests_were_written_against() -> None:
    facts = contract.page_facts(max_upload_mb=512)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == json.loads(json.dumps(facts))


def test_every_widget_of_a_setting_is_one_that_the_page_can_draw() -> None:
    assert {p.widget for p in contract.parameters()} <= {"model", "slider", "seed", "text", "choice", "switch"}
