"""Logs people in and out on the pages: a key is sent once, a cookie stands for it from then on."""

import os
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from chatbot.api.fields import Identifier
from chatbot.auth.sessions import COOKIE_NAME, LIFETIME_SECONDS

if TYPE_CHECKING:
    from chatbot.service import Service


class LoginRequest(BaseModel):
    """Holds the body of POST /session."""

    key: Identifier


class LoginResponse(BaseModel):
    """Names who has logged in."""

    name: str
    role: str


def router(service: "Service") -> APIRouter:
    """Return the route /session, which only the pages use."""
    routes = APIRouter(include_in_schema=False)  # for the pages alone
    access = service.access

    @routes.post("/session")
    def log_in(body: LoginRequest, request: Request, response: Response) -> LoginResponse:
        """Log in with a key; the cookie that stands for it ends with the key."""
        caller = access.log_in(request, body.key.strip())
        value = access.sessions.issue(caller.id)
        response.set_cookie(
            COOKIE_NAME, value, max_age=LIFETIME_SECONDS, httponly=True, **_cookie_scope(request)
        )
        return LoginResponse(name=caller.name, role=str(caller.role))

    @routes.delete("/session", status_code=204)
    def log_out(request: Request) -> Response:
        """Delete the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE_NAME, httponly=True, **_cookie_scope(request))
        return response

    return routes


def _cookie_scope(request: Request) -> dict[str, Any]:
    """Return the cookie attributes that say to which sites browsers send it.

    A Space is shown in a frame of another site, where only a cookie with SameSite=None is sent;
    ``Access`` then accepts it for requests of our own pages alone.
    """
    if os.environ.get("SYSTEM") == "spaces":
        return {"secure": True, "samesite": "none"}
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    return {"secure": scheme == "https", "samesite": "lax"}
