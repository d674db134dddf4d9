"""Defines the pages' look: one calm theme, light and dark.

Everything is served by this process: no font, script or picture comes from elsewhere.
"""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("pages.css")


def build_theme() -> gr.themes.Base:
    """Build the theme: teal on warm grey, in fonts that Gradio brings along."""
    body = [gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"]
    mono = [gr.themes.Font("ui-monospace"), "monospace"]
    base = gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", radius_size="lg", font=body, font_mono=mono
    )
    return base.set(
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
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#128076",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f4f2ee",
        button_secondary_background_fill_dark="#232928",
        button_secondary_background_fill_hover_dark="#2c3332",
        button_large_radius="12px",
        button_small_radius="10px",
    )
