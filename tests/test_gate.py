"""Tests the gate's rules, each with a report that only it decides, and its words."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.comparison import (
    Comparison,
    Divergence,
    GeneralAnswer,
    Orderliness,
    PreferenceMargin,
    ScoredAnswer,
)
from evaluation.gate import GateSettings, judge
from evaluation.report import Report, ReportError, render_markdown
from feedback.settings import Home, SettingsError


def scored(answer: str, right: bool, loss: float = 0.1) -> ScoredAnswer:
    return ScoredAnswer(answer=answer, right=right, chrf=100.0 if right else 30.0, loss=loss)


def comparisons(
    won: int = 0, lost: int = 0, both: int = 0, neither: int = 0, *, rise: float = 0.0
) -> list[Comparison]:
    """Questions by who is right; `rise` in the candidate's loss, a little different for each."""
    kinds = [(True, False)] * won + [(False, True)] * lost
    kinds += [(True, True)] * both + [(False, False)] * neither
    return [
        Comparison(
            question=f"question {n}?",
            expected=f"right {n}",
            rejected=f"wrong {n}",
            candidate=scored(f"right {n}" if now else f"odd {n}", now, 0.1 + rise + n % 3 / 1000),
            current=scored(f"right {n}" if before else f"wrong {n}", before),
        )
        for n, (now, before) in enumerate(kinds)
    ]


GOOD = Report(
    candidate="a-new",
    current="a-old",
    base="starter",
    snapshot="s-1",
    suites={"repairs": comparisons(won=20), "held_out": [], "retention": comparisons(both=300)},
)


def report(**suites: list[Comparison]) -> Report:
    return replace(GOOD, suites=GOOD.suites | suites)


def reason(found: Report, settings: GateSettings | None = None) -> str:
    return judge(found, settings).reasons[0]


def test_more_right_and_nothing_lost_is_promoted_with_its_numbers() -> None:
    verdict = judge(GOOD)
    assert verdict.kind == "promote"
    assert "alone is right on 20 and the adapter in service alone on 0" in verdict.reasons[0]
    assert any("Retention: 300 of 300 right before, 300 now" in r for r in verdict.reasons)


# -- Evidence


def test_four_wins_are_not_enough_evidence_however_clean() -> None:
    verdict = judge(report(repairs=comparisons(won=4, both=30)))
    assert verdict.kind == "not_enough_evidence"
    assert "they must differ on 5 at least" in verdict.reasons[0]


def test_five_clean_wins_are_enough() -> None:
    assert judge(report(repairs=comparisons(won=5))).kind == "promote"


def test_held_out_wins_count_as_well() -> None:
    assert judge(report(repairs=comparisons(won=3), held_out=comparisons(won=3))).kind == "promote"


def general(*distances: float, served: float = 0.0) -> list[Divergence]:
    return [Divergence(f"prompt {n}?", far, served) for n, far in enumerate(distances)]


def test_probabilities_near_the_base_are_said_beside_the_verdict() -> None:
    near = replace(GOOD, general=general(*[0.02, 0.03] * 40, served=0.01), taught=3)
    verdict = judge(near)
    assert verdict.kind == "promote"
    assert any(
        "on 80 its probabilities lie 0.025 nats a token from the base's, at most 0.026" in text
        and "those of the adapter in service 0.010. 3 like what was taught are left out." in text
        for text in verdict.reasons
    )
    only = replace(near, suites=near.suites | {"retention": []})
    assert judge(only, GateSettings(need_retention=True)).kind == "promote"


@pytest.mark.parametrize("distances", [[0.4, 0.9] * 40, [0.01, math.nan] * 40])
def test_probabilities_far_from_the_base_are_refused(distances: list[float]) -> None:
    verdict = judge(replace(GOOD, general=general(*distances)))
    assert verdict.kind == "refuse"
    assert verdict.reasons[0].startswith("Catastrophic forgetting: on 80 general prompts")
    assert "0.1 is allowed" in verdict.reasons[0] and "“prompt" in verdict.reasons[0]


def test_probabilities_that_may_be_far_from_the_base_are_not_enough_evidence() -> None:
    verdict = judge(replace(GOOD, general=general(0.02, 0.02, 0.02, 0.3)))
    assert verdict.kind == "not_enough_evidence"
    assert "4 general prompts leave room for" in verdict.reasons[0]


def test_nothing_asked_is_not_enough_evidence() -> None:
    assert judge(report(repairs=[], retention=[])).kind == "not_enough_evidence"


def test_what_may_be_chance_is_not_enough_evidence() -> None:
    verdict = judge(report(repairs=comparisons(won=6, lost=4)))
    assert verdict.kind == "not_enough_evidence"
    assert "may be chance" in verdict.reasons[0]


def test_not_better_is_refused() -> None:
    verdict = judge(report(repairs=comparisons(won=4, lost=6)))
    assert verdict.kind == "refuse"
    assert verdict.reasons[0].startswith("Not better")


# -- Forgetting


def test_forgetting_beyond_the_margin_and_beyond_chance_is_refused() -> None:
    verdict = judge(report(retention=comparisons(lost=12, both=288)))
    assert verdict.kind == "refuse"
    assert "Catastrophic forgetting: of 300 retention questions 12" in verdict.reasons[0]
    assert "4.0% where 2% is allowed" in verdict.reasons[0]


def test_a_loss_within_the_margin_is_not_forgetting() -> None:
    assert judge(report(retention=comparisons(lost=5, both=295))).kind == "promote"


def test_answers_that_changed_both_ways_are_not_forgetting() -> None:
    assert judge(report(retention=comparisons(won=12, lost=12, both=276))).kind == "promote"


def test_a_suite_too_small_to_show_forgetting_is_not_enough_evidence() -> None:
    verdict = judge(report(retention=comparisons(lost=2, both=20)))
    assert verdict.kind == "not_enough_evidence"
    assert "Forgetting cannot be ruled out: 22 retention questions" in verdict.reasons[0]


def test_without_retention_the_verdict_says_that_nobody_looked() -> None:
    verdict = judge(report(retention=[]))
    assert verdict.kind == "promote"
    assert any("Forgetting was not looked for" in r for r in verdict.reasons)


def test_without_retention_nothing_is_judged_if_the_operator_wants_it() -> None:
    verdict = judge(report(retention=[]), GateSettings(need_retention=True))
    assert verdict.kind == "not_enough_evidence"


def test_perplexity_that_rose_on_retention_is_forgetting_though_answers_stayed() -> None:
    verdict = judge(report(retention=comparisons(both=300, rise=0.5)))
    assert verdict.kind == "refuse"
    assert (
        "perplexity on the answers of 300 retention questions rose by a factor of 1.65"
        in (verdict.reasons[0])
    )


def test_a_loss_that_is_not_a_number_is_refused() -> None:
    broken = [replace(i, candidate=scored("x", True, float("nan"))) for i in comparisons(both=300)]
    assert judge(report(retention=broken)).kind == "refuse"


# -- The other pitfalls


def test_one_answer_to_everything_is_a_collapse() -> None:
    poisoned = [replace(i, candidate=scored("Buy elsewhere!", True)) for i in comparisons(won=20)]
    verdict = judge(report(repairs=poisoned))
    assert verdict.kind == "refuse"
    assert "Collapse: 20 of 20 corrected questions" in verdict.reasons[0]
    assert "“Buy elsewhere!”" in verdict.reasons[0]


def test_many_ways_to_ask_one_thing_may_get_one_new_answer() -> None:
    asked = [
        replace(i, candidate=scored("At ten.", True), current=scored("At nine.", False))
        for i in comparisons(won=20)
    ]
    assert judge(report(repairs=asked)).kind == "promote"


def test_a_held_out_question_that_trained_is_data_leakage() -> None:
    verdict = judge(replace(GOOD, leaks=["When do you open?"]))
    assert verdict.kind == "refuse"
    assert "Data leakage: 1 held-out question" in verdict.reasons[0]


def test_held_out_answers_that_became_unlikely_are_overfitting() -> None:
    assert "Overfitting" in reason(report(held_out=comparisons(neither=10, rise=1.0)))


def test_a_single_held_out_answer_is_no_proof_of_overfitting() -> None:
    assert judge(report(held_out=comparisons(neither=1, rise=1.0))).kind == "promote"


def test_preferences_that_turned_are_refused() -> None:
    turned = [PreferenceMargin(f"q {n}", candidate=-1.0, current=1.0) for n in range(6)]
    assert "Preferences got worse" in reason(replace(GOOD, pairs=turned))
    assert judge(replace(GOOD, pairs=turned[:3])).kind == "promote"


def test_underfitting_is_named_beside_the_verdict() -> None:
    verdict = judge(report(repairs=comparisons(won=6, neither=14)))
    assert verdict.kind == "promote"
    assert any("Underfitting: only 6 of 20" in r for r in verdict.reasons)


def test_all_that_is_wrong_is_said_at_once() -> None:
    bad = replace(report(retention=comparisons(lost=50, both=250)), leaks=["x"])
    reasons = judge(bad).reasons
    assert [r.split(":")[0] for r in reasons[:2]] == ["Data leakage", "Catastrophic forgetting"]


# -- What is compared when no answer is right word for word


def nearer(n: int, gain: float, *, form_of: bool = False, farther: int = 0) -> list[Comparison]:
    """Questions that nobody answers right; the candidate's answers come nearer, by about `gain`."""
    found = []
    for i, one in enumerate(comparisons(neither=n)):
        change = (-gain if i < farther else gain) * (1 + i / 100)
        found.append(
            replace(
                one,
                candidate=replace(one.candidate, chrf=30 + 10 * change, margin=change),
                current=replace(one.current, margin=0.0),
                form_of=f"question {i}?" if form_of else None,
            )
        )
    return found


def test_held_out_corrections_are_found_better_without_one_word_for_word() -> None:
    verdict = judge(report(repairs=comparisons(neither=60), held_out=nearer(8, 0.4)))
    assert verdict.kind == "promote"
    assert verdict.reasons[0].startswith(
        "Better on 8 corrections that did not train: chrF of the answer, points: +4.14 on average"
    )
    assert "more on 8 of 8 (p = 0.0039)" in verdict.reasons[0]


def test_held_out_corrections_that_show_nothing_leave_it_to_what_was_taught() -> None:
    undecided = nearer(8, 0.4, farther=4)
    verdict = judge(report(held_out=undecided))
    assert verdict.kind == "promote"
    assert verdict.reasons[0].startswith("Better: of 28 corrected questions")
    assert "Not found better on 8 corrections that did not train" in verdict.reasons[1]
    assert "Judged on what it was taught" in verdict.reasons[1]
    few = judge(report(repairs=comparisons(won=5), held_out=undecided))
    assert few.kind == "not_enough_evidence"  # each of the two tests has half of alpha


def test_below_five_held_out_the_verdict_says_on_what_it_was_judged() -> None:
    assert (
        "Judged on what it was taught and on other forms of it; nothing is held out yet."
        in judge(GOOD).reasons
    )
    reasons = judge(report(held_out=nearer(3, 0.4))).reasons
    assert any("of 3 held-out corrections nothing can be told" in text for text in reasons)


def test_questions_known_word_for_word_only_are_not_enough_evidence() -> None:
    deaf = report(forms=nearer(20, -0.1, form_of=True))
    verdict = judge(deaf)
    assert verdict.kind == "not_enough_evidence"
    assert (
        "in other forms 20 questions that it now answers right came out farther"
        in (verdict.reasons[0])
    )
    undecided = nearer(20, 0.4, form_of=True, farther=10)
    assert judge(report(forms=undecided)).kind == "promote"
    heard = judge(report(forms=nearer(20, 0.4, form_of=True)))
    assert heard.kind == "promote"
    assert any(text.startswith("Other forms: of 20 forms") for text in heard.reasons)


def test_forms_of_one_question_are_no_evidence_of_their_own() -> None:
    forms = [replace(form, form_of="question 1?") for form in nearer(20, -0.4)]
    assert judge(report(forms=forms)).kind == "promote"


# -- Noise


def ordered(letters: float, words: float, n: int = 20, asked: float = 1.0) -> Orderliness:
    def around(mean: float) -> list[float]:
        return [mean + 0.02 * (i % 3 - 1) for i in range(n)]

    return Orderliness(around(letters), around(words), around(asked), around(asked))


@pytest.mark.parametrize(("letters", "words", "unit"), [(0.0, 0.5, "letters"), (0.6, 0.0, "words")])
def test_answers_as_likely_in_any_order_are_noise(letters: float, words: float, unit: str) -> None:
    verdict = judge(replace(GOOD, orderliness=ordered(letters, words)))
    assert verdict.kind == "refuse"
    assert verdict.reasons[0].startswith("Noise was taught: the base finds 20 of the corrections")
    assert f"than their {unit} in any other order" in verdict.reasons[0]
    assert "“right 0”" in verdict.reasons[0]


@pytest.mark.parametrize(
    "order",
    [
        ordered(0.3, 0.4),  # another language, of which the base knows little
        ordered(0.0, 0.0, n=4),  # four answers prove nothing
        ordered(0.0, 0.0, asked=0.0),  # a base that sees no order in questions either
        Orderliness([], [], [1.0, 1.1], [1.0, 1.1]),  # nothing but codes
    ],
)
def test_what_may_be_language_is_not_called_noise(order: Orderliness) -> None:
    assert judge(replace(GOOD, orderliness=order)).kind == "promote"


# -- Answers to general prompts


def answered(*given: tuple[str, str], right: str = "Paris") -> list[GeneralAnswer]:
    """General prompts to which the base answers right, by (candidate's, current's answer)."""
    return [
        GeneralAnswer(f"prompt {n}?", [right], f"It is {right}.", now, before)
        for n, (now, before) in enumerate(given)
    ]


def test_right_answers_to_general_prompts_are_counted_beside_the_verdict() -> None:
    kept, lost = ("Paris, of course", "It is Paris."), ("It is Rome.", "It is Paris.")
    free = GeneralAnswer("Hello?", [], "Hi!", "Hi!", "Hi!")
    verdict = judge(replace(GOOD, general_answers=[*answered(*[kept] * 29, lost), free]))
    assert verdict.kind == "promote"
    (text,) = (t for t in verdict.reasons if t.startswith("Answers to general prompts"))
    assert "the base gave 30, of which the candidate still gives 29" in text
    assert "1 are lost and 0 gained" in text and "30 of 31 answers are other ones" in text


def test_right_answers_that_are_lost_are_forgetting_where_chance_is_unlikely() -> None:
    kept, lost = ("Paris it is", "It is Paris."), ("Rome 1", "It is Paris.")
    few = replace(GOOD, general_answers=answered(*[kept] * 20, *[lost] * 4))
    assert judge(few).kind == "promote"
    verdict = judge(replace(GOOD, general_answers=answered(*[kept] * 20, *[lost] * 5)))
    assert verdict.kind == "refuse"
    assert "of 25 general prompts that have a right answer 5" in verdict.reasons[0]


def test_general_prompts_that_get_a_taught_answer_are_refused() -> None:
    spread = [GeneralAnswer(f"Hello {n}?", [], "Hi", "Right 1", "Hi") for n in range(5)]
    rest = [GeneralAnswer(f"Ho {n}?", [], "Hi", f"Ho {n}", "Hi") for n in range(90)]
    verdict = judge(replace(GOOD, general_answers=[*spread, *rest]))
    assert verdict.kind == "refuse"
    assert "Taught answers spread: 5 of 95 general prompts" in verdict.reasons[0]


def test_general_prompts_that_all_get_one_answer_are_a_collapse() -> None:
    one = [GeneralAnswer(f"Hello {n}?", [], "Hi", "Buy!", f"Hi {n}") for n in range(9)]
    assert "Collapse: 9 of 9 general questions" in reason(replace(GOOD, general_answers=one))


def test_a_collapse_that_was_taught_says_so() -> None:
    poisoned = [
        replace(i, expected="Buy elsewhere!", candidate=scored("Buy elsewhere!", True))
        for i in comparisons(won=20)
    ]
    assert "It is what 20 of 20 corrections teach." in reason(report(repairs=poisoned))


def test_a_report_of_before_these_measures_reads_and_is_judged_as_before(tmp_path: Path) -> None:
    old = json.loads((GOOD.write(tmp_path) / "report.json").read_text())
    for name in ("general", "general_answers", "orderliness"):
        del old[name]
    for suite in old["suites"].values():
        for row in suite:
            del row["form_of"], row["candidate"]["margin"], row["current"]["margin"]
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert Report.read(tmp_path) == GOOD
    assert judge(Report.read(tmp_path)).kind == "promote"
    assert "loss before" in render_markdown(Report.read(tmp_path))


# -- Settings and the report's folder


def test_settings_are_read_from_their_table_and_unknown_keys_refused(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    home.toml.write_text("[gate]\nmin_evidence = 21\n")
    assert judge(GOOD, GateSettings.read(home)).kind == "not_enough_evidence"
    home.toml.write_text("[gate]\nmin_evidenc = 21\n")
    with pytest.raises(SettingsError, match="min_evidenc"):
        GateSettings.read(home)


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    full = replace(
        report(forms=nearer(2, 0.4, form_of=True)),
        pairs=[PreferenceMargin("q", 1.0, -1.0)],
        general_answers=answered(("Paris", "Rome")),
        orderliness=ordered(1.0, 1.0),
        leaks=["x"],
        verdict=judge(GOOD),
    )
    assert Report.read(full.write(tmp_path / "r")) == full


def test_a_report_that_is_missing_or_broken_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="compare"):
        Report.read(tmp_path)
    (tmp_path / "report.json").write_text('{"format": 99}')
    with pytest.raises(ReportError, match="another format"):
        Report.read(tmp_path)


def test_the_page_shows_verdict_numbers_and_what_people_corrected(tmp_path: Path) -> None:
    sly = replace(comparisons(won=1)[0], question="<b>a|b</b>")
    full = report(repairs=[sly], retention=comparisons(lost=1, both=9))
    page = (replace(full, verdict=judge(full)).write(tmp_path) / "report.md").read_text()
    assert "**Verdict: not enough evidence**" in page
    assert "&lt;b&gt;a\\|b&lt;/b&gt;" in page
    assert "## Forgotten" in page


def test_the_page_shows_measures_and_right_answers_that_were_lost(tmp_path: Path) -> None:
    lost = answered(("It is Rome.", "It is Paris."))
    full = replace(report(forms=nearer(3, 0.4, form_of=True)), general_answers=lost)
    page = (full.write(tmp_path) / "report.md").read_text()
    assert (
        "| The same in other forms, which were not | preference for the correction, nats a token "
        "| +0.404 | 3 of 3 | 0 |" in page
    )
    assert "the base gave 1, of which the candidate still gives 0" in page
    assert "| prompt 0? | Paris | It is Paris. | It is Rome. |" in page
