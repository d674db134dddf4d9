"""Renders the pages' HTML from `templates/`, the only place where tags are written.

Autoescaping is on for every template, so text of people and models is escaped wherever it lands.
What is rendered comes back as `Markup`, which other templates include as it stands.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")

_environment = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,  # a misspelt value raises instead of leaving a hole in the page
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)


def render(template: str, **values: object) -> Markup:
    """Render a file of `templates/` with `values`; raise `UndefinedError` when one is missing."""
    return Markup(_environment.get_template(template).render(values))
