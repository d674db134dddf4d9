"""Evaluates a starter model: asks it held-out questions, greedily, and counts right answers."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from training.starter.corpus import MIXTURE, Corpus, Sample


def draw_held_out_samples(count: int, seed: int = 1) -> list[Sample]:
    """Draw `count` held-out samples of each kind."""
    corpus = Corpus(seed, held_out=True)
    kinds = [kind for kind in MIXTURE if kind != "dialogue"]
    return [corpus.draw({kind: 1.0}) for kind in kinds for _ in range(count)]


def accuracy_by_kind(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]
) -> dict[str, float]:
    """Return the share of right greedy answers, 0 to 1, by kind of sample."""
    right = defaultdict(list)
    answers = generate_answers(model, tokenizer, samples)
    for sample, answer in zip(samples, answers, strict=True):
        right[sample.kind].append(sample.is_right(answer))
    return {kind: round(sum(marks) / len(marks), 3) for kind, marks in right.items()}


@torch.no_grad()
def generate_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    samples: Sequence[Sample],
    batch_size: int = 64,
) -> list[str]:
    """Return the model's greedy answer in place of each sample's last message."""
    order = sorted(range(len(samples)), key=lambda n: len(str(samples[n].messages)))
    answers = [""] * len(samples)
    model.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        prompts = [
            tokenizer.apply_chat_template(
                samples[n].messages[:-1], tokenize=False, add_generation_prompt=True
            )
            for n in chosen
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=64,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for n, text in zip(chosen, texts, strict=True):
            answers[n] = text
    model.train()
    return answers
