"""In which form a base goes by approved answers: how a prompt shows them, and how it is found."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import EngineBusyError, Request, UnreachableError
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.exemplar_form.form_finder import KNOWN_FORMS, FormFinder
from chatbot.exemplar_form.forms import FORMS, ExemplarForm, select_shown, write_question
from chatbot.exemplar_form.trial import choose_form, read_cases
from chatbot.model.base import Base, load_base
from chatbot.model.chat_template import encode
from chatbot.prompt import fit_prompt
from chatbot.service import Service
from feedback.messages import Message
from feedback.review.decisions import decide
from feedback.similarity import near_duplicates
from tests.fixtures.remote_base import Connect, RemoteBase, Serve
from tests.fixtures.turns import whole_turn
from tests.fixtures.waiting import wait_until

PAIRS = [("Sundays?", "At 11."), ("Fax?", "No."), ("Dogs?", "Yes.")]
HISTORY = [
    Message("", "", None, role, text, "")
    for role, text in (("user", "Hello?"), ("assistant", "Hi!"))
]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# -- How a prompt shows exemplars


def test_in_turns_the_best_exemplar_stands_next_to_the_question() -> None:
    assert write_question("turns", "When?", PAIRS[:2]) == [
        *(user("Fax?"), assistant("No.")),
        *(user("Sundays?"), assistant("At 11.")),
        user("When?"),
    ]


def test_the_best_exemplar_alone_stands_there_twice() -> None:
    best = [user("Sundays?"), assistant("At 11.")]
    assert write_question("best twice", "When?", PAIRS) == [*best, *best, user("When?")]
    assert select_shown("best twice", PAIRS) == PAIRS[:1]


def test_the_starters_form_is_one_message() -> None:
    text = "Approved answers:\nQ: Sundays?\nA: At 11.\nQ: Fax?\nA: No.\n\nQuestion: When?"
    assert write_question("in question", "When?", PAIRS[:2]) == [user(text)]


@pytest.mark.parametrize("form", FORMS)
def test_without_exemplars_all_forms_are_the_question(form: ExemplarForm) -> None:
    assert write_question(form, "When?", []) == [user("When?")]


@pytest.mark.parametrize("form", FORMS)
def test_exemplars_stand_between_history_and_question(base: Base, form: ExemplarForm) -> None:
    ids, shown = fit_prompt(base.tokenizer, "Be kind.", HISTORY, "When?", PAIRS, 900, form=form)
    head = [{"role": "system", "content": "Be kind."}, user("Hello?"), assistant("Hi!")]
    assert shown
    assert ids == encode(base.tokenizer, [*head, *write_question(form, "When?", PAIRS)])


@pytest.mark.parametrize("form", FORMS)
def test_after_an_unanswered_question_turns_still_alternate(base: Base, form: ExemplarForm) -> None:
    pending = Message("", "", None, "user", "Anybody?", "")
    history = [*HISTORY, pending]
    ids, _ = fit_prompt(base.tokenizer, "", history, "When?", PAIRS, 900, form=form)
    *turns, question = write_question(form, "When?", PAIRS)
    both = user("Anybody?\n\n" + question["content"])
    expected = [user("Hello?"), assistant("Hi!"), *turns, both]
    assert ids == encode(base.tokenizer, expected)
    roles = [message["role"] for message in expected]
    assert all(one != other for one, other in pairwise(roles))


@pytest.mark.parametrize("form", FORMS)
def test_the_oldest_turns_go_first_then_the_exemplars_and_never_the_question(
    base: Base, form: ExemplarForm
) -> None:
    history = HISTORY * 6
    end = write_question(form, "When?", PAIRS)
    whole = {
        turns: encode(base.tokenizer, [*[m.to_dict() for m in history[12 - turns :]], *end])
        for turns in range(0, 13, 2)
    }
    counts = []
    for most in range(1, len(whole[12]) + 2):
        ids, shown = fit_prompt(base.tokenizer, "", history, "When?", PAIRS, most, form=form)
        if shown:
            assert len(ids) <= most
            counts.append(next(turns for turns, expected in whole.items() if ids == expected))
        elif len(ids) > most:
            assert ids == encode(base.tokenizer, [user("When?")])
        else:
            assert most < len(whole[0])
    assert counts == sorted(counts) and set(counts) == set(whole)


def test_an_answer_names_the_exemplars_that_its_prompt_showed(service: Service) -> None:
    for day, answer in (("Sundays", "At eleven."), ("Mondays", "At nine.")):
        turn = whole_turn(service, f"When does the shop open on {day}?", model_only=True)
        decide(service.store, turn.message_id, "rita", "correct", answer)
    service.form_finder._form = "turns"
    turn = whole_turn(service, "On Sundays, when does your shop open please?")
    assert len(turn.speaker.exemplars) == 2
    service.form_finder._form = "best twice"
    again = whole_turn(service, "On Sundays, when does your shop open please?")
    assert again.speaker.exemplars == turn.speaker.exemplars[:1]


# -- How the form is found


class TrialEngine:
    """Answers right where the trial asks in one form, and else with nothing that helps."""

    max_length = 4096
    submit_blocks = False
    unavailable_reason = None

    def __init__(self, base: Base, form: ExemplarForm | None) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.stalled = False
        self.right = {
            tuple(encode(base.tokenizer, write_question(form, case.question, case.exemplars))): (
                case.expected
            )
            for case in (read_cases() if form else [])
        }

    def submit(self, request: Request) -> Stream:
        self.asked += 1
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        stream = Stream(len(request.prompt_ids))
        if not self.stalled:
            stream.append_text(self.right.get(tuple(request.prompt_ids)) or "No idea.")
            stream.end("stop")
        return stream


def finder(base: Base, engine: TrialEngine, folder: Path) -> FormFinder:
    return FormFinder(base, engine, folder)  # type: ignore[arg-type]


def find_after_trial(finder: FormFinder) -> ExemplarForm:
    finder.find()
    assert finder._thread is not None
    finder._thread.join(240)
    return finder.find()


def test_the_questions_of_the_trial_are_all_others_and_some_fit_no_exemplar() -> None:
    cases = read_cases()
    assert sum(case.expected is None for case in cases) == 3 and len(cases) == 15
    questions = {str(n): case.question for n, case in enumerate(cases)}
    assert list(near_duplicates(questions, 0.5)) == []
    for case in cases:
        answers = [answer for _, answer in case.exemplars]
        assert len(set(answers)) == 3
        if case.expected is not None:
            assert case.expected in answers[:2]
            assert case.is_right(f" {case.expected}") and not case.is_right("I do not know.")
        else:
            assert case.is_right("I do not know.") and not case.is_right(answers[0])


def test_the_form_that_is_right_more_often_wins_and_turns_where_equal() -> None:
    assert choose_form({"turns": 3, "best twice": 3, "in question": 3}) == "turns"
    assert choose_form({"turns": 3, "best twice": 4, "in question": 4}) == "best twice"
    assert choose_form({"turns": 3, "best twice": 4, "in question": 5}) == "in question"


@pytest.mark.parametrize("form", FORMS)
def test_what_a_base_goes_by_is_tried_once_and_kept_by_what_it_is(
    base: Base, tmp_path: Path, form: ExemplarForm
) -> None:
    engine = TrialEngine(base, form)
    first = finder(base, engine, tmp_path)
    assert engine.asked == 0, "nobody has needed it yet"
    assert first.find() == "turns", "until it is known"
    assert find_after_trial(first) == form
    assert engine.asked == len(FORMS) * len(read_cases())
    moved = replace(base, name="elsewhere", revision="sha-other")
    assert finder(moved, TrialEngine(base, None), tmp_path).find() == form
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert kept["base"] == base.identity and kept["right"][form] == len(read_cases())


def test_another_base_is_tried_anew_and_so_is_one_whose_file_is_damaged(
    base: Base, tmp_path: Path
) -> None:
    find_after_trial(finder(base, TrialEngine(base, "best twice"), tmp_path))
    other = TrialEngine(base, "in question")
    assert find_after_trial(finder(replace(base, fingerprint="w-0"), other, tmp_path)) == (
        "in question"
    )
    for file in tmp_path.iterdir():
        file.write_text('{"form": "of old"}')
    again = TrialEngine(base, "best twice")
    assert find_after_trial(finder(base, again, tmp_path)) == "best twice" and again.asked


def test_people_go_first_and_a_trial_that_fails_is_made_again(base: Base, tmp_path: Path) -> None:
    engine = TrialEngine(base, "best twice")
    engine.failure = EngineBusyError(9, retry_after=0.01)
    assert find_after_trial(finder(base, engine, tmp_path / "busy")) == "best twice"
    engine.failure = UnreachableError("no server answers")
    unlucky = finder(base, engine, tmp_path / "away")
    assert find_after_trial(unlucky) == "turns" and not (tmp_path / "away").exists()
    assert find_after_trial(unlucky) == "best twice"


def test_closing_ends_a_trial(base: Base, tmp_path: Path) -> None:
    engine = TrialEngine(base, None)
    engine.stalled = True
    closed = finder(base, engine, tmp_path / "forms")
    assert closed.find() == "turns"
    wait_until(lambda: engine.asked == 1)
    closed.close()
    assert closed._thread is not None and not closed._thread.is_alive()
    assert closed.find() == "turns" and engine.asked == 1
    assert not (tmp_path / "forms").exists()


def test_a_base_on_other_servers_is_tried_through_them(
    remote_base: RemoteBase, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    remote = FormFinder(remote_base.base, connect(serve()), tmp_path)
    assert find_after_trial(remote) in FORMS
    assert len(list(tmp_path.iterdir())) == 1


def test_the_starter_is_known_and_a_trial_would_find_the_form_it_has_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = load_base()
    assert KNOWN_FORMS[starter.identity] == "in question"
    assert FormFinder(starter, TrialEngine(starter, None), tmp_path).find() == "in question"  # type: ignore[arg-type]
    monkeypatch.setattr("chatbot.exemplar_form.form_finder.KNOWN_FORMS", {})
    engine = LocalEngine(starter, EngineSettings(threads=1))
    assert find_after_trial(FormFinder(starter, engine, tmp_path)) == "in question"
    engine.close()


@pytest.mark.slow
def test_a_small_real_model_goes_by_the_best_exemplar_twice(
    real_model: Path, tmp_path: Path
) -> None:
    base = load_base(str(real_model))
    engine = LocalEngine(base, EngineSettings(threads=1))
    found = find_after_trial(FormFinder(base, engine, tmp_path))
    engine.close()
    (file,) = tmp_path.iterdir()
    assert found == "best twice", file.read_text()
