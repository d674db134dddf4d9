"""Logging in and out on the pages: a key is sent once, a cookie stands for it from then on."""

import os
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from chatbot.auth.access import BadKey
from chatbot.auth.sessions import COOKIE, LASTS

if TYPE_CHECKING:
    from chatbot.service import Service


class Login(BaseModel):
    """The body of POST /session."""

    key: str


class Session(BaseModel):
    """Who has logged in."""

    name: str
    role: str


def router(service: "Service") -> APIRouter:
    """The route /session."""
    routes = APIRouter(include_in_schema=False)  # the pages' own
    access = service.access

    @routes.post("/session")
    def log_in(body: Login, request: Request, response: Response) -> Session:
        """Log in with a key; the cookie that stands for it ends with the key."""
        caller = access.known(body.key.strip())
        if caller is None:
            raise BadKey("This key was never made here, or it is revoked.")
        value = access.sessions.write(caller.id)
        response.set_cookie(COOKIE, value, max_age=LASTS, httponly=True, **_where(request))
        return Session(name=caller.name, role=str(caller.role))

    @routes.delete("/session", status_code=204)
    def log_out(request: Request) -> Response:
        """Forget who it is."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, **_where(request))
        return response

    return routes


def _where(request: Request) -> dict[str, Any]:
    """For whom browsers keep the cookie. A Space is shown in a frame of another site, where only
    a cookie for all sites is sent; that it is used for ours alone is seen to in ``access``."""
    if os.environ.get("SYSTEM") == "spaces":
        return {"secure": True, "samesite": "none"}
    return {"secure": request.url.scheme == "https", "samesite": "lax"}
