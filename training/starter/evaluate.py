"""Asks a starter model held-out questions, greedily, and counts the right answers."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from training.starter.corpus import MIXTURE, Corpus, Sample


def draw_held_out_samples(count: int, seed: int = 1) -> list[Sample]:
    """`count` held-out samples of each kind."""
    corpus = Corpus(seed, held_out=True)
    kinds = [kind for kind in MIXTURE if kind != "dialogue"]
    return [corpus.draw({kind: 1.0}) for kind in kinds for _ in range(count)]


def accuracy_by_kind(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]
) -> dict[str, float]:
    """The share of right answers, greedy, by kind."""
    right = defaultdict(list)
    for sample, said in zip(samples, generate_answers(model, tokenizer, samples), strict=True):
        right[sample.kind].append(sample.is_right(said))
    return {kind: round(sum(marks) / len(marks), 3) for kind, marks in right.items()}


@torch.no_grad()
def generate_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    samples: Sequence[Sample],
    batch_size: int = 64,
) -> list[str]:
    """What the model says, greedily, instead of each sample's last message."""
    order = sorted(range(len(samples)), key=lambda n: len(str(samples[n].messages)))
    said = [""] * len(samples)
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
        made = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=64,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for n, text in zip(chosen, texts, strict=True):
            said[n] = text
    model.train()
    return said
