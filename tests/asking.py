"""Requests to the API as a client without a library sends them, and what comes back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from chatbot.api import errors
from chatbot.api.openai import chat as api
from chatbot.service import Service
from tests.serving import serving

ASK = [{"role": "user", "content": "When do you open?"}]


@contextmanager
def api_of(service: Service) -> Iterator[str]:
    """The API without the pages, over real HTTP; gives its address."""
    app = FastAPI()
    errors.install(app)
    app.include_router(api.router(service))
    app.include_router(api.nowhere())
    with serving(app) as address:
        yield address


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    """A short plain completion."""
    return http.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 8, **fields})


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The server-sent events of a stream that has ended well."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refusal(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """Status and error of a refused request, in OpenAI's shape."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return response.status_code, error
