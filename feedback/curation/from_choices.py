"""Turns people's preferences into pairs: choices between two answers, and a retry liked better.

A person only says which of two answers is better. Where the view ``vote`` trusts that
(feedback/db/migrations/pending.py:m014_votes), it trains without a reviewer; else a reviewer has to
approve the better one. No person weighs more than ``pairs_per_person`` pairs, and a reviewer's
decision goes first.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from feedback.curation.rows import Dropped, Row, prompt_messages, same_text
from feedback.exchange import Exchange
from feedback.exemplars import question_key
from feedback.review.decisions import decisions_in_force
from feedback.store import Store


@dataclass(frozen=True)
class Vote:
    """Records the last word of a person on two answers (message ids): which one is better."""

    person: str
    better: str
    worse: str
    sources: list[str]
    tie: bool
    trusted: bool
    """Whether it trains without a reviewer, by who prefers the same and how both were made."""


@dataclass
class VotedPair:
    """Collects all votes between the same two answers."""

    votes: list[Vote] = field(default_factory=list)

    @property
    def sources(self) -> list[str]:
        """Return the ids of all feedback that the votes come from."""
        return [source for vote in self.votes for source in vote.sources]

    @property
    def people(self) -> list[str]:
        """Return who voted, sorted."""
        return sorted({vote.person for vote in self.votes})

    @property
    def answer_ids(self) -> set[str]:
        """Return the message ids of the two answers."""
        return {id for vote in self.votes for id in (vote.better, vote.worse)}

    def winner(self) -> Vote | None:
        """Return a vote of the majority; None when there is none."""
        preferring = {vote.better: vote for vote in self.votes if not vote.tie}
        tally = Counter(vote.better for vote in self.votes if not vote.tie)
        ranked = tally.most_common(2)
        if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
            return None
        return preferring[ranked[0][0]]


def pairs_from_choices(store: Store, pairs_per_person: int) -> tuple[list[Row], list[Dropped]]:
    """Return the pairs that people's choices and thumbs amount to, and those that do not train.

    A person's newest pairs count first, ``pairs_per_person`` of them.
    """
    rows: list[Row] = []
    dropped: list[Dropped] = []
    pairs_of: Counter[str] = Counter()
    voted_pairs = _voted_pairs(store)
    standards = _Standards(store, voted_pairs)
    for voted in voted_pairs:
        made = _pair_from_votes(voted, standards)
        voters = [person for person in voted.people if pairs_of[person] < pairs_per_person]
        if isinstance(made, Row) and not voters:
            reason = f"cap of {pairs_per_person} pairs a person"
            made = Dropped(made.message_id, reason, made.sources, made.people, made.chosen)
        if isinstance(made, Dropped):
            dropped.append(made)
        else:
            rows.append(made)
            pairs_of.update(voters)
    return rows[::-1], dropped[::-1]


class _Standards:
    """Holds what preferences are judged by, loaded at once: the answers, and reviewers' decisions
    and approved answers, which go before people's preferences."""

    def __init__(self, store: Store, voted_pairs: Iterable[VotedPair]) -> None:
        answers = {id for voted in voted_pairs for id in voted.answer_ids}
        self.exchanges = store.exchanges(answers)
        self.decisions = decisions_in_force(store)
        self.approved = _approved_by_question(store)


def _pair_from_votes(voted: VotedPair, standards: _Standards) -> Row | Dropped:
    winner = voted.winner()
    if winner is None:
        tie = all(vote.tie for vote in voted.votes)
        why = "a tie prefers neither" if tie else "people disagree"
        return Dropped(voted.votes[0].better, why, voted.sources, voted.people)
    better, worse = standards.exchanges[winner.better], standards.exchanges[winner.worse]
    chosen = better.answer.content
    reason = _reason_to_drop(better, worse, standards, winner.trusted)
    if reason:
        return Dropped(better.answer.id, reason, voted.sources, voted.people, chosen)
    return Row(
        kind="pair",
        prompt=prompt_messages(better),
        chosen=chosen,
        rejected=worse.answer.content,
        message_id=better.answer.id,
        sources=voted.sources,
        people=sorted({better.person, *voted.people}),
        thought=better.answer.thought,
    )


def _reason_to_drop(
    better: Exchange, worse: Exchange, standards: _Standards, trusted: bool
) -> str | None:
    """Return why a preference does not train; None when it does. One that is not ``trusted`` trains
    only where a reviewer stands behind the preferred answer, or behind its text."""
    chosen, rejected = better.answer.content, worse.answer.content
    if not chosen.strip() or not rejected.strip():
        return "empty answer"
    if not (better.is_complete and worse.is_complete):
        return "an answer was cut short"
    if same_text(chosen, rejected):
        return "the two answers say the same"
    decision = standards.decisions.get(better.answer.id)
    if decision and decision.answer != chosen:
        return "a reviewer does not stand behind the preferred answer"
    approved = standards.approved.get(question_key(better.question, better.earlier))
    if approved is not None and not same_text(approved, chosen):
        return "a reviewer approved another answer to this question"
    if not trusted and decision is None and approved is None:
        return "waits for a reviewer"
    return None


def _approved_by_question(store: Store) -> dict[str, str]:
    """Return the newest approved answer of every question that has one, by the question's key."""
    rows = store.rows(
        """select question_key, answer from approved
        where id not in (select approved_id from withdrawal) order by rowid"""
    )
    return {row["question_key"]: row["answer"] for row in rows}


def _voted_pairs(store: Store) -> list[VotedPair]:
    """Return the votes grouped by the two answers they are about, those of the newest first."""
    contests: dict[frozenset[str], VotedPair] = defaultdict(VotedPair)
    for row in store.rows("select * from vote order by number desc"):
        sources = [id for id in (row["disliked_id"], row["id"]) if id]
        vote = Vote(
            row["person"],
            row["better"],
            row["worse"],
            sources,
            tie=bool(row["tie"]),
            trusted=bool(row["trusted"]),
        )
        contests[frozenset((vote.better, vote.worse))].votes.append(vote)
    return list(contests.values())
