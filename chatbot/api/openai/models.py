"""Names the models that can be asked and lists them: ``GET /v1/models``.

``talkback`` is the adapter in service and follows promotions; ``talkback:<adapter>`` pins one.
Shape: https://platform.openai.com/docs/api-reference/models
"""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from chatbot.api import schemas
from chatbot.api.errors import ApiError
from chatbot.engine.protocol import BASE

if TYPE_CHECKING:
    from chatbot.service import Service

SERVED_MODEL_NAME = "talkback"
"""The model that follows promotions; ``talkback:<adapter>`` pins one."""


def router(service: "Service") -> APIRouter:
    """Return the routes of /v1/models."""
    routes = APIRouter(responses=schemas.ERROR_RESPONSES)

    @routes.get("/v1/models", tags=["chat"], response_model=schemas.ModelList)
    def models() -> dict[str, Any]:
        """List all: ``talkback`` follows promotions, ``talkback:<adapter>`` stays with one."""
        names = [None, BASE, *service.rollout.adapters()]
        return {"object": "list", "data": [model_card(n, service.base.name) for n in names]}

    @routes.get("/v1/models/{name}", tags=["chat"], response_model=schemas.ModelCard)
    def model(name: str) -> dict[str, Any]:
        """Describe one model; 404 where there is none of that name."""
        adapter = pinned_adapter(name)
        service.rollout.check_adapter(adapter)
        return model_card(adapter, service.base.name)

    return routes


def model_name(adapter: str | None) -> str:
    """Return the model's name that pins ``adapter``, None: the one that follows promotions."""
    return f"{SERVED_MODEL_NAME}:{adapter}" if adapter else SERVED_MODEL_NAME


def pinned_adapter(model: str) -> str | None:
    """Return the adapter that a model's name pins, None for the one in service; ApiError (404)."""
    name, _, adapter = model.partition(":")
    if name != SERVED_MODEL_NAME or (":" in model and not adapter):
        message = f"there is no model {model!r}; GET /v1/models lists those there are"
        raise ApiError(404, message, param="model", code="model_not_found")
    return adapter or None


def model_card(adapter: str | None, base: str) -> dict[str, Any]:
    """Return one entry of GET /v1/models, with parent and root as in vLLM."""
    name = model_name(adapter)
    card = {"id": name, "object": "model", "created": 0, "owned_by": "talkback"}
    return card | {"root": adapter or name, "parent": None if adapter == BASE else base}
