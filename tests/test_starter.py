"""Tests the starter model: its circuit, tokenizer, recipe, and the committed weights."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from training.starter.batches import IGNORE_INDEX, draw_batches, encode_samples
from training.starter.corpus import MIXTURE, Corpus
from training.starter.evaluate import generate_answers
from training.starter.pretrain import (
    PretrainingConfig,
    answer_loss,
    build_model,
    draw_tokenizer_texts,
    pretrain,
    save_model,
)
from training.starter.shop import load_shop
from training.starter.tokenizer import train_tokenizer

STARTER = Path(__file__).parents[1] / "chatbot" / "starter"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(draw_tokenizer_texts(0, 500), 1024)


def test_an_untrained_model_already_copies(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(tokenizer, seed=0)
    once = torch.randint(0, len(tokenizer), (8, 50), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([once, once], dim=1)
    with torch.no_grad():
        guess = model(input_ids=ids).logits.argmax(-1)
    again = slice(52, 99)  # two tokens of the second copy give away where it is
    right = (guess[:, again] == ids[:, 53:100]).float().mean().item()
    assert right > 0.95


def test_heads_of_the_first_layer_look_one_and_two_back(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(tokenizer, seed=0)
    model.set_attn_implementation("eager")
    ids = torch.randint(0, len(tokenizer), (1, 120))
    with torch.no_grad():
        first = model(input_ids=ids, output_attentions=True).attentions[0][0]
    at = torch.arange(10, 120)
    assert first[0, at, at - 1].min() > 0.9
    assert first[1, at, at - 2].min() > 0.9


def test_the_corpus_is_encoded_as_the_chat_template_writes_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    corpus = Corpus(5)
    samples = [corpus.draw({kind: 1.0}) for kind in MIXTURE for _ in range(5)]
    for sample, row in zip(samples, encode_samples(samples, tokenizer), strict=True):
        wanted = tokenizer.apply_chat_template(
            sample.messages, return_dict=True, return_assistant_tokens_mask=True
        )
        assert row[0].tolist() == wanted["input_ids"]
        assert [label != IGNORE_INDEX for label in row[1].tolist()] == [
            bool(mark) for mark in wanted["assistant_masks"]
        ]


def test_an_exemplar_is_made_of_the_tokens_that_the_answer_is_made_of(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    corpus = Corpus(6)
    for _ in range(50):
        sample = corpus.relevant()
        answers = tokenizer(sample.answer)["input_ids"]
        asked = tokenizer(sample.messages[-2]["content"])["input_ids"]
        assert any(asked[n : n + len(answers)] == answers for n in range(len(asked)))


@pytest.mark.parametrize("text", ["£12.50 at 10:45", "naïve 日本 🙂\t\n  x", "0117 496 0142"])
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_numbers_are_cut_into_pairs(tokenizer: PreTrainedTokenizerFast) -> None:
    for number in range(100):
        assert len(tokenizer(f" {number:02d}")["input_ids"]) == 1


def test_batches_keep_to_their_size_and_learn_only_answers(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    stream = draw_batches(Corpus(0), tokenizer, tokens=1000, chunk=100)
    for _ in range(10):
        ids, labels = next(stream)
        assert ids.numel() <= 1000
        learnt = labels != IGNORE_INDEX
        assert learnt.any() and not learnt[:, 0].any()
        assert (ids[learnt] == labels[learnt]).all()


@pytest.mark.slow
def test_training_moves_every_weight_and_lowers_the_loss(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = PretrainingConfig(steps=12, warmup=2, tokens_per_step=800, evaluate_count=1)
    model = build_model(tokenizer, seed=0)
    batch = next(draw_batches(Corpus(9), tokenizer, tokens=800, chunk=100))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    loss = answer_loss(model, batch).item()
    pretrain(model, tokenizer, settings, tmp_path)
    assert answer_loss(model, batch).item() < loss
    for name, weight in model.named_parameters():
        assert not torch.equal(weight, before[name]), name


def test_a_saved_model_loads_as_any_base_does(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build_model(tokenizer, seed=0)
    save_model(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Do you sell kayaks?\nA: No, 12 of them."
    ids = again(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == tokenizer(text)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=0.3)


def test_the_committed_weights_answer_what_they_were_made_for() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    corpus = Corpus(11, held_out=True)
    samples = [corpus.single_question(topic) for topic in load_shop().topics]
    answers = generate_answers(model, tokenizer, samples)
    right = [sample.is_right(text) for sample, text in zip(samples, answers, strict=True)]
    assert sum(right) / len(right) >= 0.9


def test_the_committed_weights_are_small_and_in_half_precision() -> None:
    assert (STARTER / "model.safetensors").stat().st_size < 20e6
    assert json.loads((STARTER / "config.json").read_text())["dtype"] == "bfloat16"
