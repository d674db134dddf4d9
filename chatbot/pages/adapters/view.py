"""Renders adapters, promotions and reports: which adapter speaks, which spoke before, and what the
gate decided."""

from markupsafe import Markup

from chatbot.model.base_name import short_name
from chatbot.pages.html import render
from chatbot.pages.text import escape_markdown, relative_time
from chatbot.registry import AdapterRow, Promotion, Registry, ReportRow
from feedback.cycle_lock import RunningCycle
from feedback.settings import Home

_PROMOTED_BY = {"gate": "by the gate", "person": "by a person", "start": "at a start"}
_VERDICTS = {
    "promote": ("good", "better"),
    "refuse": ("bad", "refused"),
    "not_enough_evidence": ("warn", "not enough evidence"),
}
"""A report's verdict -> (CSS kind, text) of its badge."""


def adapter_in_service(registry: Registry, adapter: str, warning: str) -> Markup:
    """Return the card on top: which adapter answers now, since when and why."""
    newest = next((p for p in registry.history() if p.adapter == adapter), None)
    reason = "No adapter is in service: this is the base model."
    if newest:
        since = relative_time(newest.created_at)
        reason = f"Took over {since}. {_promotion_reason(newest)}"
    return render("adapter_in_service.html", adapter=adapter, reason=reason, warning=warning)


def running_cycle(cycle: RunningCycle) -> Markup:
    """Return the card of the cycle that runs: its stage, and since when."""
    stage_began = relative_time(cycle.stage_started_at)
    began = relative_time(cycle.started_at)
    return render("running_cycle.html", stage=cycle.stage, stage_began=stage_began, began=began)


def promotion_history(registry: Registry, speaking: str) -> Markup:
    """Return all promotions, newest first; those of the speaking adapter are marked."""
    promotions = [
        {
            "adapter": promotion.adapter,
            "when": relative_time(promotion.created_at),
            "reason": _promotion_reason(promotion),
            "speaking": promotion.adapter == speaking,
        }
        for promotion in registry.history()
    ]
    return render("promotion_history.html", promotions=promotions)


def adapter_choices(registry: Registry, speaking: str) -> list[tuple[str, str]]:
    """Return (label, id) of each adapter; the label holds its name, age and last verdict."""
    return [(_label(registry, a, speaking), a.id) for a in registry.adapters()]


def adapter_card(registry: Registry, adapter_id: str) -> Markup:
    """Return one adapter: what it was made from, and every report on it with its reasons."""
    adapter, same_base = registry.adapter(adapter_id), registry.same_base(adapter_id)
    facts = {
        "Made": relative_time(adapter.created_at),
        "Base": short_name(adapter.base) + ("" if same_base else ", not the one in service"),
        "Snapshot": adapter.snapshot or "none: equal to the base",
        "Parent": adapter.parent or "none",
    }
    reports = [_report_values(report) for report in registry.reports(adapter_id)]
    return render("adapter_card.html", adapter=adapter.id, facts=facts, reports=reports)


def full_report(home: Home, registry: Registry, adapter_id: str) -> str:
    """Return the newest report on an adapter as Markdown, empty when there is none to read."""
    reports = registry.reports(adapter_id)
    if not reports:
        return ""
    file = home.reports / reports[0].id / "report.md"
    return escape_markdown(file.read_text(encoding="utf-8")) if file.is_file() else ""


def _promotion_reason(promotion: Promotion) -> str:
    """Return who promoted and for what reason; a first start is its own reason."""
    if promotion.by == "start" and promotion.reason.startswith("first start"):
        return "Promoted at the first start"
    who = f" ({promotion.who})" if promotion.by == "person" else ""
    return f"Promoted {_PROMOTED_BY[promotion.by]}{who}: {promotion.reason}"


def _label(registry: Registry, adapter: AdapterRow, speaking: str) -> str:
    reports = registry.reports(adapter.id)
    verdict = _badge(reports[0])[1] if reports else ""
    facts = [
        relative_time(adapter.created_at),
        verdict,
        "speaks now" if adapter.id == speaking else "",
        "" if registry.same_base(adapter.id) else "of another base",
    ]
    return f"{adapter.id}\n{', '.join(fact for fact in facts if fact)}"


def _report_values(report: ReportRow) -> dict[str, object]:
    kind, verdict = _badge(report)
    return {
        "kind": kind,
        "verdict": verdict,
        "against": report.against,
        "when": relative_time(report.created_at),
        "reasons": report.reasons,
    }


def _badge(report: ReportRow) -> tuple[str, str]:
    return _VERDICTS.get(report.verdict, ("warn", report.verdict))
