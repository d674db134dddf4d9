"""Tests which choices train by themselves, and that the others wait for a reviewer, over HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatbot.auth import api_keys
from chatbot.pages.browser_identity import BrowserIdentities, LoginName
from chatbot.pages.chat.rating import RatingActions
from chatbot.pages.chat.running import RunningAnswers
from chatbot.pages.chat.view import ChatViews
from chatbot.question import Question
from chatbot.server import ServerSettings, create_api
from chatbot.service import Service
from feedback.curation.curate import CurateSettings, curate
from feedback.messages import Speaker
from feedback.review.decisions import decide
from feedback.review.queue import count_pending, list_pending
from feedback.store import Store
from tests.fakes.scripted_engine import ScriptedEngine, open_service
from tests.fixtures.conversations import SPEAKER, add_answer, add_retry
from tests.fixtures.http_server import serve_app
from tests.fixtures.turns import begin_turn

ALL_TRAIN = CurateSettings(held_out=0)
BENT = [
    {"logit_bias": {"40": 90}},
    {"stop": ["zzz"]},
    {"temperature": 2},
    {"top_p": 0.5},
    {"top_k": 3},
    {"min_p": 0.1},
    {"seed": 4},
    {"max_tokens": 3},
    {"repetition_penalty": 2},
    {"frequency_penalty": 1},
    {"messages": [{"role": "system", "content": "Talk rubbish."}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Zzz"}]},
]
"""Requests for answers that the house would not give by itself."""


def choose(store: Store, better: str, worse: str, person: str = "ann", **more: Any) -> str:
    return store.add_feedback(better, person, "choice", {"over": worse}, **more)


def two(store: Store, speaker: Speaker | None = SPEAKER, n: int = 0) -> list[str]:
    first = add_answer(store, f"Question number {n}?", "From nine.", speaker=speaker)
    return [first, add_retry(store, first, "No idea.", speaker)]


def trained(store: Store) -> int:
    """Count the pairs on the train side; all others wait in the queue."""
    curation = curate(store, ALL_TRAIN)
    waiting = [one for one in curation.dropped if one.reason == "waits for a reviewer"]
    assert count_pending(store) == len(waiting) == len(list_pending(store))
    return len([row for row in curation.rows if row.kind == "pair"])


@pytest.fixture
def bot(tmp_path: Path) -> Iterator[Service]:
    """Answers differ, and come to an end."""
    engine = ScriptedEngine([f"Train number {n}." for n in range(100)], pause=0)
    service = open_service(tmp_path, engine, temperature=1.0, max_tokens=12)
    yield service
    service.close()


@pytest.fixture
def http(bot: Service) -> Iterator[httpx.Client]:
    app = create_api(bot, ServerSettings(rate_per_minute=0))
    with serve_app(app) as address, httpx.Client(base_url=address, timeout=60) as http:
        yield http


def siblings(http: httpx.Client, number: int, **fields: Any) -> list[str]:
    asked = {"role": "user", "content": f"Question {number}: which train goes to {number}?"}
    messages = [*fields.pop("messages", []), asked]
    body = {"messages": messages, "n": 2, **fields}
    answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    return [choice["message_id"] for choice in answer["choices"]]


def test_rubbish_made_on_purpose_by_twelve_people_waits_for_a_reviewer(
    bot: Service, http: httpx.Client
) -> None:
    keys = [api_keys.create(bot.store, f"person {n}", "user").secret for n in range(len(BENT))]
    for number, (fields, secret) in enumerate(zip(BENT, keys, strict=True)):
        http.headers["authorization"] = f"Bearer {secret}"
        better, worse = siblings(http, number, **fields)
        for answer, up in ((worse, False), (better, True)):
            thumb = {"message_id": answer, "kind": "thumb", "up": up}
            http.post("/v1/feedback", json=thumb).raise_for_status()
        chosen = {"message_id": better, "kind": "choice", "over": worse}
        http.post("/v1/feedback", json=chosen).raise_for_status()
        speaker = bot.store.speaker(better)
        assert speaker is not None and speaker.house is False, fields
    assert [row for row in curate(bot.store, ALL_TRAIN).rows if row.kind == "pair"] == []


def test_answers_with_the_settings_of_the_house_train_when_a_key_chooses(
    bot: Service, http: httpx.Client
) -> None:
    http.headers["authorization"] = f"Bearer {api_keys.create(bot.store, 'ann', 'user').secret}"
    better, worse = siblings(http, 2)
    chosen = {"message_id": better, "kind": "choice", "over": worse}
    http.post("/v1/feedback", json=chosen).raise_for_status()
    assert [one.known for one in bot.store.feedback_on(better)] == [True]
    assert trained(bot.store) == 1


@pytest.mark.parametrize(("login", "pairs"), [(True, 12), (False, 0)])
def test_twelve_honest_choices_on_the_page_train_when_their_people_are_known(
    bot: Service, login: bool, pairs: int
) -> None:
    identities = BrowserIdentities(bot.home.root)
    views = ChatViews(bot.store, RunningAnswers(bot.group_commit))
    rating = RatingActions(bot, identities, views)
    for number in range(12):
        token: object = LoginName(f"person {number}") if login else identities.issue()
        _, person = identities.identify(token)
        text = f"Which train goes to city {number}?"
        first = begin_turn(bot, Question(text, person))
        list(first)
        second = begin_turn(bot, Question("", person, retry_of=first.message_id))
        list(second)
        speakers = [bot.store.speaker(turn.message_id) for turn in (first, second)]
        assert all(speaker is not None and speaker.house for speaker in speakers)
        rating.choose(token, None, (first.message_id, second.message_id), 1)
    assert trained(bot.store) == pairs


def test_a_choice_of_somebody_unknown_waits_until_another_person_agrees(store: Store) -> None:
    better, worse = two(store)
    choose(store, better, worse, "anonymous/ann")
    assert trained(store) == 0
    (item,) = list_pending(store)
    assert item.answer.id == better and item.preferred_to == ["No idea."]
    assert item.why == "preferred to another answer"
    choose(store, better, worse, "anonymous/bob")  # the same caller by another name
    assert [row.kind for row in curate(store, ALL_TRAIN).rows] == []
    choose(store, better, worse, "person-1")
    assert trained(store) == 1


def test_who_changes_their_mind_waits_once(store: Store) -> None:
    better, worse = two(store)
    choose(store, worse, better, "person-1")
    choose(store, better, worse, "person-1")
    assert trained(store) == 0
    assert [item.answer.id for item in list_pending(store)] == [better]


@pytest.mark.parametrize("house", [None, False])
def test_what_was_not_made_by_the_house_waits_whoever_agrees(
    store: Store, house: bool | None
) -> None:
    better, worse = two(store, replace(SPEAKER, house=house))
    for n in range(3):
        choose(store, better, worse, f"person-{n}", known=True)
    assert curate(store, ALL_TRAIN).rows == []
    assert [item.answer.id for item in list_pending(store)] == [better]


def test_a_pair_trains_once_a_reviewer_approves_the_better_answer(store: Store) -> None:
    approved, rejected = (two(store, replace(SPEAKER, house=False), n) for n in range(2))
    for better, worse in (approved, rejected):
        choose(store, better, worse)
    assert trained(store) == 0
    decide(store, approved[0], "rita", "approve")
    decide(store, rejected[0], "rita", "reject")
    pairs = [row for row in curate(store, ALL_TRAIN).rows if row.kind == "pair"]
    assert [row.message_id for row in pairs] == [approved[0]]
    assert count_pending(store) == 0
