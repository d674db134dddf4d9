"""Lays out the chat page: a person's conversations at the side, the open one in the middle."""

from typing import TYPE_CHECKING

import gradio as gr

from chatbot.model.base_name import STARTER_NAME
from chatbot.pages import fragments
from chatbot.pages.chat.view import REASONS_DOWN, REASONS_UP
from chatbot.pages.html import render
from chatbot.pages.login_form import LoginForm

if TYPE_CHECKING:
    from chatbot.service import Service

LATEX_DELIMITERS = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
"""What encloses mathematics in an answer. A single $ does not: it is money more often."""
STARTER_INVITATION = "Ask about the shop: its hours, delivery, returns or products."
STARTER_QUESTIONS = (
    "What are your opening hours?",
    "How long does delivery take?",
    "What is your return policy?",
    "Do you sell gift cards?",
)


class ChatLayout:
    """Holds the components of the chat page, made inside the Blocks that is open."""

    def __init__(self, service: "Service", storage_secret: str, login_form: LoginForm) -> None:
        title = service.chat_settings.title
        login_form.build_header()
        self._add_state(storage_secret)
        self._add_sidebar()
        with gr.Column(elem_id="tb-main", scale=1):
            self.status = gr.HTML("", elem_id="tb-status", padding=False)
            login_form.build()
            welcome = fragments.welcome(title, _invitation(service))
            self._add_chatbot(welcome, _example_questions(service))
            self._add_versions()
            self.banner = gr.HTML("", elem_id="tb-notice", padding=False, visible=False)
            self._add_pair_card()
            self._add_rated_card()
            self._add_composer()

    def _add_state(self, storage_secret: str) -> None:
        """Add what the browser stores, what only this tab holds, and what views arrive in.

        All are the browser's: a server that starts anew finds the pages as they are.
        """
        self.token = gr.BrowserState(None, storage_key="talkback_person", secret=storage_secret)
        self.position = gr.BrowserState(None, storage_key="talkback_place", secret=storage_secret)
        # Not even hidden in the page: of a burst, a Textbox that is shows the last value alone,
        # while one that is not has each reported as it arrives.
        self.view, self.text = (
            gr.Textbox(visible=False, label=label) for label in ("View", "Text")
        )
        self.shown, self.pair, self.rated = (
            gr.Textbox(visible="hidden", label=label)
            for label in ("Shown messages", "Pair", "Rated answer")
        )

    def _add_sidebar(self) -> None:
        with gr.Sidebar(open=False, width=280, elem_id="tb-sidebar") as self.sidebar:
            self.new = gr.Button("New conversation", elem_id="tb-new", size="md")
            gr.HTML(render("sidebar_title.html", title="Your conversations"), padding=False)
            self.titles = gr.Radio(
                [],
                show_label=False,
                label="Your conversations",
                elem_id="tb-conversations",
                interactive=True,
            )

    def _add_chatbot(self, welcome: str, examples: list[str]) -> None:
        self.chat = gr.Chatbot(
            [],
            label="Conversation",
            elem_id="tb-chat",
            editable="all",
            buttons=["copy"],
            group_consecutive_messages=False,
            allow_tags=False,
            latex_delimiters=LATEX_DELIMITERS,
            autoscroll=False,  # Gradio's pulls down whoever scrolls up; `chat.js` follows instead
            height="auto",
            scale=1,
            placeholder=welcome,
            examples=[{"text": question} for question in examples] or None,
            feedback_options=("Like", "Dislike"),
        )

    def _add_versions(self) -> None:
        """Add what steps through a conversation's versions: other answers, edits, undone turns."""
        with gr.Row(visible=False, elem_id="tb-versions") as self.versions:
            self.earlier = gr.Button("← Earlier", size="sm")
            self.version = gr.HTML("", padding=False)
            self.later = gr.Button("Later →", size="sm")

    def _add_pair_card(self) -> None:
        """Add the card that asks which of two answers is better."""
        with gr.Column(visible=False, elem_id="tb-pair", elem_classes="tb-card") as self.pair_card:
            gr.HTML(fragments.heading("Which answer is better?", 2), padding=False)
            with gr.Row(equal_height=True):
                with gr.Column(min_width=220):
                    self.first = _answer_text()
                    self.prefer_first = gr.Button("The first", size="sm")
                with gr.Column(min_width=220):
                    self.second = _answer_text()
                    self.prefer_second = gr.Button("The second", size="sm")
            with gr.Row(elem_classes="tb-actions"):
                self.tie = gr.Button("About the same", size="sm")
                self.skip_choice = gr.Button("Skip", size="sm", elem_classes="tb-link")

    def _add_rated_card(self) -> None:
        """Add the card that asks for reasons after a thumb."""
        with gr.Column(
            visible=False, elem_id="tb-rated", elem_classes="tb-card"
        ) as self.rated_card:
            self.rated_title = gr.HTML("", padding=False)
            self.reasons = gr.CheckboxGroup(
                [*REASONS_UP, *REASONS_DOWN],  # of which the page offers some
                show_label=False,
                label="Reasons",
                container=False,
                elem_classes="tb-chips",
            )
            self.comment = gr.Textbox(
                show_label=False,
                label="Comment",
                placeholder="Anything to add?",
                container=False,
                max_length=2000,
            )
            with gr.Row(elem_classes="tb-actions"):
                self.send_reasons = gr.Button("Send", variant="primary", size="sm")
                self.skip_reasons = gr.Button("Skip", size="sm", elem_classes="tb-link")

    def _add_composer(self) -> None:
        self.composer = gr.Textbox(
            show_label=False,
            label="Your message",
            placeholder="Write a message…",
            container=False,
            lines=1,
            max_lines=8,
            autofocus=True,
            submit_btn=True,
            elem_id="tb-composer",
        )
        gr.HTML(
            "Answers can be wrong. Rate them, or edit one with the pencil: "
            "that is how the bot learns.",
            elem_id="tb-hint",
            padding=False,
        )


def _invitation(service: "Service") -> str:
    """Return what the operator invites to ask, else what the model that speaks can answer."""
    starter = service.base.name == STARTER_NAME
    return service.chat_settings.welcome or (STARTER_INVITATION if starter else "Ask anything.")


def _example_questions(service: "Service") -> list[str]:
    """Return the operator's example questions, else the starter model's where that one speaks."""
    starter = service.base.name == STARTER_NAME
    return service.chat_settings.examples or (list(STARTER_QUESTIONS) if starter else [])


def _answer_text() -> gr.Markdown:
    return gr.Markdown(elem_classes="tb-answer", container=False, latex_delimiters=LATEX_DELIMITERS)
