"""The door of a page: it asks for a key, stands open for whoever has one, and lets them out again.

Gradio's `api_visibility` hides a handler, it closes none: each can be called by anybody who reaches
the server, so no handler of a page reads or writes anything before `Door.require` let it pass.
"""

import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatbot.auth import hub_login
from chatbot.auth.access import Caller, PermissionDeniedError
from chatbot.auth.api_keys import Role
from chatbot.pages import theme

if TYPE_CHECKING:
    from chatbot.service import Service

REFUSAL = theme.banner("This key does not open this page.", "error")
# A cookie can be set by an answer to the browser alone, and Gradio's handlers give none.
LOG_IN = f"""async (key) => {{
  const headers = {{"content-type": "application/json"}};
  const body = JSON.stringify({{key}});
  const answer = await fetch("session", {{method: "POST", headers, body}});
  if (answer.ok) location.reload();
  return answer.ok ? "" : {json.dumps(REFUSAL)};
}}"""
LOG_OUT = """async () => {
  await fetch("session", {method: "DELETE"});
  %s
  location.reload();
}"""
FROM_HUB = """await fetch("logout");"""  # Gradio's own route, there with its login alone


class LoginForm:
    """Stands before a page that takes `role`, to do `what`."""

    def __init__(self, service: "Service", role: Role, what: str) -> None:
        self._access = service.access
        self._role = role
        self._what = what

    def build(self) -> None:
        """Lay it out; it is painted by `shut` and `opened`."""
        self.leave = gr.Button(
            "Log out", visible=False, size="sm", elem_id="tb-leave", elem_classes="tb-link"
        )
        with gr.Column(visible=False, elem_id="tb-door", elem_classes="tb-card") as self.whole:
            gr.HTML(theme.login_prompt(self._what, self._role), padding=False)
            key = gr.Textbox(label="Key", type="password", container=False, placeholder="Key")
            enter = gr.Button("Open", variant="primary")
            self.refusal = gr.HTML("", padding=False)
            if hub_login.hub_login_enabled():
                gr.LoginButton()
        for knock in (enter.click, key.submit):
            knock(None, [key], [self.refusal], js=LOG_IN, show_progress="hidden")
        log_out = LOG_OUT % (FROM_HUB if hub_login.hub_login_enabled() else "")
        self.leave.click(None, None, None, js=log_out, show_progress="hidden")

    @property
    def parts(self) -> list[Any]:
        """What it paints."""
        return [self.whole, self.refusal, self.leave]

    def caller(self, request: gr.Request) -> Caller:
        """Who uses the page; BadKey."""
        return self._access.identify(request.request)

    def require(self, request: gr.Request, role: Role | None = None) -> Caller:
        """Who uses the page, if they may (or may do what takes `role`); Refused, BadKey."""
        return self._access.require(request.request, role or self._role)

    def lets(self, caller: Caller) -> bool:
        """Whether they may use the page."""
        return caller.has_role(self._role)

    def shut(self, caller: Caller) -> dict[Any, Any]:
        """Ask for a key; whoever has shown one that is not enough is told so."""
        why = str(PermissionDeniedError(self._role, caller)) if caller.id else ""
        return {
            self.whole: gr.update(visible=True),
            self.refusal: theme.banner(why, "error"),
            self.leave: gr.update(visible=bool(caller.id)),
        }

    def opened(self, caller: Caller) -> dict[Any, Any]:
        """Out of the way, with the way out for those who came in by a login."""
        return {
            self.whole: gr.update(visible=False),
            self.refusal: "",
            self.leave: gr.update(visible=bool(caller.id), value=_leave(caller)),
        }


def _leave(caller: Caller) -> str:
    return f"Log out ({caller.name})" if caller.name else "Log out"
