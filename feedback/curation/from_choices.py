"""People's own preferences as pairs: choices between two answers, and a retry liked better.

The words of both answers are the model's; a person only says which is better. So these train
without a reviewer, but no person weighs more than ``pairs_per_person`` pairs, and a reviewer's
decision goes first.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from feedback.curation.rows import Dropped, Row, is_complete, prompt_messages, same_text
from feedback.exemplars import question_and_earlier, question_key
from feedback.review.decisions import decision_on
from feedback.store import Store


@dataclass(frozen=True)
class Vote:
    """One person prefers one answer (a message id) to another."""

    person: str
    better: str
    worse: str
    sources: list[str]
    tie: bool = False


@dataclass
class VotedPair:
    """All that people said between the same two answers."""

    votes: list[Vote] = field(default_factory=list)

    @property
    def sources(self) -> list[str]:
        return [source for vote in self.votes for source in vote.sources]

    @property
    def people(self) -> list[str]:
        return sorted({vote.person for vote in self.votes})

    def winner(self) -> tuple[str, str] | None:
        """(better, worse) by majority; None when there is none."""
        tally = Counter((vote.better, vote.worse) for vote in self.votes if not vote.tie)
        ranked = tally.most_common(2)
        if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
            return None
        return ranked[0][0]


def pairs_from_choices(store: Store, pairs_per_person: int) -> tuple[list[Row], list[Dropped]]:
    """Pairs that people's choices and thumbs amount to; the newest count first under the cap."""
    rows: list[Row] = []
    dropped: list[Dropped] = []
    pairs_of: Counter[str] = Counter()
    for contest in _group_votes([*_choice_votes(store), *_retry_votes(store)]):
        made = _pair_from_votes(store, contest)
        voters = [person for person in contest.people if pairs_of[person] < pairs_per_person]
        if isinstance(made, Row) and not voters:
            reason = f"cap of {pairs_per_person} pairs a person"
            made = Dropped(made.message_id, reason, made.sources, made.people, made.chosen)
        if isinstance(made, Dropped):
            dropped.append(made)
        else:
            rows.append(made)
            pairs_of.update(voters)
    return rows[::-1], dropped[::-1]


def _pair_from_votes(store: Store, contest: VotedPair) -> Row | Dropped:
    winner = contest.winner()
    if winner is None:
        tie = all(vote.tie for vote in contest.votes)
        why = "a tie prefers neither" if tie else "people disagree"
        return Dropped(contest.votes[0].better, why, contest.sources, contest.people)
    better, worse = (store.message(id) for id in winner)
    reason = _reason_to_drop(store, better.id, worse.id)
    if reason:
        return Dropped(better.id, reason, contest.sources, contest.people, better.content)
    owner = store.conversation(better.conversation_id).person
    return Row(
        kind="pair",
        prompt=prompt_messages(store, store.thread(better.id)),
        chosen=better.content,
        rejected=worse.content,
        message_id=better.id,
        sources=contest.sources,
        people=sorted({owner, *contest.people}),
    )


def _reason_to_drop(store: Store, better_id: str, worse_id: str) -> str | None:
    """Why a preference does not train, if so."""
    better, worse = store.message(better_id), store.message(worse_id)
    if not better.content.strip() or not worse.content.strip():
        return "empty answer"
    if not (is_complete(store, better) and is_complete(store, worse)):
        return "an answer was cut short"
    if same_text(better.content, worse.content):
        return "the two answers say the same"
    decision = decision_on(store, better_id)
    if decision and decision.answer != better.content:
        return "a reviewer does not stand behind the preferred answer"
    right = _approved_answer(store, better_id)
    if right is not None and not same_text(right, better.content):
        return "a reviewer approved another answer to this question"
    return None


def _approved_answer(store: Store, message_id: str) -> str | None:
    row = store.row(
        """select answer from approved where question_key = ?
        and id not in (select approved_id from withdrawal) order by rowid desc limit 1""",
        (question_key(*question_and_earlier(store.thread(message_id))),),
    )
    return str(row["answer"]) if row else None


def _group_votes(votes: Iterable[Vote]) -> list[VotedPair]:
    """Votes between the same two answers, together; a person's last word on them counts once."""
    latest: dict[tuple[frozenset[str], str], Vote] = {}
    for vote in votes:
        latest.setdefault((frozenset((vote.better, vote.worse)), vote.person), vote)
    contests: dict[frozenset[str], VotedPair] = defaultdict(VotedPair)
    for (pair, _), vote in latest.items():
        contests[pair].votes.append(vote)
    return list(contests.values())


def _choice_votes(store: Store) -> list[Vote]:
    """What people chose where they were asked, each person's newest choice first."""
    votes = []
    for row in store.rows("select * from feedback where kind = 'choice' order by rowid desc"):
        value = json.loads(row["value"])
        tie = value.get("tie", False)
        votes.append(Vote(row["person"], row["message_id"], value["over"], [row["id"]], tie))
    return votes


def _retry_votes(store: Store) -> list[Vote]:
    """Who disliked an answer and liked a later one to the same message."""
    rows = store.rows(
        """with thumbs as (
            select f.id, f.person, f.message_id, json_extract(f.value, '$.up') as up, m.parent_id,
                m.rowid as place, max(f.rowid) as given
            from feedback f join message m on m.id = f.message_id
            where f.kind = 'thumb' group by f.message_id, f.person)
        select liked.person, liked.message_id as better, disliked.message_id as worse,
            liked.id as up, disliked.id as down
        from thumbs liked join thumbs disliked using (person, parent_id)
        where liked.up = 1 and disliked.up = 0 and disliked.place < liked.place
        order by liked.given desc"""
    )
    return [
        Vote(row["person"], row["better"], row["worse"], [row["down"], row["up"]]) for row in rows
    ]
