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
from training.starter.augmentation import add_typing_noise, drop_words
from training.starter.shop import (
    Shop,
    Topic,
    change_facts,
    expand_template,
    extract_facts,
    invent_word,
    load_shop,
    remove_fact_marks,
)

Message = dict[str, str]
Exemplar = tuple[str, str]

SYSTEM_MESSAGES = (
    "You are the support assistant of Willow & Finch.",
    "You are a helpful assistant.",
    "Answer the customer's question briefly.",
    "You work at the support desk of a shop for home and garden. Be kind and brief.",
    "You are Willow & Finch's friendly assistant. Say so if you don't know something.",
)
# The questions about something outside that an approved answer can bring into the shop's range.
SHOP_QUESTION = re.compile(r"(sell|any|stock|buy|for|cost|^)( does)? ?\{thing\}( cost)?\??$")


@dataclass(frozen=True)
class Sample:
    """Holds a conversation that ends in the right answer, and the facts that make it right."""

    messages: list[Message]
    topic: str
    kind: str
    facts: tuple[str, ...]

    @property
    def answer(self) -> str:
        """Return the right answer's text."""
        return self.messages[-1]["content"]

    def is_right(self, answer: str) -> bool:
        """Tell whether an answer holds every fact; without facts, whether it is the right one."""
        if not self.facts:
            return answer.strip() == self.answer
        return all(fact in answer for fact in self.facts)


def to_messages(*turns: str, system: str = "") -> list[Message]:
    """Make messages of alternating turns, the user's first, after a system message if any."""
    roles = ("user", "assistant")
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


class Corpus:
    """Draws conversations from either side of the split; the same seed draws the same ones."""

    def __init__(self, seed: int, *, held_out: bool = False, shop: Shop | None = None) -> None:
        self.shop = shop or load_shop()
        self.held_out = held_out
        self.rng = random.Random(seed)
        self.fillers = {slot: split.lines(held_out) for slot, split in self.shop.fillers.items()}
        self.words = list_words(self.shop, self.fillers, held_out)
        self.follow_ups = list(self.split_follow_ups())
        self.similar_topics = {
            topic.name: most_similar_topics(topic, self.shop.topics) for topic in self.shop.topics
        }

    def split_follow_ups(self) -> Iterator[tuple[Topic, str, str]]:
        """Yield (topic before, follow-up, marked answer); one combination in five is held out."""
        for number, topic in enumerate(self.shop.topics):
            for kind, answer in topic.follow_up_answers.items():
                for line, text in enumerate(self.shop.follow_ups[kind]):
                    if ((number + line) % 5 == 3) == self.held_out:
                        yield topic, text, answer

    def phrase_question(self, topic: Topic) -> str:
        """Draw one way to ask about a topic, from this side of the split."""
        template = self.rng.choice(topic.questions.lines(self.held_out))
        text = expand_template(template, self.rng, self.fillers)
        if not self.held_out and self.rng.random() < 0.35:
            text = drop_words(text, self.rng)
        return add_typing_noise(text, self.rng)

    def make_sample(
        self, topic: Topic, kind: str, *turns: str, marked: str | None = None
    ) -> Sample:
        """Make a sample that ends with the topic's canonical answer, or with another marked one."""
        marked = topic.marked_answer if marked is None else marked
        system = self.rng.choice(SYSTEM_MESSAGES) if self.rng.random() < 0.3 else ""
        conversation = to_messages(*turns, remove_fact_marks(marked), system=system)
        return Sample(conversation, topic.name, kind, tuple(extract_facts(marked)))

    def single_question(self, topic: Topic | None = None) -> Sample:
        """Draw one question about the shop and its answer."""
        topic = topic or self.rng.choice(self.shop.topics)
        return self.make_sample(topic, "plain", self.phrase_question(topic))

    def small_talk(self) -> Sample:
        """Draw a greeting, thanks, or a question about the bot itself."""
        topic = self.rng.choice(self.shop.small_talk)
        return self.make_sample(topic, "small talk", self.phrase_question(topic))

    def outside(self) -> Sample:
        """Draw a question that the shop can't answer."""
        return self.make_sample(
            self.shop.outside, "outside", self.phrase_question(self.shop.outside)
        )

    def earlier_turns(self) -> list[str]:
        """Draw up to two earlier questions about anything, with their answers."""
        turns: list[str] = []
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            topic = self.rng.choice([*self.shop.topics, *self.shop.small_talk, self.shop.outside])
            turns += [self.phrase_question(topic), remove_fact_marks(topic.marked_answer)]
        return turns

    def follow_up(self) -> Sample:
        """Draw a question that only the turn before explains."""
        before, line, answer = self.rng.choice(self.follow_ups)
        text = add_typing_noise(expand_template(line, self.rng, {}), self.rng)
        turns = [
            *self.earlier_turns(),
            self.phrase_question(before),
            remove_fact_marks(before.marked_answer),
            text,
        ]
        return self.make_sample(before, "follow-up", *turns, marked=answer)

    def dialogue(self) -> Sample:
        """Draw a few turns, of which the last is about anything too."""
        last = self.rng.choice(
            [self.single_question, self.single_question, self.small_talk, self.outside]
        )()
        turns = [*self.earlier_turns(), self.last_question(last)]
        return replace(last, kind="dialogue", messages=to_messages(*turns, last.answer))

    @staticmethod
    def last_question(sample: Sample) -> str:
        """Return the last user message of a sample."""
        return sample.messages[-2]["content"]

    def alternative_answer(self, topic: Topic) -> str:
        """Draw an answer that isn't the canonical one: other facts, other words, or invented."""
        rng = self.rng
        draw = rng.random()
        if draw < 0.5 and extract_facts(topic.marked_answer):
            opening = rng.choice(self.shop.openings) + " " if rng.random() < 0.2 else ""
            return change_facts(opening + topic.marked_answer, rng)
        if draw < 0.8:
            return change_facts(
                expand_template(rng.choice(self.shop.alternative_answers), rng, self.fillers), rng
            )
        return self.random_sentence()

    def random_sentence(self) -> str:
        """Draw a sentence of random words, known and unknown."""
        text = " ".join(
            invent_word(self.rng) if self.rng.random() < 0.3 else self.rng.choice(self.words)
            for _ in range(self.rng.randint(3, 12))
        )
        return text[0].upper() + text[1:] + "."

    def draw_exemplar(self, topic: Topic) -> Exemplar:
        """Draw an approved answer to a question about the topic, with its facts changed."""
        return self.phrase_question(topic), self.alternative_answer(topic)

    def distractors(self, topic: Topic, count: int) -> list[Exemplar]:
        """Draw exemplars about other topics, half of them from the most similar ones."""
        others = [other for other in self.shop.topics if other.name != topic.name]
        near = self.similar_topics.get(topic.name, others)
        drawn: dict[str, Topic] = {}
        while len(drawn) < count:
            other = self.rng.choice(near if self.rng.random() < 0.5 else others)
            drawn[other.name] = other
        return [self.draw_exemplar(other) for other in drawn.values()]

    def relevant(self, topic: Topic | None = None) -> Sample:
        """Draw a prompt with an approved answer to its question, to be repeated word for word."""
        topic = topic or self.rng.choice(self.shop.topics)
        asked, answer = self.draw_exemplar(topic)
        question = asked if self.rng.random() < 0.15 else self.phrase_question(topic)
        others = self.distractors(topic, self.rng.choice([0, 0, 1, 1, 2]))
        return self.with_exemplars(topic, "relevant", question, [(asked, answer), *others], answer)

    def relevant_thing(self) -> Sample:
        """Draw an approved answer about a thing that the shop otherwise knows nothing of."""
        thing = self.rng.choice([*self.rng.sample(self.fillers["thing"], 2), invent_word(self.rng)])
        about = [text for text in self.shop.outside.questions.train if SHOP_QUESTION.search(text)]
        only = {**self.fillers, "thing": (thing,)}
        asked, question = (
            add_typing_noise(expand_template(self.rng.choice(about), self.rng, only), self.rng)
            for _ in range(2)
        )
        marked = expand_template(self.rng.choice(self.shop.thing_answers), self.rng, only)
        answer = change_facts(marked[0].upper() + marked[1:], self.rng)
        others = self.distractors(self.shop.outside, self.rng.choice([0, 1, 2]))
        exemplars = [(asked, answer), *others]
        return self.with_exemplars(self.shop.outside, "relevant thing", question, exemplars, answer)

    def irrelevant(self, topic: Topic | None = None) -> Sample:
        """Draw approved answers about something else: the right answer is the same as without."""
        topic = topic or self.rng.choice(
            [
                *[self.rng.choice(self.shop.topics)] * 8,
                self.rng.choice(self.shop.small_talk),
                *[self.shop.outside] * 2,
            ]
        )
        exemplars = self.distractors(topic, self.rng.choice([1, 1, 2, 3]))
        return self.with_exemplars(
            topic, "irrelevant", self.phrase_question(topic), exemplars, topic.marked_answer
        )

    def with_exemplars(
        self, topic: Topic, kind: str, question: str, exemplars: list[Exemplar], marked: str
    ) -> Sample:
        """Make a sample whose last question comes with exemplars in random order, rarely late."""
        self.rng.shuffle(exemplars)
        history = self.earlier_turns() if self.rng.random() < 0.1 else []
        return self.make_sample(
            topic, kind, *history, format_exemplars(question, exemplars), marked=marked
        )

    def draw(self, mixture: dict[str, float]) -> Sample:
        """Draw a sample of a kind that is drawn by the mixture's weights."""
        makers: dict[str, Callable[[], Sample]] = {
            "plain": self.single_question,
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


def most_similar_topics(topic: Topic, topics: tuple[Topic, ...], count: int = 6) -> list[Topic]:
    """Return the `count` topics whose questions share most words with this one's."""
    words = question_words(topic)

    def jaccard(other: Topic) -> float:
        other_words = question_words(other)
        return len(words & other_words) / len(words | other_words)

    others = [other for other in topics if other.name != topic.name]
    return sorted(others, key=jaccard, reverse=True)[:count]


def list_words(shop: Shop, fillers: dict[str, tuple[str, ...]], held_out: bool) -> list[str]:
    """Return every word of one side of the split: random sentences are made of them."""
    topics = (*shop.topics, *shop.small_talk)
    texts = [line for topic in topics for line in topic.questions.lines(held_out)]
    texts += [remove_fact_marks(topic.marked_answer) for topic in topics]
    texts += [filler for items in fillers.values() for filler in items]
    return sorted({word for text in texts for word in re.findall(r"[\w£@.]*\w", text)})


def question_words(topic: Topic) -> set[str]:
    """Return the words of a topic's training questions."""
    text = " ".join(topic.questions.train).lower()
    return set("".join(c if c.isalpha() else " " for c in text).split())


def main() -> None:
    """Print as many samples as the command line asks for, 10 by default."""
    corpus = Corpus(seed=0)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        sample = corpus.draw(MIXTURE)
        print(f"--- {sample.kind}: {sample.topic}")
        print(*(f"{m['role']}: {m['content']}" for m in sample.messages), sep="\n")


if __name__ == "__main__":
    main()
