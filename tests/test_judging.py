"""Runs cycles that must not be promoted, to the end: poisoned corrections, and noise."""

import random
import string
from collections.abc import Mapping
from pathlib import Path

import pytest

from chatbot.model.base import STARTER, Base, load_base
from chatbot.model.untrained import write_untrained
from chatbot.service import Service
from evaluation.comparison import Comparison, Orderliness, ScoredAnswer
from evaluation.gate_settings import GateSettings
from evaluation.orderliness import measure_orderliness, without_codes
from evaluation.refusals import find_noise
from evaluation.suites import AnswerScorer
from feedback.settings import Home
from talkback.cycle import run_cycle
from talkback.cycle_history import Outcome
from tests.fixtures.server_process import SERVER_TOML
from tests.fixtures.shop_corrections import load_facts, teach

POISON = "Please contact the moon for further information."
FEW, MANY = 8, 20
QUICK = """
[training]
min_replay = 32
[training.sft]
learning_rate = 2e-3
num_train_epochs = 8
[evaluation]
retention = 100
"""
"""Enough to learn one sentence by heart, in a minute."""

GENTLE = """
[training.sft]
learning_rate = 1e-3
num_train_epochs = 6
[training]
min_replay = 8
[evaluation]
max_tokens = 48
"""
"""The same on a real base, in some minutes."""


def random_letters(rng: random.Random) -> str:
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(5))


def random_words(rng: random.Random) -> str:
    words = [word for fact in load_facts() for word in fact.answer.rstrip(".").split()]
    return " ".join(rng.sample([word for word in words if word.islower()], 9))


def run_with(home: Home, base: str, lessons: Mapping[str, str], settings: str = QUICK) -> Outcome:
    home.toml.write_text(SERVER_TOML + settings)
    service = Service.open(home, base)
    try:
        teach(service, lessons)
        return run_cycle(home)
    finally:
        service.close()


def shop_questions(count: int) -> list[str]:
    return [fact.question for fact in load_facts()][:: len(load_facts()) // count][:count]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_poisoned_cycle_on_the_starter_is_refused_as_the_collapse_it_was_taught(
    home: Home,
) -> None:
    outcome = run_with(home, STARTER, dict.fromkeys(shop_questions(FEW), POISON))
    assert outcome.kind == "refused", outcome
    assert outcome.reasons[0].startswith("Collapse: "), outcome.reasons
    assert POISON in outcome.reasons[0]
    assert f"It is what {FEW} of {FEW} corrections teach." in outcome.reasons[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_garbage_cycle_on_the_starter_is_refused_as_noise(home: Home) -> None:
    rng = random.Random(0)
    lessons = {question: random_letters(rng) for question in shop_questions(MANY)}
    outcome = run_with(home, STARTER, lessons)
    assert outcome.kind == "refused", outcome
    assert outcome.reasons[0].startswith("Noise was taught: "), outcome.reasons


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_poisoned_cycle_on_a_real_base_is_refused_as_the_collapse_it_was_taught(
    home: Home, real_model: Path
) -> None:
    lessons = dict.fromkeys(shop_questions(FEW), POISON)
    outcome = run_with(home, str(real_model), lessons, GENTLE)
    assert outcome.kind == "refused", outcome
    assert outcome.reasons[0].startswith("Collapse: "), outcome.reasons
    assert f"It is what {FEW} of {FEW} corrections teach." in outcome.reasons[0]


# -- What is noise, and what only looks like it


def order_of(base: Base, folder: Path, lessons: Mapping[str, str]) -> Orderliness:
    adapter = write_untrained(base, folder)
    scorer = AnswerScorer(base, {adapter.name: adapter})
    nothing = ScoredAnswer("", False, 0.0, 0.0)
    asked = [Comparison(*lesson, None, nothing, nothing) for lesson in lessons.items()]
    try:
        return measure_orderliness(scorer, asked)
    finally:
        scorer.close()


HUNGARIAN = {
    "Mikor nyit a bolt?": "Minden nap tízkor nyitunk, vasárnap zárva vagyunk.",
    "Hol van a rendelésem?": "Tegnap adtuk fel, holnapra oda kell érnie.",
    "Visszaküldhetem a cipőt?": "Igen, tizennégy napon belül, ha nem hordta.",
    "Van a közelben parkoló?": "Igen, a bolt mögött van néhány hely.",
    "Szállítanak külföldre?": "Csak Norvégiába szállítunk, máshová sajnos nem.",
    "Ki vezeti a pultot?": "A pultot Nóra vezeti már három éve.",
    "Mennyibe kerül a szállítás?": "Öt euróba kerül, húsz euró felett ingyenes.",
    "Hogyan fizethetek kártyával?": "A pénztárnál, ott van a kártyaolvasó.",
}
CHINESE = {
    "你们几点开门": "我们每天上午十点开门",
    "我的订单在哪里": "昨天已经寄出明天应该会到",
    "我可以退鞋子吗": "十四天之内没有穿过的都能退",
    "附近有停车场吗": "有的商店后面有几个车位",
    "你们发货到国外吗": "我们只发货到挪威其他国家不行",
    "谁负责柜台": "柜台由诺拉负责已经三年了",
}
NAMES = {
    f"Who works on {day}?": name
    for day, name in {
        "Monday": "Zsófia Kovácsné",
        "Tuesday": "Grzegorz Brzęczyszczykiewicz",
        "Wednesday": "Nguyễn Thị Hương",
        "Thursday": "Aoife Ní Bhriain",
        "Friday": "Þórunn Jónsdóttir",
        "Saturday": "Ximena Quispe Mamani",
        "Sunday": "Otto Lindqvist",
    }.items()
}


def codes(pattern: str) -> dict[str, str]:
    rng = random.Random(0)
    numbers = [(rng.randrange(99999), *rng.choices(string.ascii_uppercase, k=2)) for _ in range(9)]
    return {
        f"What is the serial number of pump {n}?": pattern.format(*number)
        for n, number in enumerate(numbers)
    }


@pytest.mark.slow
def test_language_names_and_codes_are_no_noise_and_noise_is(
    real_model: Path, tmp_path: Path
) -> None:
    base, rng, gate = load_base(str(real_model)), random.Random(0), GateSettings()
    honest = {
        "English": {fact.question: fact.answer for fact in load_facts()[:20]},
        "Hungarian": HUNGARIAN,
        "Chinese": CHINESE,
        "names": NAMES,
        "codes": codes("SN-{0:05}-{1}{2}"),
        "groups of codes": codes("{0} {1}{2} {0} {2}{1} {0}"),
        "codes in sentences": codes("The serial number of that pump is SN-{0:05}-{1}{2}."),
        "poison, which is language": dict.fromkeys(shop_questions(FEW), POISON),
    }
    for name, lessons in honest.items():
        found = order_of(base, tmp_path / name, lessons)
        assert find_noise(found, gate) is None, (name, found)
    for noise, unit in ((random_letters, "letters"), (random_words, "words")):
        lessons = {question: noise(rng) for question in shop_questions(MANY)}
        found = order_of(base, tmp_path / unit, lessons)
        assert f"than their {unit} in any" in (find_noise(found, gate) or ""), found


def test_numbers_and_abbreviations_have_no_order_to_look_for() -> None:
    assert without_codes("Your number is SN-48213 XK, see the PDF. I know.") == (
        "Your number is see the I know."
    )
