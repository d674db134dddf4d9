"""Decides whether a candidate may replace the adapter in service, and why.

Both adapters answered the same questions, so every test is paired. The rules, in their order; the
first seven refuse (`refusals.py`):

1. Data leakage. A held-out question has trained: the report cannot be believed.
2. Noise. The base finds the answers that were taught no likelier than their letters, or their
   words, in another order: the whole one-sided interval of the mean lies below `noise`
   (`noise_words`) times that of the questions asked. Sentences of any language have an order;
   numbers and codes are left out, and a base that sees no order in the questions says nothing.
3. Collapse. One answer stands where the adapter in service gave many: at least `collapse_count`
   different answers and `collapse_share` of all those of the suite became one. An answer that was
   already given to several questions (an honest "I don't know") may grow to twice as many.
4. Catastrophic forgetting. On the retention questions the share of right answers fell by more
   than `margin`, and McNemar's exact test says that chance alone is an unlikely cause (p <=
   `alpha`); or perplexity on their answers rose by more than `perplexity` as a factor, with the
   whole one-sided interval of the paired mean above it. Or, on general prompts, the probabilities
   lie more than `divergence` from the base's, with the whole one-sided interval of the mean; or of
   the answers to those that can be checked as many became wrong as on the retention questions.
5. Spreading. At least five of the general prompts, which nobody has taught, get a taught answer.
6. Overfitting. Perplexity on the held-out corrections rose by that much, the same way.
7. Preferences. McNemar's exact test finds fewer held-out choices preferred as people did.

Then the evidence. Its primary measure depends on what there is:

8. Fewer than `min_evidence` held-out corrections, as below `[curate] held_out_from`: the corrected
   questions themselves, word for word. One is won when only the candidate's answer is the
   correction, lost when only the current one's is. Fewer than `min_evidence` won and lost: not
   enough evidence. (Five: even a clean sweep of four has p = 1/16.) Wins no more than losses:
   refused. More, but the exact sign test has p > `alpha`: not enough evidence. Nor is it enough
   where other forms of the questions won, as somebody else would type them, came out farther from
   the correction: the sign test of `measure`, averaged over the forms of each question. The
   verdict says that it was judged on what it was taught.
9. From there on: `measure` on the held-out corrections, by default how near the answers come to
   them (chrF); Wilcoxon's signed-rank test. No answer has to be right word for word. As a fact need
   not tell anything about another, an adapter may also prove itself by rule 8; each of the two
   tests has half of `alpha`.
10. Too small a retention suite: when the interval of the fall (Agresti and Min 2005) reaches past
   `blind`, or that of the divergence past `divergence`, harm cannot be ruled out: not enough
   evidence. With neither retention questions nor general prompts the verdict says that forgetting
   was not looked for; `need_retention` makes that a refusal to judge.
11. Otherwise the candidate is promoted.

No measure of the evidence tells an honest correction from a poisoned one: it measures by what was
taught. An over-trained adapter, too, comes nearer to what is held out. So rules 1 to 7 come first,
whatever the evidence (docs/judging.md has the figures).
Underfitting (less than half of the trained corrections answered right) is named beside any
verdict: the candidate may still be better than what is in service. No correction for several
tests: each of 3 to 7 can only refuse, so the chance to promote wrongly stays at most `alpha`.
"""

import math
from collections.abc import Iterator, Sequence

from evaluation import metrics
from evaluation.comparison import is_win
from evaluation.gate_settings import GateSettings as GateSettings
from evaluation.measures import MEASURES, differences, mean_differences_by_question
from evaluation.refusals import refusal_reasons
from evaluation.report import Report, Verdict
from evaluation.tallies import (
    accuracy_drop,
    count,
    count_changed_answers,
    count_changes,
    known_answers,
    mean_divergence,
)


def judge(report: Report, settings: GateSettings | None = None) -> Verdict:
    """Return the verdict with all its reasons, the deciding ones first."""
    gate = settings or GateSettings()
    harm = list(refusal_reasons(report, gate))
    remarks = [*_underfitting_remarks(report), *_retention_summary(report, gate)]
    if harm:
        return Verdict("refuse", [*harm, *remarks])
    verdict = _weigh_evidence(report, gate)
    return Verdict(verdict.kind, [*verdict.reasons, *_measure_remarks(report, gate), *remarks])


# -- The evidence


def _weigh_evidence(report: Report, gate: GateSettings) -> Verdict:
    held_out = differences(gate.measure, report.suites["held_out"])
    if len(held_out) < gate.min_evidence:
        verdict = _weigh_taught(report, gate, gate.alpha)
        basis = "Judged on what it was taught and on other forms of it; nothing is held out yet."
        if report.suites["held_out"]:
            basis = (
                "Judged on what it was taught and on other forms of it; of "
                f"{count(len(held_out), 'held-out correction')} nothing can be told."
            )
        verdict = Verdict(verdict.kind, [*verdict.reasons, basis])
    else:
        verdict = _weigh_held_out(held_out, report, gate)
    if verdict.kind == "promote" and (blind := _undetectable_forgetting(report, gate)):
        return Verdict("not_enough_evidence", [blind, *verdict.reasons])
    return verdict


def _weigh_held_out(held_out: Sequence[float], report: Report, gate: GateSettings) -> Verdict:
    """Weigh what never trained, and if that shows nothing, what was taught."""
    found = _describe_differences(gate.measure, held_out, gate.alpha / 2)
    p = _signed_rank(held_out)
    where = f"on {count(len(held_out), 'correction')} that did not train"
    if p <= gate.alpha / 2:
        return Verdict("promote", [f"Better {where}: {found} (p = {p:.2g})."])
    taught = _weigh_taught(report, gate, gate.alpha / 2)
    remark = f"Not found better {where}: {found} (p = {p:.2g})."
    if taught.kind == "promote":
        remark += " Judged on what it was taught and on other forms of it."
    return Verdict(taught.kind, [*taught.reasons, remark])


def _weigh_taught(report: Report, gate: GateSettings, alpha: float) -> Verdict:
    comparisons = report.corrections
    wins, losses = count_changes(comparisons)
    p = metrics.sign_test(wins, losses)
    found = (
        f"of {count(len(comparisons), 'corrected question')} the candidate alone is right on "
        f"{wins} and the adapter in service alone on {losses}"
    )
    if wins + losses < gate.min_evidence:
        needed = f"they must differ on {gate.min_evidence} at least"
        return Verdict("not_enough_evidence", [f"Too few differences: {found}; {needed}."])
    if wins <= losses:
        return Verdict("refuse", [f"Not better: {found}."])
    if p > alpha:
        return Verdict("not_enough_evidence", [f"It may be chance: {found} (p = {p:.2g})."])
    if only := _worse_in_other_forms(report, gate):
        return Verdict("not_enough_evidence", [f"{only} As they were asked: {found}."])
    return Verdict("promote", [f"Better: {found} (p = {p:.2g})."])


def _worse_in_other_forms(report: Report, gate: GateSettings) -> str | None:
    """Return how other forms of the questions that are won came out, where that is worse."""
    won = {comparison.question for comparison in report.suites["repairs"] if is_win(comparison)}
    forms = [form for form in report.suites.get("forms", []) if form.form_of in won]
    means = mean_differences_by_question(gate.measure, forms)
    better, worse = (sum(sign * mean > 0 for mean in means) for sign in (1, -1))
    if (p := metrics.sign_test(worse, better)) > gate.alpha:
        return None
    return (
        f"Known word for word only: in other forms {count(len(means), 'question')} that it now "
        f"answers right came out farther from the correction on {worse} and nearer on {better} "
        f"({MEASURES[gate.measure].title}; p = {p:.2g})."
    )


def _signed_rank(values: Sequence[float]) -> float:
    return metrics.signed_rank_test(values) if all(map(math.isfinite, values)) else 1.0


def _describe_differences(measure: str, values: Sequence[float], alpha: float) -> str:
    interval = metrics.mean_interval(values, alpha)
    better = sum(value > 0 for value in values)
    return (
        f"{MEASURES[measure].title}: {interval.value:+.2f} on average, {interval.low:+.2f} or more "
        f"at {1 - alpha:.1%} confidence, more on {better} of {len(values)}"
    )


def _undetectable_forgetting(report: Report, gate: GateSettings) -> str | None:
    if not _looks_for_forgetting(report):
        return f"{_NO_RETENTION} [gate] need_retention is on." if gate.need_retention else None
    if comparisons := report.suites["retention"]:
        drop = accuracy_drop(comparisons, gate)
        if drop.high > gate.blind:
            return (
                f"Forgetting cannot be ruled out: {count(len(comparisons), 'retention question')} "
                f"leave room for a fall of up to {drop.high:.1%}; {gate.blind:.0%} must be ruled "
                "out. Add some."
            )
    if report.general and (high := mean_divergence(report.general, gate).high) > gate.divergence:
        return (
            f"Forgetting cannot be ruled out: {count(len(report.general), 'general prompt')} "
            f"leave room for {high:.3f} nats a token from the base; {gate.divergence:g} is allowed."
        )
    return None


# -- Remarks beside the verdict


def _underfitting_remarks(report: Report) -> Iterator[str]:
    comparisons = report.suites["repairs"]
    right = sum(comparison.candidate.right for comparison in comparisons)
    if comparisons and right < len(comparisons) / 2:
        yield (
            f"Underfitting: only {right} of {count(len(comparisons), 'trained correction')} is "
            "answered right. More epochs or a higher learning_rate in [training.sft] may help."
        )


def _measure_remarks(report: Report, gate: GateSettings) -> Iterator[str]:
    """Yield what other forms and held-out corrections show, also where it decides nothing."""
    for name, title, asked in (
        ("forms", "Other forms", "forms of trained questions"),
        ("held_out", "Held out", "corrections that did not train"),
    ):
        if not (comparisons := report.suites.get(name)):
            continue
        now = sum(comparison.candidate.right for comparison in comparisons)
        before = sum(comparison.current.right for comparison in comparisons)
        text = (
            f"{title}: of {len(comparisons)} {asked} {now} are answered with the correction "
            f"word for word, {before} by the adapter in service"
        )
        if values := differences(gate.measure, comparisons):
            text += f"; {_describe_differences(gate.measure, values, gate.alpha)}"
        yield f"{text}."


_NO_RETENTION = "Forgetting was not looked for: there are no retention questions."


def _looks_for_forgetting(report: Report) -> bool:
    return bool(report.suites["retention"] or report.general)


def _retention_summary(report: Report, gate: GateSettings) -> Iterator[str]:
    if not _looks_for_forgetting(report):
        yield _NO_RETENTION
    if report.general:
        found = mean_divergence(report.general, gate)
        served = metrics.mean_interval([each.current for each in report.general]).value
        left_out = f" {report.taught} like what was taught are left out." if report.taught else ""
        yield (
            f"General prompts: on {len(report.general)} its probabilities lie {found.value:.3f} "
            f"nats a token from the base's, at most {found.high:.3f} at {1 - gate.alpha:.0%} "
            f"confidence; those of the adapter in service {served:.3f}.{left_out}"
        )
    if (known := known_answers(report.general_answers)).asked:
        drop = known.drop(gate)
        yield (
            f"Answers to general prompts: of {known.asked} that have a right one the base gave "
            f"{known.base}, of which the candidate still gives {known.kept}; against the adapter "
            f"in service {known.lost} are lost and {known.gained} gained, a fall beyond "
            f"{max(drop.high, 0):.1%} is ruled out at {1 - gate.alpha:.0%} confidence. "
            f"{count_changed_answers(report.general_answers)} of {len(report.general_answers)} "
            "answers are other ones than the base's."
        )
    comparisons = report.suites["retention"]
    if not comparisons:
        return
    before = sum(comparison.current.right for comparison in comparisons)
    now = sum(comparison.candidate.right for comparison in comparisons)
    drop = accuracy_drop(comparisons, gate)
    yield (
        f"Retention: {before} of {len(comparisons)} right before, {now} now; "
        f"{_describe_drop(drop.value)}; "
        f"a fall beyond {max(drop.high, 0):.1%} is ruled out at {1 - gate.alpha:.0%} confidence."
    )


def _describe_drop(fall: float) -> str:
    return f"a rise of {-fall:.1%}" if fall < 0 else f"a fall of {fall:.1%}"
