"""Holds the settings of ``[engine]``: which engine answers, where, and how much it may use.

Imports neither torch nor transformers: the server reads the settings before it has either.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from feedback.settings import Settings


class RemoteSettings(Settings):
    """Holds the part of ``[engine]`` that says where the base runs."""

    table: ClassVar[str] = "engine"

    kind: Literal["auto", "torch", "int8", "remote"] = "auto"
    """torch: on this machine; int8: there too, in eight bits; remote: on the servers of `urls`;
    auto: remote if there are any, else torch."""
    urls: list[str] = Field(default_factory=list)
    """Servers that run the base, such as "http://gpu1:8000"; requests are spread over them."""
    api_key: str = ""
    """The bearer token that they expect."""
    model: str = ""
    """The base's name there; empty: the one that the first server lists."""
    adapters_path: str = ""
    """Where the servers see the home's adapters folder; empty: at the same path as here."""
    prompt: Literal["tokens", "text"] = "tokens"
    """text: for servers that take no token ids; they have no adapters either."""
    timeout: Annotated[float, Field(gt=0)] = 120
    """Seconds that a server may be silent while it answers or loads."""


class EngineSettings(RemoteSettings):
    """Holds ``[engine]``: which engine answers, and how much of the machine the local one takes."""

    workers: Annotated[int | None, Field(ge=0)] = None
    """Processes of the local engine, each with the model's weights; 0: the server's own process.
    Not set: as many as cores and memory allow; one for a small model and on a GPU."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of each; 0: as many as suit the model, and all cores for a worker that is the
    only busy one, while it is faster on them."""
    slots: Annotated[int, Field(ge=1)] = 32
    """Streams that run at the same time in each process."""
    max_length: Annotated[int, Field(ge=2)] = 4096
    """Most tokens of one stream, prompt and answer together; the model's own limit holds too."""
    queue: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait for a slot; more are refused as busy."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Prompt tokens computed in one step (chunked prefill), at most: beside running streams a step
    has only as many as let it take twice as long, so that these stay even."""
    prefix_mb: Annotated[int, Field(ge=0)] = 512
    """Megabytes of each process for the prefix cache: what ended streams have computed, so that
    the next turn of a conversation need not compute it again."""
    prompt_lookup: Annotated[int, Field(ge=0, le=16)] = 8
    """Most tokens that prompt lookup guesses ahead where an answer repeats its prompt, and that one
    step verifies: the same text, sooner. 0: none."""
    stall_seconds: Annotated[float, Field(ge=2)] = 15
    """Seconds that a worker may stand still, idle or in the middle of a step, before it is ended
    and started anew. One that computes, reads the disk or waits for a busy CPU does not stand
    still."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""

    @property
    def remote(self) -> bool:
        """Tell whether the base runs on other servers."""
        return self.kind == "remote" or (self.kind == "auto" and bool(self.urls))

    @property
    def unready_seconds(self) -> float:
        """Return after how many seconds a worker that stands still gets no more requests: it may
        have a while yet to go on with those that it has."""
        return self.stall_seconds / 3
