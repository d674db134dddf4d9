"""Tests the gate's rules, each with a report that only it decides, and its words."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.gate import GateSettings, judge
from evaluation.report import (
    Comparison,
    Divergence,
    PreferenceMargin,
    Report,
    ReportError,
    ScoredAnswer,
)
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


# -- Settings and the report's folder


def test_settings_are_read_from_their_table_and_unknown_keys_refused(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    home.toml.write_text("[gate]\nmin_evidence = 21\n")
    assert judge(GOOD, GateSettings.read(home)).kind == "not_enough_evidence"
    home.toml.write_text("[gate]\nmin_evidenc = 21\n")
    with pytest.raises(SettingsError, match="min_evidenc"):
        GateSettings.read(home)


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    full = replace(GOOD, pairs=[PreferenceMargin("q", 1.0, -1.0)], leaks=["x"], verdict=judge(GOOD))
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
