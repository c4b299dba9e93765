"""Requests are parsed once, strictly, and an error names the field and the value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules import contract

BODY: dict[str, Any] = {"kind": "generate", "client_id": "a1", "prompt": "warm lo-fi piano"}


def generate(**changes: Any) -> contract.GenerateRequest:
    request = contract.parse_submitted({**BODY, **changes})
    assert isinstance(request, contract.GenerateRequest)
    return request


def test_the_defaults_are_those_of_audiocraft() -> None:
    request = generate()
    assert (request.top_k, request.top_p, request.temperature, request.cfg_coef) == (250, 0.0, 1.0, 3.0)
    assert (request.seed, request.takes, request.format, request.sample_rate) == (-1, 1, "wav", "original")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"duration": 0.5}, "duration"),
        ({"duration": 301}, "duration"),
        ({"duration": "10"}, "duration"),
        ({"duration": float("nan")}, "duration"),
        ({"duration": float("inf")}, "duration"),
        ({"duration": True}, "duration"),
        ({"top_k": 2049}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 1.01}, "top_p"),
        ({"temperature": -0.1}, "temperature"),
        ({"cfg_coef": 11}, "cfg_coef"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"takes": 9}, "takes"),
        ({"takes": True}, "takes"),
        ({"format": "ogg"}, "format"),
        ({"sample_rate": "44k"}, "sample_rate"),
        ({"stems": "piano"}, "stems"),
        ({"prompt": "  \n "}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"artist": "x" * 61}, "artist"),
        ({"model": ""}, "model"),
        ({"client_id": "../x"}, "client_id"),
        ({"client_id": ""}, "client_id"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"audio_prompt": {}}, "audio_prompt"),
        ({"audio_prompt": {"upload": "a", "track": "b"}}, "audio_prompt"),
        ({"continuation": {"track": "a", "mode": "loop"}}, "continuation.mode"),
        ({"continuation": {"track": "a", "from": -1}}, "continuation.from"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(contract.InvalidParameter) as caught:
        generate(**change)
    assert caught.value.field == field
    assert field in caught.value.message
    assert len(caught.value.message) < 400


def test_a_missing_field_is_named() -> None:
    with pytest.raises(contract.InvalidParameter) as caught:
        contract.parse_submitted({"kind": "generate", "client_id": "a"})
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("body", [None, [], "x", 7, {"kind": "load", "client_id": "a", "model": "small"}, {}])
def test_what_is_not_a_job_is_refused(body: Any) -> None:
    with pytest.raises(contract.StudioError):
        contract.parse_submitted(body)


def test_a_whole_number_may_stand_for_a_number() -> None:
    assert generate(duration=5, cfg_coef=3, top_p=0).duration == 5.0


def test_a_continuation_takes_from_in_seconds() -> None:
    request = generate(continuation={"track": "A", "mode": "append", "from": 3})
    assert request.continuation is not None
    assert request.continuation.from_s == 3.0


def test_controls_and_direction_marks_leave_the_prompt() -> None:
    assert generate(prompt="a\x00b\u202ec\r\nd").prompt == "abc\nd"


def test_markup_in_a_prompt_is_only_text() -> None:
    assert generate(prompt="<script>alert(1)</script>").prompt == "<script>alert(1)</script>"


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "prompt", "duration", "seed", "takes", "client_id", "track", "upload", "zz"]), inner,
        max_size=6,
    ), max_leaves=12,
))  # fmt: skip
def test_any_json_is_a_request_or_a_studio_error(body: Any) -> None:
    try:
        contract.parse_submitted(body)
    except contract.StudioError as error:
        json.dumps(contract.failure(error))


@given(st.text(max_size=200))
def test_cleaning_a_text_twice_changes_nothing_more(text: str) -> None:
    once = contract.clean_text(text)
    assert contract.clean_text(once) == once
    once.encode("utf-8")


def test_codes_of_errors_are_unique_and_statuses_are_http() -> None:
    codes = [error.code for error in contract.ERRORS]
    assert len(set(codes)) == len(codes)
    assert all(400 <= error.status <= 599 for error in contract.ERRORS)


def test_every_setting_of_the_panel_has_its_range() -> None:
    found = {parameter.name: parameter for parameter in contract.parameters()}
    assert {"model", "duration", "top_k", "top_p", "temperature", "cfg_coef", "decoder", "seed", "takes", "artist",
            "format", "sample_rate", "stems", "loop"} == set(found)  # fmt: skip
    for parameter in found.values():
        if parameter.type in ("integer", "number"):
            assert parameter.minimum is not None
            assert parameter.maximum is not None
            assert parameter.minimum <= float(parameter.default) <= parameter.maximum
        if parameter.type == "choice":
            assert parameter.default in parameter.choices
