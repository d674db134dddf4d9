"""Writes the question sets that come with the starter model, from the same corpus.

python -m training.starter.question_sets --out chatbot/starter

- retention.jsonl: held-out phrasings with canonical answers, to see what a new adapter forgets;
- replay.jsonl: training phrasings of everything, mixed into later training against forgetting;
- questions.jsonl: for each topic a question, unseen paraphrases of it, the answer and its fact,
  for the demo and for benchmarks of the loop.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from training.starter.corpus import Corpus, Sample
from training.starter.shop import (
    Shop,
    Topic,
    expand_template,
    extract_facts,
    load_shop,
    remove_fact_marks,
)

RETENTION = {"small talk": 20, "outside": 30, "follow-up": 40, "dialogue": 30}
REPLAY = {
    "small talk": 60,
    "outside": 80,
    "follow-up": 120,
    "dialogue": 40,
    "relevant": 60,
    "irrelevant": 60,
}


def sample_rows(corpus: Corpus, per_topic: int, per_kind: dict[str, int]) -> list[dict[str, Any]]:
    """Draw distinct samples: `per_topic` a shop topic, and `per_kind` of each other kind."""
    found: dict[str, Sample] = {}
    for topic in corpus.shop.topics:
        add_distinct(found, partial(corpus.single_question, topic), per_topic)
    for kind, count in per_kind.items():
        add_distinct(found, partial(corpus.draw, {kind: 1.0}), count)
    return [{"messages": s.messages, "topic": s.topic, "kind": s.kind} for s in found.values()]


def add_distinct(
    found: dict[str, Sample], make: Callable[[], Sample], count: int, tries: int = 50
) -> None:
    """Add up to `count` samples that ask what none before asks; few phrasings may yield fewer."""
    wanted = len(found) + count
    for _ in range(count * tries):
        sample = make()
        found.setdefault(" | ".join(m["content"] for m in sample.messages[:-1]).lower(), sample)
        if len(found) == wanted:
            break


def topic_questions(shop: Shop, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield for each topic a clean question, its answer with a fact, and held-out paraphrases."""
    rng = random.Random(seed)
    for topic in shop.topics:
        yield {
            "topic": topic.name,
            "question": expand_template(topic.questions.train[0], rng, {}),
            "paraphrases": paraphrases(topic, rng),
            "answer": remove_fact_marks(topic.marked_answer),
            "fact": extract_facts(topic.marked_answer)[0],
        }


def paraphrases(topic: Topic, rng: random.Random) -> list[str]:
    """Return every held-out phrasing of a topic, expanded once."""
    return [expand_template(template, rng, {}) for template in topic.questions.held_out]


def write_json_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    path.write_text("".join(lines), encoding="utf-8")


def write_question_sets(out: Path, seed: int = 0) -> None:
    """Write the three files."""
    out.mkdir(parents=True, exist_ok=True)
    write_json_lines(
        out / "retention.jsonl", sample_rows(Corpus(seed + 2, held_out=True), 4, RETENTION)
    )
    write_json_lines(out / "replay.jsonl", sample_rows(Corpus(seed + 3), 10, REPLAY))
    write_json_lines(out / "questions.jsonl", topic_questions(load_shop(), seed))


def main() -> None:
    """Write the three files to --out."""
    parser = argparse.ArgumentParser(description="Write the starter model's question sets.")
    parser.add_argument("--out", type=Path, required=True)
    write_question_sets(parser.parse_args().out)


if __name__ == "__main__":
    main()
