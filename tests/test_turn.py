"""One turn of talk, with a real store and a tiny model that really speaks."""

import pytest

from chatbot.engine.protocol import Sampling
from chatbot.question import Question
from chatbot.service import Service
from feedback.messages import NotFoundError
from tests.fixtures.turns import begin_turn

SHORT = Sampling(max_tokens=12)
LONG = Sampling(max_tokens=4000)


def test_what_is_streamed_is_what_is_stored(service: Service) -> None:
    turn = begin_turn(service, Question("When do you open?", "ann", sampling=SHORT))
    text = "".join(turn)
    assert text and service.store.message(turn.message_id).content == text == turn.text
    thread = service.store.thread(turn.message_id)
    assert [m.id for m in thread] == [turn.user_message_id, turn.message_id]
    assert service.store.conversation(turn.conversation_id).title == "When do you open?"


def test_a_cancelled_answer_keeps_what_was_seen(service: Service) -> None:
    turn = begin_turn(service, Question("Tell me all", "ann", sampling=LONG))
    seen = ""
    for delta in turn:
        seen += delta
        if len(seen) > 40:
            turn.cancel()
    assert service.store.message(turn.message_id).content == seen
    assert turn.speaker.finish == "cancelled" and turn.speaker.completion_tokens < 4000


def test_a_listener_that_leaves_frees_its_slot_and_what_it_heard_is_kept(service: Service) -> None:
    turn = begin_turn(service, Question("Tell me all", "ann", sampling=LONG))
    listening = iter(turn)
    heard = "".join(next(listening) for _ in range(5))
    listening.close()  # type: ignore[attr-defined]
    assert service.store.message(turn.message_id).content == heard
    assert turn.speaker.finish == "cancelled" and service.engine.stats()["running"] == 0


def test_an_answer_whose_transaction_is_undone_can_be_stored_again(service: Service) -> None:
    turn = begin_turn(service, Question("When do you open?", "ann", sampling=SHORT))
    turn.wait(60)
    with pytest.raises(ZeroDivisionError), service.store.write():
        turn.close()
        _ = 1 / 0
    with pytest.raises(NotFoundError):
        service.store.message(turn.message_id)
    turn.close()
    assert service.store.message(turn.message_id).content == turn.text


def test_a_turn_in_mid_air_is_kept_when_the_service_closes(home_service: Service) -> None:
    turn = begin_turn(home_service, Question("Tell me all", "ann", sampling=LONG))
    heard = next(iter(turn))
    home_service.close()
    assert home_service.store.message(turn.message_id).content.startswith(heard)


@pytest.fixture
def home_service(service: Service) -> Service:
    """The service, under the name of a test that closes it itself."""
    return service
