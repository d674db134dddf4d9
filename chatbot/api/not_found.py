"""Answers requests for paths and methods that the API does not have, in its error format."""

from fastapi import APIRouter, Request
from starlette.routing import compile_path

from chatbot.api.errors import ApiError

HTTP_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def router() -> APIRouter:
    """Return the routes that match every other path of the API; include them after all others."""
    routes = APIRouter()

    # Without them these paths would reach the pages, mounted at "/", and be answered in HTML.
    @routes.api_route("/v1/{rest:path}", methods=HTTP_METHODS, include_in_schema=False)
    @routes.api_route("/feedback", methods=HTTP_METHODS, include_in_schema=False)
    def nothing(request: Request) -> None:
        """Raise the 404 or 405 that fits the request."""
        raise _not_found_error(request)

    return routes


def _not_found_error(request: Request) -> ApiError:
    """Return a 404, or a 405 where the OpenAPI document has the path with other methods."""
    asked = f"{request.method} {request.url.path}"
    paths = request.app.openapi()["paths"]
    matching = [path for path in paths if compile_path(path)[0].match(request.url.path)]
    allowed = ", ".join(sorted({method.upper() for path in matching for method in paths[path]}))
    if not allowed:
        return ApiError(404, f"there is no {asked}", code="not_found")
    message = f"there is no {asked}; the method is {allowed}"
    return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
