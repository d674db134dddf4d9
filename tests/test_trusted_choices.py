"""Tests which choices train by themselves, and that the others wait for a reviewer, over HTTP."""

import random
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
from feedback.curation.from_choices import pairs_from_choices
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
    {"model": "talkback:base"},
    {"repetition_penalty": 2},
    {"frequency_penalty": 1},
    {"messages": [{"role": "system", "content": "Talk rubbish."}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Zzz"}]},
]
"""Requests for answers that the house would not give by itself."""


def choose(
    store: Store, better: str, worse: str, person: str = "ann", *, tie: bool = False, **more: Any
) -> str:
    return store.add_feedback(better, person, "choice", {"over": worse, "tie": tie}, **more)


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


def test_rubbish_made_on_purpose_by_people_with_keys_waits_for_a_reviewer(
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


@pytest.mark.parametrize("known", [(True, True), (True, False), (False, True), (False, False)])
def test_a_retry_that_is_liked_better_trains_when_its_person_is_known(
    store: Store, known: tuple[bool, bool]
) -> None:
    better, worse = two(store)
    for answer, up, by_login in ((better, False, known[0]), (worse, True, known[1])):
        store.add_feedback(answer, "person-1", "thumb", {"up": up}, known=by_login)
    assert len(curate(store, ALL_TRAIN).rows) == (known == (True, True))


def test_who_changes_their_mind_waits_once(store: Store) -> None:
    better, worse = two(store)
    choose(store, worse, better, "person-1")
    choose(store, better, worse, "person-1")
    assert trained(store) == 0
    assert [item.answer.id for item in list_pending(store)] == [better]


@pytest.mark.parametrize(
    "houses", [(None, None), (False, False), (True, False), (False, True), (None, True)]
)
def test_what_was_not_made_by_the_house_waits_whoever_agrees(
    store: Store, houses: tuple[bool | None, bool | None]
) -> None:
    speakers = [replace(SPEAKER, house=house) for house in houses]
    better = add_answer(store, "Open?", "From nine.", speaker=speakers[0])
    worse = add_retry(store, better, "No idea.", speakers[1])
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


def test_who_agreed_but_changed_their_mind_vouches_for_nobody(store: Store) -> None:
    better, worse = two(store)
    choose(store, better, worse, "person-1")
    choose(store, better, worse, "person-2")
    assert trained(store) == 1
    choose(store, worse, better, "person-2", tie=True)
    assert trained(store) == 0
    assert [item.answer.id for item in list_pending(store)] == [better]


def test_a_retry_liked_better_waits_as_a_pair_of_its_own(store: Store) -> None:
    worse, better = two(store)
    for answer, up in ((worse, False), (better, True)):
        store.add_feedback(answer, "person-1", "thumb", {"up": up})
    assert [(item.answer.id, item.why) for item in list_pending(store)] == [
        (worse, "thumb down"),
        (better, "preferred to another answer"),
    ]
    decide(store, worse, "rita", "reject")
    (item,) = list_pending(store)
    assert (item.answer.id, item.preferred_to) == (better, ["From nine."])
    assert [row for row in curate(store, ALL_TRAIN).rows if row.kind == "pair"] == []
    decide(store, better, "rita", "approve")
    pairs = [row for row in curate(store, ALL_TRAIN).rows if row.kind == "pair"]
    assert [row.message_id for row in pairs] == [better] and list_pending(store) == []


def test_what_a_choice_and_a_retry_agree_on_does_not_wait_either(store: Store) -> None:
    worse, better = two(store)
    choose(store, better, worse, "person-1")
    for answer, up in ((better, True), (worse, False)):
        store.add_feedback(answer, "person-2", "thumb", {"up": up})
    assert [row.message_id for row in pairs_from_choices(store, 9)[0]] == [better]
    assert [item.answer.id for item in list_pending(store)] == [worse]


def test_in_any_store_what_trains_is_trusted_and_all_else_that_people_prefer_waits(
    store: Store,
) -> None:
    """Compare the queue and the curation with the rule written down once more, without SQL."""
    rng = random.Random(49)
    with store.write():
        questions = [RandomQuestion(store, rng, number) for number in range(120)]
        for question in rng.choices(questions, k=1200):
            question.give_or_erase()
    rows, dropped = pairs_from_choices(store, 1000)
    waiting = {one.message_id for one in dropped if one.reason == "waits for a reviewer"}
    queued = {item.answer.id for item in list_pending(store, limit=1000)}
    assert {(row.message_id, row.rejected) for row in rows} == {
        pair for question in questions for pair in question.trained()
    }
    assert queued == {id for question in questions for id in question.waiting()} >= waiting
    assert len(rows) > 20 and len(waiting) > 20


class RandomQuestion:
    """Asks for three answers and keeps what people say of them."""

    def __init__(self, store: Store, rng: random.Random, number: int) -> None:
        self._store, self._rng = store, rng
        speaker = replace(SPEAKER, house=rng.choice([True, True, False]))
        first = add_answer(store, f"Question {number}?", "Text 0.", speaker=speaker)
        retries = [add_retry(store, first, f"Text {n}.", SPEAKER) for n in (1, 2)]
        self._answers = [first, *retries]
        self._house = {first: speaker.house, **dict.fromkeys(retries, True)}
        self._given: list[tuple[str, str, bool, str, dict[str, Any]]] = []

    def give_or_erase(self) -> None:
        person = self._rng.choice(["ann", "key/bob", "key/cat", "dan"])
        known = person == "dan" and self._rng.random() < 0.3
        answer, other = self._rng.sample(self._answers, 2)
        if self._given and self._rng.random() < 0.1:
            id = self._given.pop(self._rng.randrange(len(self._given)))[0]
            with self._store.write() as db:
                db.execute("delete from feedback where id = ?", (id,))
            return
        if self._rng.random() < 0.5:
            value = {"over": other, "tie": self._rng.random() < 0.1}
        else:
            value = {"up": self._rng.choice([True, False, False, None])}
        kind = "choice" if "over" in value else "thumb"
        id = self._store.add_feedback(answer, person, kind, value, known=known)
        self._given.append((id, person, known, answer, value))

    def trained(self) -> set[tuple[str, str]]:
        """Return the better answer and the text of the worse one of all pairs that train."""
        votes = self._votes()
        pairs = {vote[0] for vote in votes}
        return {
            (better, f"Text {self._answers.index(worse)}.")
            for better, worse in pairs
            if self._is_trusted((better, worse))
            and sum(vote[0] == (better, worse) for vote in votes)
            > sum(vote[0] == (worse, better) for vote in votes)
        }

    def waiting(self) -> set[str]:
        """Return the answers that somebody dislikes, or prefers without being trusted."""
        thumbs = {(answer, who): value for _, who, _, answer, value in self._given if "up" in value}
        disliked = {answer for (answer, _), value in thumbs.items() if value["up"] is False}
        pairs = {vote[0] for vote in self._votes()}
        return disliked | {pair[0] for pair in pairs if not self._is_trusted(pair)}

    def _is_trusted(self, pair: tuple[str, str]) -> bool:
        alike = [(person, known) for vote, person, known in self._votes() if vote == pair]
        voices = {person.split("/")[0] for person, _ in alike}
        agreed = len(voices) > 1 or any(known for _, known in alike)
        return agreed and all(self._house[id] for id in pair)

    def _votes(self) -> list[tuple[tuple[str, str], str, bool]]:
        """Return (better, worse), person and known of each person's last word on two answers."""
        last: dict[tuple[str, frozenset[str]], tuple[tuple[str, str], bool] | None] = {}
        thumbs: dict[tuple[str, str], tuple[int, bool, bool | None]] = {}
        given: list[tuple[int, str, bool, tuple[str, str], bool]] = []
        for number, (_, person, known, answer, value) in enumerate(self._given):
            if "up" in value:
                thumbs[person, answer] = (number, known, value["up"])
            else:
                given.append((number, person, known, (answer, value["over"]), value["tie"]))
        for (person, up), (number, known, liked) in thumbs.items():
            for worse in self._answers[: self._answers.index(up)]:
                other, also_known, also_liked = thumbs.get((person, worse), (0, False, None))
                if liked is True and also_liked is False:
                    both = known and also_known
                    given.append((max(number, other), person, both, (up, worse), False))
        for _, person, known, pair, tie in sorted(given):
            last[person, frozenset(pair)] = None if tie else (pair, known)
        return [(vote[0], person, vote[1]) for (person, _), vote in last.items() if vote]
