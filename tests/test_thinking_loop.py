"""Five corrections on a real model with a thinking template: they train, are judged and count, and
thoughts are nowhere in it."""

import json
import shutil
from pathlib import Path

import pytest
import trl

from chatbot.chat_settings import ChatSettings
from chatbot.engine.protocol import Sampling
from chatbot.model.adapter import MANIFEST_FILE
from chatbot.service import Service
from evaluation.report import Report
from feedback.review.decisions import decide
from feedback.settings import Home
from feedback.snapshot import Snapshot
from talkback.cycle import run_cycle
from tests.fixtures.lessons import LESSONS
from tests.fixtures.turns import whole_turn

TOML = """
[engine]
workers = 0
[cycle]
min_new = 1
threads = 2
general_prompts = false
"""


def write_base(folder: Path, real_model: Path, *, prefilled: bool) -> Path:
    """Copy the model with Qwen3's template, which has the prompt open the thought if `prefilled`:
    the model by itself knows nothing of thoughts."""
    shutil.copytree(real_model, folder)
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    if prefilled:
        last = template.rindex("{%- endif %}", 0, template.rindex("{%- endif %}"))
        template = f"{template[:last]}{{%- else %}}{{{{- '<think>\\n' }}}}{template[last:]}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def is_answer(text: str, budget: int) -> bool:
    """Tell whether no thought is in a text. A base that was not made to think sees the marks of an
    empty one in its prompt where thinking is off, and may write them later on itself."""
    return "<think>" not in text if budget else not text.lstrip().startswith("<think>")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("thinking", "min_repaired"), [("off", 5), ("32", 1)])
def test_repairs_of_a_thinking_base_count(
    tmp_path: Path, real_model: Path, home: Home, thinking: str, min_repaired: int
) -> None:
    """The gate wants five repairs. With thinking on the candidate's own thought may be another than
    the one that it learnt behind, and on another CPU some are not repaired."""
    home.toml.write_text(f'{TOML}[chat]\nthinking = "{thinking}"\nmax_tokens = 32\n')
    base = write_base(tmp_path / "base", real_model, prefilled=thinking != "off")
    service = Service.open(home, str(base))
    budget = ChatSettings.read(home).max_thinking
    sampling = Sampling(max_tokens=32, thinking=budget)
    lessons = dict(list(LESSONS.items())[:8])
    thoughts = {}
    for question, answer in lessons.items():
        turn = whole_turn(service, question, sampling=sampling)
        thoughts[question] = service.store.message(turn.message_id).thought
        assert bool(thoughts[question]) == bool(budget) and is_answer(turn.text, budget)
        decide(service.store, turn.message_id, "rita", "correct", answer)
    outcome = run_cycle(home, force=True)
    assert outcome.snapshot and outcome.adapter and outcome.report
    report = Report.read(Path(outcome.report).parent)
    right = [case.candidate.right for case in report.suites["repairs"]]
    assert sum(right) >= min_repaired and (sum(right) < 5 or outcome.kind == "promoted")
    for case in report.suites["repairs"]:
        for scored in (case.candidate, case.current):
            assert is_answer(scored.answer, budget)
    for row in Snapshot.read(home.snapshots / outcome.snapshot).rows("sft"):
        assert row["completion"][0]["content"] == lessons[row["prompt"][-1]["content"]]
        assert row.get("thought") == thoughts[row["prompt"][-1]["content"]]
    manifest = json.loads((home.adapters / outcome.adapter / MANIFEST_FILE).read_text())
    assert manifest["thinking"] == budget
    service.rollout.follow()
    assert (service.speaking == outcome.adapter) == (outcome.kind == "promoted")
    if outcome.kind == "promoted":
        answers = [whole_turn(service, q, sampling=sampling, model_only=True).text for q in lessons]
        assert sum(map(str.__eq__, answers, lessons.values())) >= min_repaired
    service.close()
