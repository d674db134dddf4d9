"""Vectors of approved answers: what lies near what, in which languages, and who makes them when."""

import logging
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from feedback.exemplars import find_exemplars, graduate, question_key
from feedback.ids import now
from feedback.matching import vector_search
from feedback.matching.embedding import (
    EmbedderError,
    StaticEmbedder,
    Vectors,
    load_static_embedder,
    to_units,
)
from feedback.review.decisions import decide
from feedback.store import Store
from tests.fixtures import public_data
from tests.fixtures.conversations import add_answer

RETURNS = "You may send anything back within 30 days and get your money."
NEARER = [
    ("en", "Can I get a refund?", "How do I get my money back?", "Which chairs are made of oak?"),
    ("de", "Kann ich die Bestellung stornieren?", "Bestellung abbrechen", "Wie ist das Wetter?"),
    ("fr", "Comment annuler ma commande ?", "Annuler une commande", "Quel temps fait-il ?"),
    (
        "ru",
        "Вы открыты по воскресеньям?",
        "Открыт ли магазин в воскресенье?",
        "Сколько весит стол?",
    ),
    (
        "tr",
        "Pazar günleri açık mısınız?",  # noqa: RUF001
        "Pazar günü ne zaman açılıyor?",  # noqa: RUF001
        "Masa kaç kilo geliyor?",
    ),
    (
        "vi",
        "Chủ nhật cửa hàng có mở không?",
        "Cửa hàng mở cửa chủ nhật?",
        "Trả hàng tốn bao nhiêu?",
    ),
    ("zh", "你们星期天几点开门", "星期天的营业时间", "怎么退换有问题的商品"),
    (
        "ja",
        "日曜日は営業していますか",
        "日曜の営業時間を教えてください",
        "返品の送料はいくらですか",
    ),
    (
        "ko",
        "일요일에 문을 여나요?",
        "일요일 영업시간이 어떻게 되나요?",
        "반품 배송비는 얼마인가요?",
    ),
]
UNKNOWN = [
    "ร้านเปิดกี่โมงวันอาทิตย์",
    "متى تفتحون يوم الأحد؟",
    "Πότε ανοίγετε;",
    "मैं पैसे वापस चाहता हूँ",
    "キャンセル",
    "",
    "?!",
    "👍",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


def approve(store: Store, question: str, answer: str) -> str:
    decide(store, add_answer(store, question), "rita", "correct", answer)
    return str(store.rows("select id from approved order by rowid desc limit 1")[0]["id"])


def insert_approved(store: Store, number: int) -> None:
    """Write so many approved answers at once, as an older Talkback left them: without vectors."""
    questions = [f"How many of article {n} are there in warehouse {n % 7}?" for n in range(number)]
    db = sqlite3.connect(store.path)
    db.executemany(
        "insert into approved values (?, 'rev', 'msg', ?, ?, 'Ten.', ?)",
        ((f"app-{n}", text, question_key(text), now()) for n, text in enumerate(questions)),
    )
    db.commit()
    db.close()


def vectors(store: Store) -> int:
    return int(store.rows("select count(*) from approved_vector")[0][0])


class Counting(StaticEmbedder):
    """Counts the texts that it embeds, under a name of its own."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.down = False

    def embed(self, texts: Sequence[str]) -> Vectors:
        if self.down:
            raise EmbedderError("counting is down")
        self.texts += texts
        return super().embed(texts)


@pytest.mark.parametrize(("language", "text", "near", "far"), NEARER)
def test_what_means_the_same_lies_nearer(language: str, text: str, near: str, far: str) -> None:
    one, other, third = load_static_embedder().embed([text, near, far])
    assert one @ other > one @ third + 0.1


@pytest.mark.parametrize("text", UNKNOWN)
def test_a_text_of_letters_alone_has_no_vector(text: str) -> None:
    """Of Thai, Arabic or Greek the tokens are single letters: all texts would be alike."""
    assert not load_static_embedder().embed([text]).any()


def test_syllables_make_a_shorter_vector() -> None:
    vectors = load_static_embedder().embed(["Am I a member of Q & A?", "你们星期天几点开门"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0.95], abs=0.01)


def test_the_start_pays_nothing_for_it_and_torch_stays_away() -> None:
    code = (
        "import sys, feedback.exemplars as e\n"
        "assert not {'tokenizers', 'safetensors', 'wordllama', 'httpx'} & set(sys.modules)\n"
        "e.load = __import__('feedback.matching.embedding').matching.embedding\n"
        "e.load.load_static_embedder().embed(['hello'])\n"
        "assert not {'torch', 'wordllama', 'requests'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_words_find_the_answer(store: Store) -> None:
    """No word of the question is in the approved one, nor in its answer."""
    id = approve(store, "I want to send my order back", RETURNS)
    approve(store, "Which chairs are made of oak?", "All but the folding ones.")
    assert [one.id for one in find_exemplars(store, "Can I get a refund?")] == [id]


def test_general_questions_get_no_exemplar(store: Store) -> None:
    for question, answer in (
        ("I want to send my order back", RETURNS),
        ("Which chairs are made of oak?", "All but the folding ones."),
        ("When do you open on Sundays?", "At 11."),
        ("How can I pay?", "By card, in cash, or on account."),
    ):
        approve(store, question, answer)
    asked = [turns[0] for turns in public_data.load_first_turns("mt_bench_question.jsonl")]
    assert [question for question in asked if find_exemplars(store, question)] == []


@pytest.mark.parametrize(("language", "approved", "asked", "other"), NEARER)
def test_similar_questions_are_found_in_other_languages(
    store: Store, language: str, approved: str, asked: str, other: str
) -> None:
    id = approve(store, approved, "11.")
    approve(store, other, "5.")
    assert [one.id for one in find_exemplars(store, asked)][:1] == [id]


def test_thai_is_found_by_its_characters(store: Store) -> None:
    approve(store, "คืนสินค้าได้อย่างไร", "ภายใน 30 วัน")
    id = approve(store, "ร้านเปิดกี่โมงวันอาทิตย์", "11")
    assert [one.id for one in find_exemplars(store, "วันอาทิตย์ร้านเปิดกี่โมง")] == [id]


def test_a_vector_is_made_once_and_read_by_other_processes(store: Store, tmp_path: Path) -> None:
    id = approve(store, "I want to send my order back", RETURNS)
    embedder = Counting()
    for _ in range(3):
        find_exemplars(store, "Can I get a refund?", embedder=embedder)
    assert embedder.texts.count("I want to send my order back") == 1
    code = (
        "import sys; from pathlib import Path; from feedback.store import Store\n"
        "from feedback.exemplars import find_exemplars\n"
        "print([one.id for one in find_exemplars(Store(Path(sys.argv[1])), sys.argv[2])])"
    )
    asked = [sys.executable, "-c", code, str(store.path), "Can I get a refund?"]
    assert subprocess.check_output(asked, text=True).strip() == str([id])
    other = Store(store.path)
    again = Counting()
    assert [
        one.id for one in find_exemplars(other, "May a purchase be returned?", embedder=again)
    ] == [id]
    assert again.texts == ["May a purchase be returned?"]


def test_two_processes_may_fill_in_at_once(store: Store) -> None:
    insert_approved(store, 600)
    code = (
        "import sys; from pathlib import Path; from feedback.store import Store\n"
        "from feedback.matching.vector_search import fill_all\n"
        "fill_all(Store(Path(sys.argv[1])), None)"
    )
    asked = [sys.executable, "-W", "error", "-c", code, str(store.path)]
    processes = [subprocess.Popen(asked) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert vectors(store) == 600


def test_what_another_process_approves_is_found_from_then_on(store: Store) -> None:
    other = Store(store.path)
    approve(store, "Which chairs are made of oak?", "All but the folding ones.")
    assert find_exemplars(store, "Can I get a refund?") == []
    id = approve(other, "I want to send my order back", RETURNS)
    assert [one.id for one in find_exemplars(other, "Can I get a refund?")] == [id]
    assert [one.id for one in find_exemplars(store, "Can I get a refund?")] == [id]


def test_vectors_of_another_embedder_are_never_mixed(store: Store) -> None:
    approve(store, "I want to send my order back", RETURNS)
    find_exemplars(store, "May a purchase be returned?", embedder=Counting())
    find_exemplars(store, "May a purchase be returned?")
    rows = store.rows("select embedder from approved_vector order by number")
    assert [row["embedder"] for row in rows] == ["counting", StaticEmbedder.name]
    search = vector_search.vector_search(store, load_static_embedder())
    found = search.find(store, "May a purchase be returned?")
    assert found is not None and len(found.ids) == 1


def test_an_old_home_is_filled_in_while_it_answers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_search, "FILL_SECONDS", 0)
    monkeypatch.setattr(StaticEmbedder, "batch_size", 50)
    insert_approved(store, 120)
    id = approve(store, "I want to send my order back", RETURNS)
    made = []
    for _ in range(4):
        assert [one.id for one in find_exemplars(store, "Can I get a refund?")] == [id]
        made.append(vectors(store))
    assert made == [50, 100, 121, 121]
    found = find_exemplars(store, "How many are there of article 7 in warehouse 0?")
    assert found[0].question == "How many of article 7 are there in warehouse 0?"


def test_what_has_no_vector_yet_is_found_by_its_words(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_search, "FILL_SECONDS", 0)
    monkeypatch.setattr(StaticEmbedder, "batch_size", 5)
    approve(store, "Is the shop open on Sundays?", "From 11.")
    insert_approved(store, 30)
    found = find_exemplars(store, "When is the shop open on a Sunday?")
    assert [one.answer for one in found] == ["From 11."]
    assert vectors(store) == 5


def test_an_erased_answer_takes_its_vectors_along(store: Store) -> None:
    id = approve(store, "I want to send my order back", RETURNS)
    find_exemplars(store, "Can I get a refund?")
    with store.write() as db:
        db.execute("delete from approved where id = ?", (id,))
    assert vectors(store) == 0
    assert find_exemplars(store, "Can I get a refund?") == []


def test_answers_out_of_use_leave_the_room_to_others(store: Store) -> None:
    """200 graduated ones are nearer than the one that is not."""
    insert_approved(store, 200)
    asked = "How many of article 1000 are there in warehouse 3?"
    id = approve(store, "How much of article 1000 is in stock at warehouse 3, roughly?", "Many.")
    with store.write() as db:
        row = {"id": "a-1", "base": "tiny", "recipe": {}, "lineage": [], "created_at": now()}
        db.insert("adapter", row)
    for n in range(200):
        graduate(store, f"app-{n}", "a-1")
    assert [one.id for one in find_exemplars(store, asked, adapter="a-1")] == [id]
    assert len(find_exemplars(store, asked, adapter="base")) == 3


def test_an_embedder_that_is_down_leaves_the_static_one_and_one_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    id = approve(store, "I want to send my order back", RETURNS)
    embedder = Counting()
    embedder.down = True
    with caplog.at_level(logging.WARNING, "talkback"):
        for _ in range(3):
            found = find_exemplars(store, "Can I get a refund?", embedder=embedder)
            assert [one.id for one in found] == [id]
    assert [record.getMessage() for record in caplog.records] == ["counting is down"]


def test_without_any_embedder_words_are_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> StaticEmbedder:
        raise EmbedderError("the package wordllama is missing")

    monkeypatch.setattr(vector_search, "load_static_embedder", fail)
    id = approve(store, "Is the shop open on Sundays?", "From 11.")
    assert [one.id for one in find_exemplars(store, "Is your shop open this Sunday?")] == [id]


def test_a_read_only_moment_is_no_error_for_who_asks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = approve(store, "Is the shop open on Sundays?", "From 11.")
    with store.write() as db:
        db.execute("""create temp trigger full before insert on approved_vector
            begin select raise(abort, 'database or disk is full'); end""")
    assert [one.id for one in find_exemplars(store, "Is your shop open this Sunday?")] == [id]
    assert vectors(store) == 0


def test_units_stay_zero_where_nothing_is_known() -> None:
    found = to_units(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    assert found == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))
