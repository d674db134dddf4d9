"""Turns exceptions into error responses in OpenAI's format, which any client can read.

Shape: https://platform.openai.com/docs/guides/error-codes
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from chatbot.auth.access import BadKeyError, PermissionDeniedError
from chatbot.conversation import ForbiddenError
from chatbot.engine.protocol import (
    EngineBusyError,
    EngineClosedError,
    PromptTooLongError,
    UnknownAdapterError,
    UnreachableError,
)
from chatbot.model.adapter import AdapterError
from chatbot.registry import (
    PromotionConflictError,
    RegistryError,
    UnconfirmedPromotionError,
)
from feedback.db.database import StoreError
from feedback.errors import TalkbackError
from feedback.kinds import IdempotencyKeyTakenError
from feedback.messages import NotFoundError
from feedback.review.conflicts import DecisionConflictError

log = logging.getLogger("talkback")

MAX_MESSAGE_LENGTH = 2000
"""Messages name what was sent, which may be long."""


@dataclass
class ApiError(Exception):
    """Signals a request that cannot be served, with its HTTP status and OpenAI's error fields."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        message = self.message[:MAX_MESSAGE_LENGTH]
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the HTTP response; one that says "unavailable" says when to try again too."""
        retry = {"Retry-After": "1"} if self.status == 503 else {}
        return JSONResponse(self.body(), self.status, retry | self.headers)


def to_api_error(error: Exception) -> ApiError:
    """Return what the client is told of an exception; bugs are logged, and only named as such."""
    match error:
        case ApiError():
            return error
        case EngineBusyError(retry_after=seconds):
            wait = {"Retry-After": str(max(1, round(seconds)))}
            return ApiError(429, str(error), "rate_limit_error", code="busy", headers=wait)
        case UnknownAdapterError():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case PromptTooLongError():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case NotFoundError():
            return ApiError(404, str(error), code="not_found")
        case IdempotencyKeyTakenError():
            return ApiError(409, str(error), param="idempotency_key", code="idempotency_key_taken")
        case DecisionConflictError():
            return ApiError(409, str(error), param="seen", code="changed_since_seen")
        case ForbiddenError():
            return ApiError(403, str(error), "permission_error", code="forbidden")
        case BadKeyError():
            return _unauthorized(str(error), "invalid_api_key")
        case PermissionDeniedError(authenticated=False):
            return _unauthorized(str(error), "missing_api_key")
        case PermissionDeniedError():
            return ApiError(403, str(error), "permission_error", code="forbidden")
        case PromotionConflictError():
            return ApiError(409, str(error), param="seen", code="changed_since_seen")
        case UnconfirmedPromotionError():
            return ApiError(409, str(error), param="confirm", code="confirmation_required")
        case RegistryError():
            return ApiError(404, str(error), code="not_found")
        case EngineClosedError() | UnreachableError() | AdapterError() | StoreError():
            return ApiError(503, str(error), "server_error", code="unavailable")
        case TalkbackError():
            return ApiError(400, str(error))
    log.error("a request failed", exc_info=error)
    return ApiError(500, "Something went wrong here; the server's log has it.", "server_error")


def _unauthorized(message: str, code: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, "authentication_error", code=code, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Have every exception of this app answered in that format."""
    handlers: dict[Any, Callable[[Request, Any], Awaitable[JSONResponse]]] = {
        ApiError: _handle_error,
        TalkbackError: _handle_error,
        RequestValidationError: _handle_validation_error,
        HTTPException: _handle_http_exception,
        Exception: _handle_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _handle_error(request: Request, error: Exception) -> JSONResponse:
    return to_api_error(error).response()


async def _handle_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}").response()
    if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        return ApiError(400, "send JSON with the header content-type: application/json").response()
    location = [str(part) for part in first["loc"] if part != "body"]
    where = ".".join(location) or "the body"
    reason = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{where}: {reason}", param=location[0] if location else None).response()


async def _handle_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()
