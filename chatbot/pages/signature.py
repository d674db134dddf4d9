"""Lays out the row in which somebody gives a reason or a note and signs it with a name."""

import gradio as gr


def add_signature(
    elem_id: str, label: str, placeholder: str
) -> tuple[gr.Row, gr.Textbox, gr.Textbox]:
    """Add the row; return it, its text box for the words, and its text box for the name.

    Whose key has a name need not sign: a page then hides the box for the name.
    """
    with gr.Row(elem_id=elem_id) as row:
        words = gr.Textbox(
            label=label, show_label=False, container=False, placeholder=placeholder, scale=3
        )
        name = gr.Textbox(
            label="Your name",
            show_label=False,
            container=False,
            placeholder="Your name",
            max_length=80,
            scale=1,
            min_width=120,
        )
    return row, words, name
