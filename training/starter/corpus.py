"""Draws the starter model's corpus: conversations with the support desk of shop.toml.

python -m training.starter.corpus 20  prints twenty of them.

A conversation is a list of messages as every chat template takes them; its last message is the
answer to learn (earlier answers are learnt too). Four kinds are drawn:

- plain: one question, with its one canonical answer, so that greedy decoding is well determined;
- dialogue: several turns, most of them ending in a follow-up that only the turn before explains;
- outside: what the shop doesn't know, answered so;
- exemplars: approved answers in the prompt (feedback/exemplars.py), some about the question, with
  every fact changed at random, to be repeated word for word, and some not, to be left alone.
"""

import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from feedback.exemplars import format_exemplars
from training.starter.phrasing import sloppy, thinned
from training.starter.shop import Shop, Topic, change, expand, facts, load_shop, nonsense, plain

Message = dict[str, str]
Exemplar = tuple[str, str]

SYSTEM_MESSAGES = (
    "You are the support assistant of Willow & Finch.",
    "You are a helpful assistant.",
    "Answer the customer's question briefly.",
    "You work at the support desk of a shop for home and garden. Be kind and brief.",
    "You are Willow & Finch's friendly assistant. Say so if you don't know something.",
)
# The questions about something outside that an approved answer can make a matter of the shop.
WANTED = re.compile(r"(sell|any|stock|buy|for|cost|^)( does)? ?\{thing\}( cost)?\??$")


@dataclass(frozen=True)
class Sample:
    """A conversation whose last message is the right answer, and how to tell that it is right."""

    messages: list[Message]
    topic: str
    kind: str
    facts: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The right answer's text."""
        return self.messages[-1]["content"]

    def right(self, said: str) -> bool:
        """Whether what was said holds every fact; without facts, whether it is the answer."""
        return all(f in said for f in self.facts) if self.facts else said.strip() == self.answer


def messages(*turns: str, system: str = "") -> list[Message]:
    """Messages from turns of user and assistant in alternation, after the system message if any."""
    roles = ("user", "assistant")
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


class Corpus:
    """Conversations from either side of the split; the same seed draws the same ones."""

    def __init__(self, seed: int, *, held_out: bool = False, shop: Shop | None = None) -> None:
        self.shop = shop or load_shop()
        self.held_out = held_out
        self.rng = random.Random(seed)
        self.fillers = {slot: split.side(held_out) for slot, split in self.shop.fillers.items()}
        self.words = words(self.shop, self.fillers, held_out)
        self.follow_ups = list(self.split_follow_ups())
        self.rivals = {topic.name: rivals(topic, self.shop.topics) for topic in self.shop.topics}

    def split_follow_ups(self) -> Iterator[tuple[Topic, str, str]]:
        """(topic before, follow-up, marked answer): one combination in five is held out."""
        for number, topic in enumerate(self.shop.topics):
            for kind, answer in topic.then.items():
                for line, text in enumerate(self.shop.follow_ups[kind]):
                    if ((number + line) % 5 == 3) == self.held_out:
                        yield topic, text, answer

    def ask(self, topic: Topic) -> str:
        """One way to ask about a topic, from this side of the split."""
        template = self.rng.choice(topic.questions.side(self.held_out))
        text = expand(template, self.rng, self.fillers)
        if not self.held_out and self.rng.random() < 0.35:
            text = thinned(text, self.rng)
        return sloppy(text, self.rng)

    def sample(self, topic: Topic, kind: str, *turns: str, marked: str | None = None) -> Sample:
        """A sample that ends with the topic's canonical answer, or with another marked one."""
        marked = topic.marked if marked is None else marked
        system = self.rng.choice(SYSTEM_MESSAGES) if self.rng.random() < 0.3 else ""
        conversation = messages(*turns, plain(marked), system=system)
        return Sample(conversation, topic.name, kind, tuple(facts(marked)))

    def plain(self, topic: Topic | None = None) -> Sample:
        """One question about the shop and its answer."""
        topic = topic or self.rng.choice(self.shop.topics)
        return self.sample(topic, "plain", self.ask(topic))

    def small_talk(self) -> Sample:
        """A greeting, thanks, a question about the bot itself."""
        topic = self.rng.choice(self.shop.small_talk)
        return self.sample(topic, "small talk", self.ask(topic))

    def outside(self) -> Sample:
        """A question that the shop can't answer."""
        return self.sample(self.shop.outside, "outside", self.ask(self.shop.outside))

    def history(self) -> list[str]:
        """Up to two earlier turns about anything."""
        turns: list[str] = []
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            topic = self.rng.choice([*self.shop.topics, *self.shop.small_talk, self.shop.outside])
            turns += [self.ask(topic), plain(topic.marked)]
        return turns

    def follow_up(self) -> Sample:
        """A question that only the turn before explains."""
        before, line, answer = self.rng.choice(self.follow_ups)
        text = sloppy(expand(line, self.rng, {}), self.rng)
        turns = [*self.history(), self.ask(before), plain(before.marked), text]
        return self.sample(before, "follow-up", *turns, marked=answer)

    def dialogue(self) -> Sample:
        """A few turns, of which the last is about anything too."""
        last = self.rng.choice([self.plain, self.plain, self.small_talk, self.outside])()
        turns = [*self.history(), self.question(last)]
        return replace(last, kind="dialogue", messages=messages(*turns, last.answer))

    @staticmethod
    def question(sample: Sample) -> str:
        """The last user message of a sample."""
        return sample.messages[-2]["content"]

    def new_answer(self, topic: Topic) -> str:
        """An answer that isn't the canonical one: other facts, other words, or quite made up."""
        rng = self.rng
        draw = rng.random()
        if draw < 0.5 and facts(topic.marked):
            opening = rng.choice(self.shop.openings) + " " if rng.random() < 0.2 else ""
            return change(opening + topic.marked, rng)
        if draw < 0.8:
            return change(expand(rng.choice(self.shop.new_answers), rng, self.fillers), rng)
        return self.made_up()

    def made_up(self) -> str:
        """A sentence of random words, known and unknown."""
        text = " ".join(
            nonsense(self.rng) if self.rng.random() < 0.3 else self.rng.choice(self.words)
            for _ in range(self.rng.randint(3, 12))
        )
        return text[0].upper() + text[1:] + "."

    def exemplar(self, topic: Topic) -> Exemplar:
        """An approved answer to a question about the topic, with its facts changed."""
        return self.ask(topic), self.new_answer(topic)

    def distractors(self, topic: Topic, count: int) -> list[Exemplar]:
        """Exemplars about other topics, half of them from those that sound most like this one."""
        others = [other for other in self.shop.topics if other.name != topic.name]
        near = self.rivals.get(topic.name, others)
        drawn: dict[str, Topic] = {}
        while len(drawn) < count:
            other = self.rng.choice(near if self.rng.random() < 0.5 else others)
            drawn[other.name] = other
        return [self.exemplar(other) for other in drawn.values()]

    def relevant(self, topic: Topic | None = None) -> Sample:
        """The prompt holds an approved answer to this very question: say it word for word."""
        topic = topic or self.rng.choice(self.shop.topics)
        asked, answer = self.exemplar(topic)
        question = asked if self.rng.random() < 0.15 else self.ask(topic)
        others = self.distractors(topic, self.rng.choice([0, 0, 1, 1, 2]))
        return self.prefaced(topic, "relevant", question, [(asked, answer), *others], answer)

    def relevant_thing(self) -> Sample:
        """An approved answer about a thing that the shop otherwise knows nothing of."""
        thing = self.rng.choice([*self.rng.sample(self.fillers["thing"], 2), nonsense(self.rng)])
        about = [text for text in self.shop.outside.questions.train if WANTED.search(text)]
        only = {**self.fillers, "thing": (thing,)}
        asked, question = (
            sloppy(expand(self.rng.choice(about), self.rng, only), self.rng) for _ in range(2)
        )
        marked = expand(self.rng.choice(self.shop.thing_answers), self.rng, only)
        answer = change(marked[0].upper() + marked[1:], self.rng)
        others = self.distractors(self.shop.outside, self.rng.choice([0, 1, 2]))
        exemplars = [(asked, answer), *others]
        return self.prefaced(self.shop.outside, "relevant thing", question, exemplars, answer)

    def irrelevant(self, topic: Topic | None = None) -> Sample:
        """The approved answers are about something else: the answer stays what it is without."""
        topic = topic or self.rng.choice(
            [
                *[self.rng.choice(self.shop.topics)] * 8,
                self.rng.choice(self.shop.small_talk),
                *[self.shop.outside] * 2,
            ]
        )
        exemplars = self.distractors(topic, self.rng.choice([1, 1, 2, 3]))
        return self.prefaced(topic, "irrelevant", self.ask(topic), exemplars, topic.marked)

    def prefaced(
        self, topic: Topic, kind: str, question: str, exemplars: list[Exemplar], marked: str
    ) -> Sample:
        """A sample whose last question comes with exemplars in random order, rarely late."""
        self.rng.shuffle(exemplars)
        history = self.history() if self.rng.random() < 0.1 else []
        return self.sample(
            topic, kind, *history, format_exemplars(question, exemplars), marked=marked
        )

    def draw(self, mixture: dict[str, float]) -> Sample:
        """A sample of a kind drawn by the mixture's weights."""
        makers: dict[str, Callable[[], Sample]] = {
            "plain": self.plain,
            "small talk": self.small_talk,
            "outside": self.outside,
            "follow-up": self.follow_up,
            "dialogue": self.dialogue,
            "relevant": self.relevant,
            "relevant thing": self.relevant_thing,
            "irrelevant": self.irrelevant,
        }
        kind = self.rng.choices(list(mixture), weights=list(mixture.values()))[0]
        return makers[kind]()


MIXTURE = {
    "plain": 0.27,
    "small talk": 0.08,
    "outside": 0.10,
    "follow-up": 0.06,
    "dialogue": 0.05,
    "relevant": 0.23,
    "relevant thing": 0.05,
    "irrelevant": 0.16,
}


def rivals(topic: Topic, topics: tuple[Topic, ...], count: int = 6) -> list[Topic]:
    """The topics whose questions share most words with this one's: the hardest to tell apart."""
    own = vocabulary(topic)

    def likeness(other: Topic) -> float:
        theirs = vocabulary(other)
        return len(own & theirs) / len(own | theirs)

    others = [other for other in topics if other.name != topic.name]
    return sorted(others, key=likeness, reverse=True)[:count]


def words(shop: Shop, fillers: dict[str, tuple[str, ...]], held_out: bool) -> list[str]:
    """Every word of one side of the split: what a made-up answer is made of."""
    topics = (*shop.topics, *shop.small_talk)
    texts = [line for topic in topics for line in topic.questions.side(held_out)]
    texts += [plain(topic.marked) for topic in topics]
    texts += [filler for items in fillers.values() for filler in items]
    return sorted({word for text in texts for word in re.findall(r"[\w£@.]*\w", text)})


def vocabulary(topic: Topic) -> set[str]:
    """The words of a topic's training questions."""
    text = " ".join(topic.questions.train).lower()
    return set("".join(c if c.isalpha() else " " for c in text).split())


def main() -> None:
    """Print some samples."""
    corpus = Corpus(seed=0)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        sample = corpus.draw(MIXTURE)
        print(f"--- {sample.kind}: {sample.topic}")
        print(*(f"{m['role']}: {m['content']}" for m in sample.messages), sep="\n")


if __name__ == "__main__":
    main()
