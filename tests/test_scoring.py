"""Log-probabilities of given answers, in padded batches and one by one."""

import pytest
import torch

from chatbot.model.base import Base, load_base
from chatbot.model.chat_template import encode_answer
from chatbot.model.scoring import BATCH_SIZE, token_logprobs
from tests.fixtures import tiny_models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(tiny_models.write_model(tmp_path_factory.mktemp("base"))))


def rows_of(base: Base, count: int) -> list[tuple[list[int], list[int]]]:
    """Encode questions and answers of many lengths."""
    return [
        encode_answer(
            base.tokenizer, [{"role": "user", "content": "When? " * (n % 5 + 1)}], "At ten. " * n
        )
        for n in range(1, count + 1)
    ]


def test_each_token_has_the_logprob_that_the_model_alone_gives_it(base: Base) -> None:
    for prompt, answer in (rows := rows_of(base, 3)):
        with torch.no_grad():
            logits = base.model(torch.tensor([prompt + answer])).logits[0]
        rest = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), -1)
        alone = rest[range(len(answer)), answer]
        (found,) = token_logprobs(base.model, [(prompt, answer)], base.tokenizer.pad_token_id)
        assert torch.allclose(found, alone, atol=1e-5)
    assert len(rows) == 3


def test_padding_and_batches_change_nothing(base: Base) -> None:
    rows, pad = rows_of(base, BATCH_SIZE + 3), base.tokenizer.pad_token_id
    together = token_logprobs(base.model, rows, pad)
    assert [len(logprobs) for logprobs in together] == [len(answer) for _, answer in rows]
    for row, logprobs in zip(rows, together, strict=True):
        (alone,) = token_logprobs(base.model, [row], pad)
        assert torch.allclose(logprobs, alone, atol=1e-4)


def test_no_rows_have_no_scores(base: Base) -> None:
    assert token_logprobs(base.model, [], base.tokenizer.pad_token_id) == []
