"""Asks for a key where a page needs one, and logs people out again.

Gradio's `api_visibility` hides a handler, it closes none: each can be called by anybody who reaches
the server, so no handler of a page reads or writes anything before `LoginForm.require` has passed.
"""

import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatbot.auth import hub_login
from chatbot.auth.access import Caller, PermissionDeniedError
from chatbot.auth.api_keys import Role
from chatbot.pages import fragments
from chatbot.pages.listeners import Changes

if TYPE_CHECKING:
    from chatbot.service import Service

WRONG_KEY = fragments.banner("This key does not open this page.", "error")
# A cookie can be set by an answer to the browser alone, and Gradio's handlers give none.
LOG_IN_JS = f"""async (key) => {{
  const headers = {{"content-type": "application/json"}};
  const body = JSON.stringify({{key}});
  const answer = await fetch("session", {{method: "POST", headers, body}});
  if (answer.ok) location.reload();
  return answer.ok ? "" : {json.dumps(WRONG_KEY)};
}}"""
LOG_OUT_JS = """async () => {
  await fetch("session", {method: "DELETE"});
  %s
  location.reload();
}"""
HUB_LOG_OUT_JS = """await fetch("logout");"""  # Gradio's own route, there with its login alone


class LoginForm:
    """Guards a page that takes a key of `role`; `purpose` says what the key is for.

    The bar on top belongs to it: it links to the pages that the key opens.
    """

    def __init__(self, service: "Service", page: str, role: Role, purpose: str) -> None:
        self._access = service.access
        self._title = service.chat_settings.title
        self._page = page
        self._role = role
        self._purpose = purpose

    def build_header(self) -> None:
        """Lay out the bar on top of the page."""
        self.header = gr.HTML(fragments.header(self._title, self._page), padding=False)

    def build(self) -> None:
        """Lay out the form and the log-out button; `show` and `hide` decide which is visible."""
        self.log_out = gr.Button(
            "Log out", visible=False, size="sm", elem_id="tb-leave", elem_classes="tb-link"
        )
        with gr.Column(visible=False, elem_id="tb-door", elem_classes="tb-card") as self.card:
            gr.HTML(fragments.login_prompt(self._purpose, self._role), padding=False)
            key = gr.Textbox(label="Key", type="password", container=False, placeholder="Key")
            submit = gr.Button("Open", variant="primary")
            self.error = gr.HTML("", padding=False)
            if hub_login.is_enabled():
                gr.LoginButton()
        for event in (submit.click, key.submit):
            event(None, [key], [self.error], js=LOG_IN_JS, show_progress="hidden")
        log_out_js = LOG_OUT_JS % (HUB_LOG_OUT_JS if hub_login.is_enabled() else "")
        self.log_out.click(None, None, None, js=log_out_js, show_progress="hidden")

    @property
    def components(self) -> list[Any]:
        """List the components that `show` and `hide` change."""
        return [self.header, self.card, self.error, self.log_out]

    def caller(self, request: gr.Request) -> Caller:
        """Return who uses the page; `BadKeyError` for a key that is none."""
        return self._access.identify(request.request)

    def require(self, request: gr.Request, role: Role | None = None) -> Caller:
        """Return who uses the page if their role reaches `role` (by default the page's);
        `PermissionDeniedError` or `BadKeyError` if not."""
        return self._access.require(request.request, role or self._role)

    def admits(self, caller: Caller) -> bool:
        """Tell whether `caller` may use the page."""
        return caller.has_role(self._role)

    def show(self, caller: Caller) -> Changes:
        """Ask for a key; whoever has shown one of too low a role reads why it is refused."""
        refusal = str(PermissionDeniedError(self._role, caller)) if caller.id else ""
        return {
            self.header: fragments.header(self._title, self._page, caller),
            self.card: gr.update(visible=True),
            self.error: fragments.banner(refusal, "error"),
            self.log_out: gr.update(visible=bool(caller.id)),
        }

    def hide(self, caller: Caller) -> Changes:
        """Put the form away; who came in by a login gets the log-out button."""
        return {
            self.header: fragments.header(self._title, self._page, caller),
            self.card: gr.update(visible=False),
            self.error: "",
            self.log_out: gr.update(visible=bool(caller.id), value=_log_out_label(caller)),
        }


def _log_out_label(caller: Caller) -> str:
    return f"Log out ({caller.name})" if caller.name else "Log out"
