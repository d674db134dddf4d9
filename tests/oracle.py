"""What transformers and PEFT say, which the in-process engine is held against."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from chatbot.engine.local.local_engine import EngineSettings, TorchEngine
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.model.base import Base, encode, ends, load_base
from tests import models

QUESTIONS = (
    "When do you open?",
    "Where is my order? It left the warehouse yesterday, they said, and nothing has come.",
    "Hello",
    "Can I return the shoes? They are too small for me.",
    "漢字 🙂",
    "What is the meaning of all this?",
)


@dataclass
class Oracle:
    """A base, its adapters, and what transformers + PEFT answer greedily, one at a time."""

    path: Path
    base: Base
    adapters: dict[str, Path]
    answers: dict[tuple[str, str, int], list[int]] = field(default_factory=dict)

    @property
    def voices(self) -> list[str]:
        return [BASE, *self.adapters]

    def prompt(self, question: str) -> list[int]:
        return encode(self.base.tokenizer, [{"role": "user", "content": question}])

    def request(self, question: str, voice: str, tokens: int = 24) -> Request:
        return Request(self.prompt(question), voice, Sampling(max_tokens=tokens))

    def answer(self, question: str, voice: str, tokens: int = 24) -> list[int]:
        key = (question, voice, tokens)
        if key not in self.answers:
            self.answers[key] = self._generate(question, voice, tokens)
        return self.answers[key]

    def text(self, question: str, voice: str, tokens: int = 24) -> str:
        return str(
            self.base.tokenizer.decode(
                self.answer(question, voice, tokens), skip_special_tokens=True
            )
        )

    def _generate(self, question: str, voice: str, tokens: int) -> list[int]:
        from peft import PeftModel

        model = load_base(str(self.path)).model
        if voice != BASE:
            model = PeftModel.from_pretrained(model, self.adapters[voice])
        ids = torch.tensor([self.prompt(question)])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=sorted(ends(self.base)),
            pad_token_id=0,
        )
        return [int(token) for token in out[0, ids.shape[1] :]]


def write_oracle(folder: Path, family: models.Family) -> Oracle:
    path = models.write_model(folder / "base", family)
    base = load_base(str(path))
    made = [models.write_adapter(folder / "adapters", base, seed=seed) for seed in (1, 2, 3)]
    return Oracle(path, base, {adapter.name: adapter for adapter in made})


def start(oracle: Oracle, **settings: int) -> TorchEngine:
    engine = TorchEngine(oracle.base, EngineSettings(**{"threads": 1, **settings}))
    for name, folder in oracle.adapters.items():
        engine.load(name, folder)
    return engine
