"""Makes Gradio's HTML page ours: its title, icon and preview card, and our script before Gradio's.

What `mount_gradio_app(head=...)` adds comes when Gradio's script has long chosen a language and
laid the page out; what is in the page itself comes first.
"""

import re
from pathlib import Path

import jinja2
from gradio import routes

from chatbot.pages.html import TEMPLATES

ICON = Path(__file__).with_name("favicon.svg")
_PAGE = "frontend/index.html"
"""The template that Gradio renders every page from."""
_FOREIGN_TAG = re.compile(
    r'<(?:meta\s+(?:property="og:|name="(?:twitter:|viewport"))|link rel="manifest")[^>]*>'
)
"""Gradio's preview card, a viewport that ours replaces, and a manifest that is not served."""


def install_page_template() -> None:
    """Let Gradio render its pages with our head; to do it again changes nothing."""
    environment = routes.templates.env
    gradio_loader = jinja2.FileSystemLoader(routes.STATIC_TEMPLATE_LIB)
    page = _FOREIGN_TAG.sub("", gradio_loader.get_source(environment, _PAGE)[0])
    head = (TEMPLATES / "head.html").read_text(encoding="utf-8")
    script = Path(__file__).with_name("pages.js").read_text(encoding="utf-8")
    own_loader = jinja2.DictLoader(
        {
            _PAGE: page.replace("</head>", head + "</head>"),
            "pages.js": "{% raw %}" + script + "{% endraw %}",
        }
    )
    environment.loader = jinja2.ChoiceLoader([own_loader, gradio_loader])
