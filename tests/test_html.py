"""All HTML of the pages comes from templates, and nothing that people write becomes part of it."""

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Environment, UndefinedError
from jinja2.meta import find_undeclared_variables

from chatbot.pages.html import TEMPLATES, render
from chatbot.pages.text import DiffSpan, mark_differences

PAGES = TEMPLATES.parent
HOSTILE = "<script>alert(1)</script> & \"'><img src=x onerror=alert(1)>"
TAG = re.compile(r"<[!/]?[a-z]", re.IGNORECASE)

HOSTILE_VALUES: dict[str, dict[str, Any]] = {
    "adapter_card.html": {
        "adapter": HOSTILE,
        "facts": {HOSTILE: HOSTILE},
        "reports": [
            {
                "kind": HOSTILE,
                "verdict": HOSTILE,
                "against": HOSTILE,
                "when": HOSTILE,
                "reasons": [HOSTILE],
            }
        ],
    },
    "adapter_in_service.html": {"adapter": HOSTILE, "reason": HOSTILE, "warning": HOSTILE},
    "banner.html": {"text": HOSTILE, "level": HOSTILE},
    "diff.html": {"spans": [DiffSpan(HOSTILE, True), DiffSpan(HOSTILE, False)], "tag": "ins"},
    "empty_state.html": {"title": HOSTILE, "text": HOSTILE},
    "header.html": {"title": HOSTILE, "current": HOSTILE, "pages": [(HOSTILE, HOSTILE)]},
    "heading.html": {"text": HOSTILE, "level": 3},
    "login_prompt.html": {"purpose": HOSTILE, "role": HOSTILE},
    "note.html": {"kind": HOSTILE, "text": HOSTILE},
    "promotion_history.html": {
        "promotions": [
            {"adapter": HOSTILE, "when": HOSTILE, "reason": HOSTILE, "speaking": speaking}
            for speaking in (True, False)
        ]
    },
    "queue_count.html": {"waiting": 50, "listed": 30},
    "review_context.html": {
        "tags": [HOSTILE],
        "comments": [HOSTILE],
        "messages": [SimpleNamespace(role=HOSTILE, content=HOSTILE)],
    },
    "review_proposals.html": {
        "title": HOSTILE,
        "proposals": [{"signed": HOSTILE, "text": HOSTILE}],
    },
    "review_side.html": {"title": HOSTILE, "text": HOSTILE, "note": HOSTILE},
    "running_cycle.html": {"stage": HOSTILE, "stage_began": HOSTILE, "began": HOSTILE},
    "sidebar_title.html": {"title": HOSTILE},
    "status_line.html": {"adapter": HOSTILE, "since": HOSTILE, "warning": HOSTILE},
    "typing.html": {},
    "welcome.html": {"title": HOSTILE, "invitation": HOSTILE},
}
"""Template -> values that attack it in every string; numbers and tag names are the code's own."""

RENDERED_BY_GRADIO = "head.html"
"""See tests/test_page_template.py."""

SOUGHT_TAGS = {("page_template.py", "</head>")}
"""Tags that a module looks for in Gradio's own page, and does not write."""

SHOWN_TIMES = {"header.html": 3, "login_prompt.html": 3}
"""How often a template shows its values, where not each of them once: the header marks the current
page, and the login prompt names the role twice."""


class Document(HTMLParser):
    """Collects the tags, attributes and text of a fragment."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(str(html))  # a Markup would escape what is added to it
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def count_hostile(values: object) -> int:
    """Count the strings of the values that attack."""
    if isinstance(values, dict):
        return sum(count_hostile(part) for pair in values.items() for part in pair)
    if isinstance(values, list | tuple):
        return sum(map(count_hostile, values))
    if isinstance(values, SimpleNamespace | DiffSpan):
        return count_hostile(vars(values))
    return int(values == HOSTILE)


def test_every_template_is_attacked_in_each_of_its_values() -> None:
    names = {path.name for path in TEMPLATES.iterdir()} - {RENDERED_BY_GRADIO}
    assert names == set(HOSTILE_VALUES)
    for name, values in HOSTILE_VALUES.items():
        source = (TEMPLATES / name).read_text(encoding="utf-8")
        wanted = find_undeclared_variables(Environment(autoescape=True).parse(source))
        assert wanted == set(values), name


@pytest.mark.parametrize("name", [name for name, values in HOSTILE_VALUES.items() if values])
def test_hostile_values_are_shown_as_text_and_make_no_tags(name: str) -> None:
    html = render(name, **HOSTILE_VALUES[name])
    document = Document(html)
    assert "<script" not in html and "<img" not in html
    assert not document.tags & {"script", "img"}
    assert {key for key, _ in document.attributes} <= {
        "class",
        "role",
        "id",
        "type",
        "title",
        "href",
        "aria-label",
        "aria-current",
        "aria-live",
        "tabindex",
    }
    shown = document.text + "".join(value or "" for _, value in document.attributes)
    expected = SHOWN_TIMES.get(name, count_hostile(HOSTILE_VALUES[name]))
    assert shown.count(HOSTILE) == expected


def test_differences_of_hostile_texts_are_escaped() -> None:
    for html in mark_differences(f"old {HOSTILE}", f"new {HOSTILE}"):
        assert Document(html).tags <= {"del", "ins"}
        assert HOSTILE in Document(html).text


def test_a_value_that_is_missing_is_an_error_and_no_hole_in_the_page() -> None:
    with pytest.raises(UndefinedError):
        render("welcome.html")


def test_templates_escape_everything_and_quote_their_attributes() -> None:
    for path in TEMPLATES.iterdir():
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape", source), path
        assert not re.search(r"=\s*\{[{%]", source), f"{path}: an attribute without quotes"


def strings(module: Path) -> Iterator[tuple[int, str]]:
    """List a module's string literals, those of f-strings and docstrings too, by line."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_module_of_the_pages_writes_tags() -> None:
    found = [
        f"{module.relative_to(PAGES)}:{line}: {text[:40]!r}"
        for module in sorted(PAGES.rglob("*.py"))
        for line, text in strings(module)
        if TAG.search(text) and (module.name, text) not in SOUGHT_TAGS
    ]
    assert found == [], "HTML belongs into chatbot/pages/templates"


def test_no_module_but_the_renderer_marks_text_as_html() -> None:
    for module in sorted(PAGES.rglob("*.py")):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        marks = [func for func in calls if isinstance(func, ast.Name) and func.id == "Markup"]
        assert len(marks) == (1 if module.name == "html.py" else 0), module
