"""Tests whose conversations a caller reaches over HTTP, with a user's key and without any."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from chatbot.api import errors
from chatbot.api.routes import add_routes
from chatbot.auth import api_keys
from chatbot.auth.access import Access
from chatbot.service import Service
from tests.fixtures.access_server import CALLERS, AccessServer
from tests.fixtures.api_client import MESSAGES
from tests.fixtures.http_server import serve_app


@pytest.fixture(scope="module")
def other(access_server: AccessServer) -> dict[str, str]:
    """Return the header with the key of another user."""
    made = api_keys.create(access_server.service.store, "the user's friend", "user")
    return {"Authorization": f"Bearer {made.secret}"}


class TestPersons:
    """Tests that a user's key speaks for its own people and reaches no other conversation."""

    def talk(
        self, access_server: AccessServer, key: dict[str, str], **fields: Any
    ) -> httpx.Response:
        body = {"messages": MESSAGES, **fields}
        return access_server.http.post("/v1/chat/completions", json=body, headers=key)

    def test_the_person_is_the_keys_name_and_the_user_within_it(
        self, access_server: AccessServer, other: dict[str, str]
    ) -> None:
        store = access_server.service.store
        for key, user, person in (
            (access_server.bearer("user"), None, "the user"),
            (access_server.bearer("user"), "bob", "the user/bob"),
            (other, "the user", "the user's friend/the user"),
            (access_server.bearer("reviewer"), None, "the reviewer"),
            (access_server.bearer("reviewer"), "bob", "bob"),
        ):
            conversation_id = self.talk(access_server, key, user=user).json()["metadata"][
                "conversation_id"
            ]
            assert store.conversation(conversation_id).person == person

    def test_a_users_key_goes_on_with_its_own_talk_alone(
        self, access_server: AccessServer, other: dict[str, str]
    ) -> None:
        own_key = access_server.bearer("user")
        talk = {
            "conversation_id": self.talk(access_server, own_key).json()["metadata"][
                "conversation_id"
            ]
        }
        assert self.talk(access_server, own_key, metadata=talk).status_code == 200
        for user in (None, "the user"):
            assert self.talk(access_server, other, metadata=talk, user=user).status_code == 403

    def test_feedback_on_anothers_answer_is_forbidden(
        self, access_server: AccessServer, other: dict[str, str]
    ) -> None:
        id = self.talk(access_server, access_server.bearer("user"), user="bob").json()["id"]
        thumb = {"message_id": id, "kind": "thumb", "up": False}

        def rate(key: dict[str, str], **fields: str) -> int:
            answer = access_server.http.post("/v1/feedback", json={**thumb, **fields}, headers=key)
            return answer.status_code

        assert rate(other) == rate(other, user="the user/bob") == 403
        assert access_server.service.store.feedback_on(id) == []
        assert (
            rate(access_server.bearer("user"))
            == rate(access_server.bearer("user"), user="carl")
            == 200
        )
        assert rate(access_server.bearer("reviewer"), user="dora") == 200
        people = [one.person for one in access_server.service.store.feedback_on(id)]
        assert people == ["the user/bob", "the user/carl", "dora"]

    def test_on_the_page_a_login_finds_its_own_talk_on_any_device(
        self, access_server: AccessServer
    ) -> None:
        talk = access_server.service.store.start_conversation("the user", "Only mine to see")
        load = next(one for one in access_server.handlers() if one[1] == "ChatPage._load")
        shown = {caller: access_server.run(caller, load[0], load[2]) for caller in CALLERS}
        assert [caller for caller, output in shown.items() if talk in output] == ["user"]


class TestWithoutAKey:
    """Tests what callers without a key may do, where it depends on the settings."""

    def ask(self, access: Access, service: Service, path: str, **request: Any) -> httpx.Response:
        """Send one request to the API alone, under these access rules."""
        usual, service.access = service.access, access
        app = FastAPI()
        errors.add_error_handlers(app)
        add_routes(app, service, webhook_backlog=lambda: 0)
        service.access = usual
        with serve_app(app) as url:
            return httpx.request(request.pop("method", "GET"), f"{url}{path}", **request)

    def test_a_public_chat_is_open_and_keeps_people_apart(
        self, access_server: AccessServer
    ) -> None:
        service, store = access_server.service, access_server.service.store
        public = Access(store, service.home.root)
        body = {"messages": MESSAGES, "user": "the user"}
        chat = {"method": "POST", "json": body}
        completion = self.ask(public, service, "/v1/chat/completions", **chat).json()
        talk = store.conversation(completion["metadata"]["conversation_id"])
        assert talk.person == "anonymous/the user"
        thumb = {"message_id": access_server.names["ANSWER"], "kind": "thumb", "up": True}
        rated = self.ask(public, service, "/v1/feedback", method="POST", json=thumb)
        assert rated.status_code == 403
        assert self.ask(public, service, "/v1/reviews/next").status_code == 401

    def test_a_key_that_is_no_key_of_ours_counts_as_none(self, access_server: AccessServer) -> None:
        public = Access(access_server.service.store, access_server.service.home.root)
        for key, status in (("any", 200), ("sk-other", 200), ("tb-guess", 401)):
            bearer = {"Authorization": f"Bearer {key}"}
            chat = {"method": "POST", "json": {"messages": MESSAGES}, "headers": bearer}
            answer = self.ask(public, access_server.service, "/v1/chat/completions", **chat)
            assert answer.status_code == status
