"""Lists adapters, promotes one and rolls back: ``/v1/adapters``.

    curl -H "Authorization: Bearer tb-..." localhost:8000/v1/adapters

Every promotion is stored with the name of the key that it came with.
"""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from chatbot.api.fields import Identifier, LimitedText
from chatbot.api.schemas import ERROR_RESPONSES
from chatbot.auth.access import Caller
from chatbot.registry import AdapterRow, Promotion
from feedback.cycle_lock import RunningCycle, read_running_cycle

if TYPE_CHECKING:
    from chatbot.service import Service


class AdapterEntry(BaseModel):
    """Describes an adapter, with the verdicts on it, newest first. One that has not the
    ``same_base`` as the adapter in service is of a former base, and speaks on that alone."""

    id: str
    parent: str | None
    base: str
    same_base: bool
    snapshot: str | None
    created_at: str
    speaking: bool
    verdicts: list[str]


class Adapters(BaseModel):
    """Lists all adapters, newest first. ``warning`` says why a promoted one is not in service,
    ``running_cycle`` since when a cycle runs and in which stage it is; None when none runs."""

    speaking: str
    promotion: str | None
    """The id of the newest promotion: send it back as ``seen`` with the next."""
    warning: str
    running_cycle: RunningCycle | None
    adapters: list[AdapterEntry]


class PromotionRequest(BaseModel):
    """Holds the body of a promotion or rollback. With ``seen`` it is answered with 409 when there
    was another promotion since. ``confirm`` promotes, under a name, what the gate did not find
    better."""

    reason: Annotated[LimitedText, Field(min_length=1, pattern=r"\S")]
    who: Identifier = ""
    """Who decides, where the key has no name."""
    seen: Identifier | None = None
    confirm: bool = False


def router(service: "Service") -> APIRouter:
    """Return the routes of /v1/adapters."""
    routes = APIRouter(prefix="/v1", tags=["oversight"], responses=ERROR_RESPONSES)
    reviewer = Depends(service.access.role_dependency("reviewer"))
    operator = Depends(service.access.role_dependency("operator"))

    @routes.get("/adapters", dependencies=[reviewer])
    def adapters() -> Adapters:
        """List all adapters, and which one answers."""
        rows = [adapter_entry(service, row) for row in service.registry.adapters()]
        newest = service.registry.promotion()
        return Adapters(
            speaking=service.speaking,
            promotion=newest.id if newest else None,
            warning=service.warning,
            running_cycle=read_running_cycle(service.home),
            adapters=rows,
        )

    @routes.post("/adapters/rollback")
    def rollback(body: PromotionRequest, caller: Annotated[Caller, operator]) -> Promotion:
        """Put the adapter that was in service before back; it answers within a second. Sent twice
        it goes one step back: from a rollback only ``seen`` goes a step further."""
        who = caller.decider(body.who, "operator")
        return service.registry.rollback(who, body.reason, seen=body.seen, once=True)

    @routes.post("/adapters/{id}/promote")
    def promote(id: str, body: PromotionRequest, caller: Annotated[Caller, operator]) -> Promotion:
        """Put an adapter in service; it answers within a second."""
        who = caller.decider(body.who, "operator")
        confirmed = body.confirm and bool(caller.name or body.who.strip())
        return service.registry.promote(
            id, "person", who, body.reason, seen=body.seen, confirmed=confirmed
        )

    return routes


def adapter_entry(service: "Service", row: AdapterRow) -> AdapterEntry:
    """Return an adapter as it is sent."""
    return AdapterEntry(
        id=row.id,
        parent=row.parent,
        base=row.base,
        same_base=service.registry.same_base(row.id),
        snapshot=row.snapshot,
        created_at=row.created_at,
        speaking=row.id == service.speaking,
        verdicts=[report.verdict for report in service.registry.reports(row.id)],
    )
