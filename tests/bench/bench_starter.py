"""Measures what the starter model gets right on unseen phrasings, and how fast it decodes.

python tests/bench/bench_starter.py  prints the table that chatbot/starter/README.md quotes.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.starter.corpus import Corpus, Sample
from training.starter.evaluate import generate_answers

STARTER = Path(__file__).parents[2] / "chatbot" / "starter"
# kind of sample -> (what the table calls it, the aim)
KINDS = {
    "plain": ("single questions: right facts", 0.90),
    "follow-up": ("follow-ups that need the turn before", 0.80),
    "small talk": ("small talk", 0.90),
    "outside": ("outside the shop: says so", 0.90),
    "relevant": ("relevant exemplar, random facts: word for word", 0.90),
    "relevant thing": ("relevant exemplar about something outside", 0.90),
    "irrelevant": ("irrelevant exemplars: answer unharmed", 0.90),
}


def held_out(kind: str, count: int, seed: int) -> list[Sample]:
    """`count` samples of a kind from the held-out side of the corpus."""
    corpus = Corpus(seed, held_out=True)
    return [corpus.draw({kind: 1.0}) for _ in range(count)]


def speed(model: torch.nn.Module, rows: int, tokens: int = 64) -> float:
    """Greedy tokens a second over `rows` conversations at once, of a prompt of 100 tokens."""
    prompt = torch.randint(300, 2000, (rows, 100))
    mask = torch.ones_like(prompt)
    limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=4, do_sample=False)
    started = time.perf_counter()
    model.generate(input_ids=prompt, attention_mask=mask, **limits)
    return rows * tokens / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--count", type=int, default=300, help="samples of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--wrong", type=int, default=0, help="print so many wrong answers a kind")
    args = parser.parse_args()
    console = Console()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    table = Table("held out, greedy", "n", "right", "aim")
    for kind, (title, aim) in KINDS.items():
        samples = held_out(kind, args.count, args.seed)
        answers = generate_answers(model, tokenizer, samples)
        marks = [sample.is_right(text) for sample, text in zip(samples, answers, strict=True)]
        table.add_row(title, str(len(marks)), f"{sum(marks) / len(marks):.1%}", f"{aim:.0%}")
        wrong = [n for n, mark in enumerate(marks) if not mark][: args.wrong]
        for n in wrong:
            console.print(f"[{kind}] {samples[n].messages[:-1]}\n  {answers[n]!r}", markup=False)
            console.print(f"  not {samples[n].answer!r}", markup=False)
    console.print(table)
    model.to(torch.bfloat16)
    for rows in (1, 8):
        console.print(f"{rows} at once, bf16: {speed(model, rows):.0f} tokens/s")


if __name__ == "__main__":
    main()
