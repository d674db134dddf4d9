"""Embeds texts on a server with OpenAI's embeddings API: vLLM, TEI, Ollama, OpenAI ...

    [embedder]
    url = "http://gpu1:8000"
    model = "Qwen/Qwen3-Embedding-0.6B"

Where it fails nobody waits: the static vectors serve for a minute, then it is asked again.
"""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import AfterValidator, Field

from feedback.db.well_formed import to_well_formed
from feedback.errors import first_line
from feedback.matching.embedding import EmbedderError, Vectors, to_units
from feedback.settings import Home, Settings

if TYPE_CHECKING:
    import httpx

RETRY_SECONDS = 60
_MAX_SENT = 1000
"""So many characters of a text are sent: many models take no more than 512 tokens."""


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("write it as http://host:port or https://host/v1/embeddings")
    return url


class EmbedderSettings(Settings):
    """Holds ``[embedder]``: what tells how similar questions are."""

    table: ClassVar[str] = "embedder"

    url: Annotated[str, AfterValidator(_check_url)] = ""
    """A server with OpenAI's embeddings API, such as "http://gpu1:8000"; empty: none, the vectors
    that come along."""
    model: str = ""
    """The model's name there."""
    api_key: str = ""
    """The bearer token that it expects; TALKBACK_EMBEDDER_API_KEY keeps it out of the file."""
    timeout: Annotated[float, Field(gt=0)] = 3
    """Seconds that a question waits for it at most."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Score, of cosine and common words, from which an approved answer goes into a prompt: models
    differ in it."""


class RemoteEmbedder:
    """Embeds texts on the server of the settings."""

    batch_size = 64

    def __init__(self, settings: EmbedderSettings) -> None:
        self.threshold = settings.threshold
        self._settings = settings
        self._address = _embeddings_address(settings.url)
        self.name = f"{self._address} {settings.model}"
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._failed, self._retry_at = "", 0.0

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors, shape (texts, dimensions); raise EmbedderError."""
        if time.monotonic() < self._retry_at:
            raise EmbedderError(self._failed)
        # A server refuses an empty text, and one that is no text or longer than its model takes.
        sent = [to_well_formed(text[:_MAX_SENT]).strip() or "?" for text in texts]
        try:
            return to_units(self._request(sent))
        except Exception as error:  # of the network, or whatever the server answers
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._failed = (
                f"{self._address} gives no vectors: {first_line(error)}; see [embedder] in "
                "talkback.toml. The vectors that come along serve instead."
            )
            raise EmbedderError(self._failed) from error

    def close(self) -> None:
        """Close the connections to the server."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _request(self, texts: list[str]) -> Vectors:
        body = {"model": self._settings.model, "input": texts, "encoding_format": "float"}
        response = self._open_client().post(self._address, json=body)
        response.raise_for_status()
        rows = sorted(response.json()["data"], key=lambda row: int(row["index"]))
        vectors = np.array([row["embedding"] for row in rows], np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(f"{len(rows)} vectors for {len(texts)} texts, or no numbers")
        return vectors

    def _open_client(self) -> "httpx.Client":
        import httpx

        with self._lock:
            if self._client is None:
                key = self._settings.api_key
                headers = {"authorization": f"Bearer {key}"} if key else {}
                self._client = httpx.Client(headers=headers, timeout=self._settings.timeout)
            return self._client


def open_embedder(home: Home) -> RemoteEmbedder | None:
    """Return the embedder of a home's settings, None for the static one; raise SettingsError."""
    settings = EmbedderSettings.read(home)
    return RemoteEmbedder(settings) if settings.url else None


def _embeddings_address(url: str) -> str:
    """Return the address to post to, of a server, its /v1, or the whole."""
    url = url.rstrip("/")
    if url.endswith("/embeddings"):
        return url
    return url + ("/embeddings" if url.endswith("/v1") else "/v1/embeddings")
