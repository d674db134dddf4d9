"""How the pages look: one calm theme, light and dark, and the frame around every page.

Everything is served by this process: no font, script or picture comes from elsewhere.
"""

from html import escape
from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("pages.css")

HEAD = """
<meta name="viewport" content="width=device-width, initial-scale=1">
<script>
  (() => {
    // Gradio paints by the system's preference; who has chosen keeps what they chose.
    const chosen = () => localStorage.getItem("talkback_theme");
    const isDark = () => document.body.classList.contains("dark");
    const paint = () => {
      if (chosen() && isDark() !== (chosen() === "dark")) document.body.classList.toggle("dark");
    };
    const begin = () => {
      paint();
      const watch = { attributes: true, attributeFilter: ["class"] };
      new MutationObserver(paint).observe(document.body, watch);
    };
    document.body ? begin() : addEventListener("DOMContentLoaded", begin);
    addEventListener("click", (event) => {
      if (!event.target.closest("#tb-theme")) return;
      localStorage.setItem("talkback_theme", isDark() ? "light" : "dark");
      paint();
    });
  })();
</script>
"""

PAGES = (("Chat", "./"), ("Review", "review"), ("Adapters", "adapters"))


def build_theme() -> gr.themes.Base:
    """Teal on warm grey; the fonts are among those that Gradio brings along."""
    body = [gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"]
    mono = [gr.themes.Font("ui-monospace"), "monospace"]
    look = gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", radius_size="lg", font=body, font_mono=mono
    )
    return look.set(
        body_background_fill="#faf9f7",
        body_background_fill_dark="#141716",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1b1f1e",
        background_fill_secondary="#f4f2ee",
        background_fill_secondary_dark="#212625",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1b1f1e",
        block_border_width="1px",
        border_color_primary="#e7e3dc",
        border_color_primary_dark="#2f3635",
        body_text_color="#262422",
        body_text_color_dark="#e8e6e1",
        body_text_color_subdued="#6f6a63",
        body_text_color_subdued_dark="#a09c94",
        block_shadow="none",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1b1f1e",
        input_border_color="#dcd7ce",
        input_border_color_dark="#39413f",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#0d665f",
        button_primary_background_fill_dark="#14877d",
        button_primary_background_fill_hover_dark="#17988d",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f4f2ee",
        button_secondary_background_fill_dark="#232928",
        button_secondary_background_fill_hover_dark="#2c3332",
        button_large_radius="12px",
        button_small_radius="10px",
    )


def header(title: str, here: str) -> str:
    """The bar on top of every page: the bot's name, the pages, light or dark."""
    links = "".join(_link(name, path, name == here) for name, path in PAGES)
    plain = "" if here == "Chat" else " tb-plain"  # no sidebar, so no button to leave room for
    return (
        f'<header class="tb-header{plain}"><span class="tb-brand">{escape(title)}</span>'
        f'<nav aria-label="Pages">{links}</nav>'
        '<button id="tb-theme" type="button" title="Light or dark" aria-label="Light or dark">'
        "</button></header>"
    )


def _link(name: str, path: str, here: bool) -> str:
    current = ' aria-current="page"' if here else ""
    return f'<a href="{path}"{current}>{name}</a>'


def banner(text: str, kind: str = "info") -> str:
    """One line that tells people what is going on; empty text shows nothing."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="tb-notice tb-{kind}" role="{role}">{escape(text)}</div>'


def empty_state(title: str, text: str) -> str:
    """What a list shows when there is nothing in it."""
    return f'<div class="tb-empty"><strong>{escape(title)}</strong><p>{escape(text)}</p></div>'


def welcome(title: str) -> str:
    """What an empty conversation shows above its example questions."""
    return (
        f'<div class="tb-hello"><h2>{escape(title)}</h2><p>Ask anything. When an answer is wrong, '
        "say so or correct it: people's corrections are how it learns.</p></div>"
    )


def login_prompt(what: str, role: str) -> str:
    """What the door of a page says: whose key it asks for, to do ``what``."""
    return (
        f"<h4>Enter your key</h4><p>It takes a key of role {role} to {escape(what)}. "
        f"An operator makes one with <code>talkback keys add NAME --role {role}</code></p>"
    )
