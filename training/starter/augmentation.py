"""How people type a question: greeted, in a hurry, with a word or a letter missing."""

import random

GREETINGS = (
    *("Hi, ", "Hello, ", "Hello! ", "Hey, ", "Excuse me, ", "Sorry, ", "Good morning, "),
    *("Quick question: ", "I have a question: ", "Please tell me: ", "One more thing, "),
    *("Hi there, ", "Good evening, ", "Dear team, ", "Hello, quick question, ", "Hi! ", "So, "),
)
PLEASANTRIES = (" please", " Thanks!", " Thank you.", " Please help.", " Cheers", " Many thanks!")


def add_typing_noise(text: str, rng: random.Random) -> str:
    """The question as people type it: greeted, in lower case, unpunctuated, with a typo."""
    if rng.random() < 0.15:
        text = rng.choice(GREETINGS) + text[0].lower() + text[1:]
    if rng.random() < 0.08:
        text = text.rstrip("?") + rng.choice(PLEASANTRIES)
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.3:
        text = text.rstrip("?.!")
    if rng.random() < 0.12 and len(text) > 12:
        text = add_typo(text, rng)
    return text


def drop_words(text: str, rng: random.Random) -> str:
    """The question without one or two of its words, so that no single word decides the topic."""
    words = text.split()
    for _ in range(min(rng.randint(1, 2), len(words) - 3)):
        words.pop(rng.randrange(len(words)))
    return " ".join(words)


def add_typo(text: str, rng: random.Random) -> str:
    """One letter left out, doubled, or swapped with the next."""
    at = rng.randrange(1, len(text) - 1)
    before, letter, following, after = text[:at], text[at], text[at + 1], text[at + 2 :]
    middle = rng.choice([following, letter * 2 + following, following + letter])
    return before + middle + after
