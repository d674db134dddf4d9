"""Augments questions with the noise of real typing: greetings, missing words, typos."""

import random

GREETINGS = (
    *("Hi, ", "Hello, ", "Hello! ", "Hey, ", "Excuse me, ", "Sorry, ", "Good morning, "),
    *("Quick question: ", "I have a question: ", "Please tell me: ", "One more thing, "),
    *("Hi there, ", "Good evening, ", "Dear team, ", "Hello, quick question, ", "Hi! ", "So, "),
)
PLEASANTRIES = (" please", " Thanks!", " Thank you.", " Please help.", " Cheers", " Many thanks!")


def add_typing_noise(text: str, rng: random.Random) -> str:
    """Return the question as people type it: greeted, in lower case, unpunctuated, with a typo."""
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
    """Drop one or two words, so that no single word decides the topic."""
    words = text.split()
    for _ in range(min(rng.randint(1, 2), len(words) - 3)):
        words.pop(rng.randrange(len(words)))
    return " ".join(words)


def add_typo(text: str, rng: random.Random) -> str:
    """Leave out one letter, double it, or swap it with the next."""
    i = rng.randrange(1, len(text) - 1)
    before, letter, following, after = text[:i], text[i], text[i + 1], text[i + 2 :]
    middle = rng.choice([following, letter * 2 + following, following + letter])
    return before + middle + after
