"""The OpenAPI document against the application it describes, and the application against what it allows."""

from __future__ import annotations

import json
import random
import re
import string
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from modules import contract
from modules.settings import Settings
from modules.web import openapi
from modules.web.app import create_app
from tests.fake_studio import FakeStudio
from tests.live_server import Live, running

FUZZ_S = 12.0
"""Never longer than this, however slow the machine."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("openapi")
    settings = Settings(port=0, data_dir=folder / "data", state_dir=folder / "state", max_upload_mb=1, no_browser=True)
    with running(settings) as server:
        server.studio.add_track("song", stems=("drums",))
        server.studio.submit({"kind": "generate", "client_id": "c", "prompt": "p"})
        server.studio.blocks["job1"] = [b"RIFF"]
        yield server


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(openapi.document()))
    return plain


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    validate(document, cls=OpenAPIV31SpecValidator)
    assert document["openapi"].startswith("3.1")


def test_the_served_document_is_this_one(live: Live, document: dict[str, Any]) -> None:
    assert live.ask("GET", "/api/openapi.json").json == document


def test_every_route_is_described_and_nothing_else_is(tmp_path: Path, document: dict[str, Any]) -> None:
    settings = Settings(data_dir=tmp_path / "data", state_dir=tmp_path / "state")
    app = create_app(FakeStudio(settings), settings)
    routed = {
        (method.lower(), path_of(rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    described = {(method.lower(), path) for method, path, _ in openapi.operations(document)}
    assert described == routed


def path_of(rule: str) -> str:
    """Flask's spelling of a path as OpenAPI's."""
    return re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule).replace("{kind}/{name}", "{kind}/{path}")


def test_every_operation_has_an_id_of_its_own_a_summary_and_described_answers(document: dict[str, Any]) -> None:
    found = openapi.operations(document)
    assert len({operation["operationId"] for _, _, operation in found}) == len(found)
    for _, path, operation in found:
        assert operation["summary"]
        assert operation["tags"][0] in openapi.TAGS
        assert all(answer["description"] for answer in operation["responses"].values())
        named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))


def test_every_body_has_an_example_that_the_program_takes(live: Live, document: dict[str, Any]) -> None:
    seen = 0
    for method, path, operation in openapi.operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        seen += 1
        address = path.format(model_id="small", job_id="job1", name="song")
        answer = live.ask(method, address, json_=content["example"])
        assert answer.status in (200, 202, 429), (method, path, answer.body)
        if (method, path) == ("DELETE", "/api/tracks"):
            live.studio.add_track("song", stems=("drums",))
    assert seen >= 6


def test_ranges_in_the_document_are_those_of_the_contract(document: dict[str, Any]) -> None:
    properties = document["components"]["schemas"]["GenerateRequest"]["properties"]
    for parameter in contract.parameters():
        spec = properties[parameter.name]
        assert spec["default"] == parameter.default
        assert spec.get("minimum") == parameter.minimum
        assert spec.get("maximum") == parameter.maximum
        assert spec.get("enum", []) == parameter.choices


def test_every_answer_has_the_shape_the_document_says(live: Live, document: dict[str, Any]) -> None:
    seen = 0
    for method, path, operation in openapi.operations(document):
        if method != "GET" or path in ("/", "/api/openapi.json"):
            continue
        schema = operation["responses"]["200"]["content"].get("application/json", {}).get("schema")
        if schema is None:
            continue
        seen += 1
        answer = live.ask("GET", path.format(job_id="job1", name="song", stem="drums"))
        assert answer.status == 200
        OAS31Validator({**schema, "components": document["components"]}).validate(answer.json)
    assert seen >= 7


# ---------------------------------------------------------------------------------------------- fuzz
class Fuzz:
    """Requests made from the document: right, nearly right and wrong values in every place a client fills."""

    ODD_TEXT = (
        "",
        " ",
        "\x00",
        "\u202e",
        "../..",
        "a" * 3000,
        "☃",
        "%",
        "<script>",
        "null",
        "-1",
        "1e309",
        "NaN",
        "'\"",
    )
    ODD_VALUES: tuple[Any, ...] = (
        None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.1, -1e308, "", "x", "small", [], [1], {}, {"upload": "a"},
        {"track": "song", "upload": "a"}, {"track": "song", "mode": "append", "from": 1.0}, ["x"] * 50,
    )  # fmt: skip

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._rng = random.Random(seed)
        self._schemas = document["components"]["schemas"]
        self._operations = [
            (method, path, operation)
            for method, path, operation in openapi.operations(document)
            if path not in ("/", "/api/docs", "/static/{kind}/{path}")
        ]

    def request(self) -> tuple[str, str, dict[str, Any]]:
        method, path, operation = self._rng.choice(self._operations)
        if self._rng.random() < 0.05:
            method = self._rng.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
        address = re.sub(r"{(\w+)}", lambda match: self._segment(match[1]), path)
        pairs = [(p["name"], self._text()) for p in operation["parameters"] if p["in"] == "query" and self._coin()]
        if pairs or self._rng.random() < 0.1:
            pairs += [(self._word(), self._text())] if self._rng.random() < 0.1 else []
            address += "?" + urllib.parse.urlencode(pairs, errors="surrogatepass")
        return method, address, self._body(operation)

    def _coin(self) -> bool:
        return self._rng.random() < 0.5

    def _segment(self, name: str) -> str:
        known = {
            "model_id": "small",
            "job_id": "job1",
            "name": "song",
            "stem": "drums",
            "kind": "css",
            "path": "docs.css",
        }
        if self._rng.random() < 0.6:
            return known[name]
        return urllib.parse.quote(self._text(), safe="", errors="surrogatepass") or "x"

    def _word(self) -> str:
        return "".join(self._rng.choice(string.printable) for _ in range(self._rng.randint(0, 12)))

    def _text(self) -> str:
        return self._rng.choice(
            [self._word(), self._rng.choice(self.ODD_TEXT), str(self._rng.randint(-5, 500)), "true"]
        )

    def _body(self, operation: dict[str, Any]) -> dict[str, Any]:
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            return {"body": self._text().encode("utf-8", "replace")} if self._rng.random() < 0.2 else {}
        body = dict(content["application/json"]["example"])
        for name in self._fields(content["application/json"]["schema"]):
            if self._rng.random() < 0.25:
                body[name] = self._rng.choice(self.ODD_VALUES)
            elif self._rng.random() < 0.1:
                body.pop(name, None)
        if self._rng.random() < 0.1:
            body[self._word()] = self._rng.choice(self.ODD_VALUES)
        text = json.dumps(self._rng.choice([body, body, body, body, self._rng.choice(self.ODD_VALUES)]))
        if self._rng.random() < 0.1:
            text = text[: self._rng.randrange(len(text) + 1)]
        return {"body": text, "headers": {"Content-Type": "application/json"}}

    def _fields(self, schema: dict[str, Any]) -> list[str]:
        refs = [option["$ref"] for option in schema.get("oneOf", [schema])]
        return [name for ref in refs for name in self._schemas[ref.rsplit("/", 1)[1]]["properties"]]


def test_no_fuzzed_request_makes_a_5xx_and_every_answer_is_described(live: Live, document: dict[str, Any]) -> None:
    fuzz = Fuzz(document, seed=20261124)
    end = time.monotonic() + FUZZ_S
    statuses: dict[int, int] = {}
    for _ in range(1500):
        method, address, rest = fuzz.request()
        answer = live.ask(method, address, **rest)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        assert answer.status < 500, (method, address, rest, answer.body[:300])
        if answer.status >= 400 and method != "HEAD":
            assert answer.json["error"]["code"] in {error.code for error in contract.ERRORS}
        if "song" not in live.studio.library:
            live.studio.add_track("song", stems=("drums",))
        if time.monotonic() > end:
            break
    assert {200, 400, 404} <= set(statuses)
    assert sum(statuses.values()) >= 200
