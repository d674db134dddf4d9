"""Lists the routes of the API, in the order in which they are tried and documented."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI

from chatbot.api import not_found
from chatbot.api.feedback import feedback
from chatbot.api.openai import chat, models
from chatbot.api.operations import adapters, health, login, monitoring, reviews

if TYPE_CHECKING:
    from chatbot.service import Service


def add_routes(app: FastAPI, service: "Service", webhook_backlog: Callable[[], int]) -> None:
    """Add all routes of the API to ``app``; a new endpoint's router is added here.

    ``webhook_backlog`` returns the number of events that wait for delivery.
    """
    routers = [
        chat.router(service),  # routes are tried one by one: the busiest comes first
        models.router(service),
        feedback.router(service),
        health.liveness_router(service),
        login.router(service),
        reviews.router(service),
        adapters.router(service),
        health.readiness_router(service),
        monitoring.router(service, webhook_backlog),
        not_found.router(),  # matches whatever is left under /v1
    ]
    for router in routers:
        app.include_router(router)
