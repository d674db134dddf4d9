"""Makes forms of taught questions that train beside them, so that other words reach the answer too.

They are what people type for the same question: in lower case, without a letter or a word, greeted,
or only the words that say what it is about. Evaluation has forms of its own, which never train.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from feedback.matching.surface_forms import END_MARK, is_english, lower_first
from feedback.similarity import content_words, normalise_text
from feedback.snapshot import Record

_SHORTEST_TYPED = 5
"""A letter left out of a shorter word makes another one."""
_GREETED = ("Hi, {}", "Hello! {}", "{}, please", "Can you tell me: {}")
_FRAMED = ("how to {}", "I need help with {}", "can you help me {}", "{}, how does it work?")


def form_rows(rows: Sequence[Record]) -> list[Record]:
    """Return rows of sft.jsonl's form with other forms of their questions, in layers: first one
    form of each question, then the next. What could be two taught questions is left out."""
    made = [trained_forms(row["prompt"][-1]["content"]) for row in rows]
    answers: dict[str, set[str]] = defaultdict(set)
    for row, forms in zip(rows, made, strict=True):
        for text in (row["prompt"][-1]["content"], *forms):
            answers[normalise_text(text)].add(row["completion"][-1]["content"])
    unambiguous = [
        [form for form in forms if len(answers[normalise_text(form)]) == 1] for forms in made
    ]
    layers = max(map(len, unambiguous), default=0)
    return [
        _with_question(row, forms[layer % len(forms)])
        for layer in range(layers)
        for row, forms in zip(rows, unambiguous, strict=True)
        if forms
    ]


def trained_forms(question: str) -> list[str]:
    """Return other forms of a question, always the same ones; those that greet only in English."""
    text = END_MARK.sub("", question.strip())
    rng = random.Random(text)
    words = text.split()
    subject = content_words(text)
    about = " ".join(word for word in normalise_text(text).split() if word in subject)
    forms = [text.lower(), *_without_letter(text, rng)]
    if len(words) > 3:
        shorter = (" ".join(words[:i] + words[i + 1 :]) for i in rng.sample(range(len(words)), 3))
        forms += [form for form in shorter if 2 * len(content_words(form)) > len(subject)]
    if len(about.split()) > 1:
        forms.append(about)
        if is_english(text):
            forms += [frame.format(about) for frame in _FRAMED]
    if is_english(text):
        forms += [frame.format(lower_first(text)) for frame in _GREETED]
    rng.shuffle(forms)
    return [form for form in dict.fromkeys(forms) if form and form != question]


def _without_letter(text: str, rng: random.Random) -> list[str]:
    """Return the text without a letter within one of its longer words, in cased scripts."""
    longer = [
        match
        for match in re.finditer(r"[^\W\d_]+", text)
        if len(match.group()) >= _SHORTEST_TYPED and match.group().lower().islower()
    ]
    if not longer:
        return []
    word = rng.choice(longer)
    dropped = rng.randrange(word.start() + 1, word.end() - 1)
    return [text[:dropped] + text[dropped + 1 :]]


def _with_question(row: Record, question: str) -> Record:
    *before, last = row["prompt"]
    return {**row, "prompt": [*before, {**last, "content": question}]}
