"""Tests the OpenAPI document, and the API against requests that schemathesis makes from it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # here, before the server's threads parse beside it
from hypothesis import HealthCheck, given, settings
from schemathesis import APIOperation, BaseSchema, Case, GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from chatbot.server import create_api
from chatbot.service import Service
from feedback.settings import Home
from tests.fixtures.http_server import serve_app

EXAMPLES = 20
"""Requests for an operation, of valid and of invalid ones."""

TOML = "[engine]\nthreads = 1\nslots = 8\nmax_length = 96\n"
"""Answers are short, whatever a request asks for."""

CHECKS = [
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[str]:
    """Serve the API without the pages, over real HTTP; yield its address."""
    home = Home.find(tmp_path_factory.mktemp("openapi"))
    home.toml.write_text(TOML)
    service = Service.open(home, str(tiny_base), poll_seconds=60)
    with serve_app(create_api(service)) as address:
        yield address


@pytest.fixture(scope="module")
def schema(address: str) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


def fuzz(operation: APIOperation, mode: GenerationMode) -> None:
    """Send this operation what its description allows, or what it forbids."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def bears(case: Case) -> None:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"]

    bears()


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
def test_nothing_is_an_error_of_ours_and_refusals_have_openais_shape(
    schema: BaseSchema, mode: GenerationMode
) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {"POST /v1/chat/completions", "POST /v1/feedback", "POST /feedback"} <= {
        operation.label for operation in operations
    }
    for operation in operations:
        if mode is GenerationMode.POSITIVE or operation.body:  # without one all is allowed
            fuzz(operation, mode)


def test_every_operation_is_told_with_its_answers_and_errors(address: str) -> None:
    document = httpx.get(f"{address}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answers = operation["responses"]
            assert "422" not in answers, f"{method} {path} has errors of another shape"
            assert operation["tags"] and operation["summary"]
            good = answers["200"]["content"]["application/json"]["schema"]
            assert good, f"{method} {path} does not tell what it answers"
