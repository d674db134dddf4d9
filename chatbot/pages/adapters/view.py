"""Adapters, promotions and reports as HTML: who speaks, who spoke, what the gate said."""

from html import escape

from chatbot.pages import theme
from chatbot.pages.text import base_name, escape_markdown, relative_time
from chatbot.registry import AdapterRow, Promotion, Registry, ReportRow
from feedback.settings import Home

_BY = {"gate": "by the gate", "person": "by a person", "start": "at the first start"}
_VERDICT = {
    "promote": ("good", "better"),
    "refuse": ("bad", "refused"),
    "not_enough_evidence": ("warn", "not enough evidence"),
}


def speaking_card(registry: Registry, adapter: str, warning: str) -> str:
    """The card on top: who answers now, since when and why."""
    newest = next((p for p in registry.history() if p.adapter == adapter), None)
    why = "No adapter is in service: this is the base model."
    if newest:
        why = f"Took over {relative_time(newest.created_at)}. {_why(newest)}"
    return (
        f'<div class="tb-card tb-now"><span class="tb-dot"></span><div><strong>'
        f"<code>{escape(adapter)}</code> is speaking</strong><p>{why}</p></div></div>"
        + (theme.banner(warning, "warn") if warning else "")
    )


def promotion_history(registry: Registry, speaking_now: str) -> str:
    """All promotions, newest first."""
    rows = "".join(_promotion(p, p.adapter == speaking_now) for p in registry.history())
    return f'<h3>History</h3><ol class="tb-history">{rows}</ol>'


def adapter_choices(registry: Registry, speaking_now: str) -> list[tuple[str, str]]:
    """The adapters as lines of a list: name, age and last verdict."""
    return [(_line(registry, a, speaking_now), a.id) for a in registry.adapters()]


def adapter_card(registry: Registry, adapter_id: str) -> str:
    """One adapter: where it comes from, and every verdict on it with its reasons."""
    adapter = registry.adapter(adapter_id)
    facts = {
        "Made": relative_time(adapter.created_at),
        "Base": base_name(adapter.base),
        "Snapshot": adapter.snapshot or "none: equal to the base",
        "Parent": adapter.parent or "none",
    }
    pairs = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    reports = "".join(_report(report) for report in registry.reports(adapter_id))
    nothing = '<p class="tb-quiet">Nobody has judged it yet.</p>'
    return (
        f"<h3><code>{escape(adapter.id)}</code></h3>"
        f'<dl class="tb-facts">{pairs}</dl>{reports or nothing}'
    )


def full_report(home: Home, registry: Registry, adapter_id: str) -> str:
    """The newest report on an adapter as Markdown, empty when there is none to read."""
    reports = registry.reports(adapter_id)
    if not reports:
        return ""
    file = home.reports / reports[0].id / "report.md"
    return escape_markdown(file.read_text(encoding="utf-8")) if file.is_file() else ""


def _promotion(promotion: Promotion, speaks: bool) -> str:
    here = ' aria-current="true"' if speaks else ""
    return (
        f"<li{here}><code>{escape(promotion.adapter)}</code>"
        f'<span class="tb-when">{escape(relative_time(promotion.created_at))}</span>'
        f"<p>{_why(promotion)}</p></li>"
    )


def _why(promotion: Promotion) -> str:
    """By whom, and their reason; a first start is its own reason."""
    who = f" ({escape(promotion.who)})" if promotion.by == "person" else ""
    reason = f": {escape(promotion.reason)}" if promotion.by != "start" else ""
    return f"Promoted {_BY[promotion.by]}{who}{reason}"


def _line(registry: Registry, adapter: AdapterRow, speaking_now: str) -> str:
    reports = registry.reports(adapter.id)
    verdict = _VERDICT.get(reports[0].verdict, ("", reports[0].verdict))[1] if reports else ""
    words = [
        relative_time(adapter.created_at),
        verdict,
        "speaks now" if adapter.id == speaking_now else "",
    ]
    return f"{adapter.id}\n{', '.join(word for word in words if word)}"


def _report(report: ReportRow) -> str:
    kind, word = _VERDICT.get(report.verdict, ("warn", report.verdict))
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    return (
        f'<div class="tb-report"><span class="tb-badge tb-{kind}">{escape(word)}</span>'
        f'<span class="tb-when">against <code>{escape(report.against)}</code>, '
        f"{escape(relative_time(report.created_at))}</span><ul>{reasons}</ul></div>"
    )
