"""[engine]: which engine speaks, where, and how much of the machine it takes.

Light to import: the server reads them before it has torch.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from feedback.settings import Settings


class RemoteSettings(Settings):
    """The part of [engine] that says where the base runs."""

    table: ClassVar[str] = "engine"

    kind: Literal["auto", "torch", "int8", "remote"] = "auto"
    """torch: on this machine; int8: there too, in eight bits; remote: on the servers of `urls`;
    auto: remote if there are any, else torch."""
    urls: list[str] = Field(default_factory=list)
    """Servers that run the base, such as "http://gpu1:8000"; each is asked for its share."""
    api_key: str = ""
    """What they want as bearer token."""
    model: str = ""
    """The base's name there; empty: the one that the first server lists."""
    adapters_path: str = ""
    """Where the servers see the home's adapters folder; empty: at the same path as here."""
    prompt: Literal["tokens", "text"] = "tokens"
    """text: for servers that take no token ids; they have no adapters either."""
    timeout: Annotated[float, Field(gt=0)] = 120
    """Seconds that a server may be silent while it answers or loads."""


class EngineSettings(RemoteSettings):
    """[engine]: which engine speaks, and how much of the machine the in-process one takes."""

    workers: Annotated[int | None, Field(ge=0)] = None
    """Processes of the torch engine, each with the model's weights; 0: the server's own process.
    Not set: as many as the cores and the memory bear, one for a small model and on a GPU."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of each; 0: as many as suit the model, and all cores for one that speaks alone
    while it is faster on them."""
    slots: Annotated[int, Field(ge=1)] = 32
    """Streams that run at the same time, in each."""
    max_length: Annotated[int, Field(ge=2)] = 4096
    """Most tokens of one stream, prompt and answer together; the model's own limit holds too."""
    queue: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait for a slot; more are told that the engine is busy."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Prompt tokens read in one step: more is a faster start, less a calmer stream."""
    prefix_mb: Annotated[int, Field(ge=0)] = 512
    """Megabytes of each for what ended streams have read: the next turn need not read it again."""
    prompt_lookup: Annotated[int, Field(ge=0, le=16)] = 8
    """Most tokens that are guessed ahead where an answer repeats its prompt, and read in one step:
    the same text, sooner. 0: none."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""

    @property
    def remote(self) -> bool:
        """Whether the base runs on other servers."""
        return self.kind == "remote" or (self.kind == "auto" and bool(self.urls))
