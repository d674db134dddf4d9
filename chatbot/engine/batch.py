"""Puts many prompts at once to an engine that a stage of a cycle has started."""

from collections.abc import Iterable, Sequence

from chatbot.engine.protocol import Engine, EngineError, PromptTooLongError, Request, Sampling
from chatbot.engine.stream import Stream


def submit_prompts(
    engine: Engine, prompts: Sequence[list[int]], adapter: str, sampling: Sampling
) -> list[Stream | None]:
    """Return a stream for each prompt, None where it leaves no room for an answer."""
    return [_submit(engine, Request(prompt, adapter, sampling)) for prompt in prompts]


def wait_for_streams(streams: Iterable[Stream | None]) -> list[Stream | None]:
    """Return the streams once all have ended; raise EngineError for one that broke off."""
    streams = list(streams)
    for stream in filter(None, streams):
        stream.wait()
        if stream.error:
            raise EngineError(f"the engine broke off: {stream.error}")
    return streams


def wait_for_texts(streams: Iterable[Stream | None]) -> list[str]:
    """Return the whole answers, empty ones where there was no room; EngineError."""
    return [stream.text if stream else "" for stream in wait_for_streams(streams)]


def _submit(engine: Engine, request: Request) -> Stream | None:
    try:
        return engine.submit(request)
    except PromptTooLongError:
        return None
