"""Knows in which form a base goes by approved answers; one that nobody knows yet is tried once.

    finder = FormFinder(base, engine, home.forms)
    finder.find()       # "turns" until the trial, which begins now, has shown another one

The trial runs beside the chat, through the engine that serves, one question at a time: a start does
not wait for it, and a server where nothing is approved never makes it.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from chatbot.engine.protocol import (
    BASE,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    PromptTooLongError,
    Request,
    Sampling,
)
from chatbot.engine.stream import Stream
from chatbot.exemplar_form.forms import DEFAULT_FORM, FORMS, ChatMessages, ExemplarForm
from chatbot.exemplar_form.trial import TRIAL, choose_form, count_right, read_cases
from chatbot.model.base import Base
from chatbot.model.chat_template import encode
from feedback.errors import TalkbackError, describe_os_error
from feedback.publish import make_folder, replace_file

log = logging.getLogger("talkback")

KNOWN_FORMS: Mapping[str, ExemplarForm] = {"w-e03a4e2ec73aab8a.b-762933aa": "in question"}
"""The forms of bases, by identity, that need no trial: the starter learnt its form."""
SPARE_TOKENS = 8
"""An answer may be so many tokens longer than the longest that is expected."""
LOOK_SECONDS = 0.2
"""How often it is looked whether the server closes."""


class FormFinder:
    """Finds the form for a base: known, kept in a folder by an earlier trial, or tried now.

    Any thread may call it.
    """

    def __init__(self, base: Base, engine: Engine, folder: Path) -> None:
        """Read what is known; asks nothing yet."""
        self._base, self._engine = base, engine
        asked = json.dumps([base.identity, FORMS, TRIAL.read_text(encoding="utf-8")])
        self._file = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"
        self._form = KNOWN_FORMS.get(base.identity) or _read_form(self._file)
        self._lock = threading.Lock()
        """Guards the thread: one trial at a time."""
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def find(self) -> ExemplarForm:
        """Return the base's form; where it is not known, `DEFAULT_FORM`, and have it tried."""
        if self._form is not None:
            return self._form
        with self._lock:
            idle = self._thread is None or not self._thread.is_alive()
            if idle and not self._closing.is_set():
                self._thread = threading.Thread(target=self._try, name="form trial", daemon=True)
                self._thread.start()
        return DEFAULT_FORM

    def close(self) -> None:
        """End a trial that runs; call it before the engine is closed."""
        with self._lock:
            self._closing.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _try(self) -> None:
        """Try all forms and keep the best; a trial that fails is made again at the next need."""
        expected = [case.expected for case in read_cases() if case.expected]
        limit = max(len(self._base.tokenizer(text)["input_ids"]) for text in expected)
        sampling = Sampling(max_tokens=limit + SPARE_TOKENS)
        try:
            right = count_right(lambda messages: self._ask(messages, sampling))
            self._form = form = choose_form(right)
            found = {"base": self._base.identity, "form": form, "right": right}
            make_folder(self._file.parent)
            replace_file(self._file, json.dumps(found, indent=2) + "\n")
        except EngineClosedError:
            pass
        except TalkbackError as error:
            log.warning("in which form %s takes exemplars is not known: %s", self._base.name, error)
        except OSError as error:
            log.warning("the form of exemplars cannot be kept: %s", describe_os_error(error))
        else:
            log.info("exemplars for %s in the form %r: right were %s", self._base.name, form, right)

    def _ask(self, messages: ChatMessages, sampling: Sampling) -> str:
        """Return the base's answer, "" where it has no room for one. Raises EngineError."""
        try:
            stream = self._submit(Request(encode(self._base.tokenizer, messages), BASE, sampling))
        except PromptTooLongError:
            return ""
        while not stream.wait(LOOK_SECONDS):
            if self._closing.is_set():
                stream.cancel()
                raise EngineClosedError()
        if stream.error:
            raise EngineError(f"the engine broke off: {stream.error}")
        return stream.text

    def _submit(self, request: Request) -> Stream:
        """Submit a request as soon as people leave room for it."""
        while not self._closing.is_set():
            try:
                return self._engine.submit(request)
            except EngineBusyError as error:
                self._closing.wait(error.retry_after)
        raise EngineClosedError()


def _read_form(file: Path) -> ExemplarForm | None:
    """Return the form that a trial has kept; None where there was none, or its file is damaged."""
    try:
        form = json.loads(file.read_text(encoding="utf-8"))["form"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return form if form in FORMS else None
