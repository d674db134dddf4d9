"""Fakes a vLLM server on loopback: its routes, bodies and errors, over a real tiny model.

What it answers is what vllm/entrypoints answers (openai/models/serving.py, completion/serving.py),
as far as Talkback goes there. It can be killed in the middle of an answer and started anew, empty.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from chatbot.engine import protocol
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import BASE, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream, TokenLogprob
from chatbot.model.base import load_base
from feedback.errors import TalkbackError

MODEL = "tiny/base"


class FakeVllm:
    """Serves the base in ``folder`` as `vllm serve` does, on a free port of loopback.

    ``rank`` is --max-lora-rank, ``key`` --api-key; without ``lora`` it has no adapter routes.
    """

    def __init__(self, folder: Path, *, rank: int = 16, lora: bool = True, key: str = "") -> None:
        self.base = load_base(str(folder))
        self.max_lora_rank, self.has_adapter_routes, self.api_key = rank, lora, key
        self.busy = False
        """Whether it refuses completions."""
        self.omits_token_ids = False
        """Whether answers have text only, as those of servers other than vLLM."""
        self.blocked_models: set[str] = set()
        """Models whose answers, or whose loading, wait until they are taken out."""
        self.max_model_len = 2048
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Return the server's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> int:
        """Return how many requests it is answering."""
        return int(self.engine.stats()["running"])

    def start(self) -> None:
        """Start at the same address as before, with no adapter."""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """(path, body) of every POST."""
        self.loaded: dict[str, str] = {}
        self.engine = LocalEngine(self.base, EngineSettings(threads=1))
        self.engine._marks = None  # it knows nothing of thoughts
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self._app(), log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def kill(self) -> None:
        """Stop at once and drop every connection; a server that is down stays down."""
        if not self._thread.is_alive():
            return
        self._server.should_exit = self._server.force_exit = True
        self._loop.call_soon_threadsafe(self._close_connections)
        self._thread.join()
        self.engine.close()

    def completions(self) -> list[dict[str, Any]]:
        """Return the bodies of all completion requests so far."""
        return [body for path, body in self.requests if path == "/v1/completions"]

    def _close_connections(self) -> None:
        for listening in self._server.servers:
            listening.close()  # or a new connection would be accepted and never served
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    # -- The routes

    def _app(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self._loop, self._loading = asyncio.get_running_loop(), asyncio.Lock()
            yield

        app = FastAPI(lifespan=lifespan)
        app.get("/v1/models", response_model=None)(self._models)
        app.post("/v1/completions", response_model=None)(self._complete)
        if self.has_adapter_routes:
            app.post("/v1/load_lora_adapter", response_model=None)(self._load)
            app.post("/v1/unload_lora_adapter", response_model=None)(self._unload)
        return app

    async def _models(self, request: Request) -> Response:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        base = {"id": MODEL, "root": MODEL, "parent": None, "max_model_len": self.max_model_len}
        models = [{"id": n, "root": p, "parent": MODEL} for n, p in self.loaded.items()]
        shared = {"object": "model", "owned_by": "vllm", "created": 0, "permission": []}
        return JSONResponse({"object": "list", "data": [shared | c for c in (base, *models)]})

    async def _load(self, body: dict[str, Any]) -> Response:
        self.requests.append(("/v1/load_lora_adapter", body))
        async with self._loading:
            return await self._load_adapter(body["lora_name"], Path(body["lora_path"]))

    async def _load_adapter(self, name: str, path: Path) -> Response:
        while name in self.blocked_models:
            await asyncio.sleep(0.01)
        if name in self.loaded:
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the"
            return _error(400, f"{message} adapter in place, set 'load_inplace' to True.")
        if not path.is_dir():
            return _error(404, f"No adapter found for {path}", "NotFoundError")
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            return _error(500, message, "InternalServerError")
        await asyncio.to_thread(self.engine.load, path.name, path)
        self.loaded[name] = str(path)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, body: dict[str, Any]) -> Response:
        self.requests.append(("/v1/unload_lora_adapter", body))
        name = body["lora_name"]
        if name not in self.loaded:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.loaded[name]
        self.engine.unload(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, body: dict[str, Any]) -> Response:
        self.requests.append(("/v1/completions", body))
        model = body["model"]
        if self.busy:
            return _error(503, "The request queue is full.", "ServiceUnavailableError")
        if model != MODEL and model not in self.loaded:
            return _error(404, f"The model `{model}` does not exist.", "NotFoundError")
        if len(self._ids(body)) + body["max_tokens"] > self.max_model_len:
            return _error(
                400, f"This model's maximum context length is {self.max_model_len} tokens."
            )
        try:
            stream = self.engine.submit(self._request(body))
        except TalkbackError as error:
            return _error(400, str(error))
        return StreamingResponse(self._answer(stream, body), media_type="text/event-stream")

    def _ids(self, body: dict[str, Any]) -> list[int]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = self.base.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return list(prompt)

    def _request(self, body: dict[str, Any]) -> protocol.Request:
        sampling = Sampling(
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body.get("top_k", 0),
            repetition_penalty=body.get("repetition_penalty", 1.0),
            stop=tuple(body.get("stop", ())),
            seed=body.get("seed"),
            frequency_penalty=body.get("frequency_penalty", 0.0),
            presence_penalty=body.get("presence_penalty", 0.0),
            logit_bias=tuple((int(t), by) for t, by in body.get("logit_bias", {}).items()),
            logprobs=body.get("logprobs"),
        )
        adapter = BASE if body["model"] == MODEL else body["model"]
        return protocol.Request(self._ids(body), adapter, sampling)

    async def _answer(self, stream: Stream, body: dict[str, Any]) -> AsyncIterator[str]:
        try:
            sent = 0
            async for delta in iterate_in_threadpool(stream):
                while body["model"] in self.blocked_models:
                    await asyncio.sleep(0.01)
                ids, logprobs = stream.ids[sent:], stream.logprobs[sent:]
                ids = ids[: len(logprobs)] if body.get("logprobs") is not None else ids
                sent += len(ids)
                yield self._chunk(body, delta, ids, None, logprobs[: len(ids)])
            rest = stream.logprobs[sent:]
            yield self._chunk(body, "", stream.ids[sent:], stream.finish, rest)
            counts = {
                "prompt_tokens": stream.prompt_tokens,
                "completion_tokens": stream.completion_tokens,
            }
            yield _event({"model": body["model"], "choices": [], "usage": counts})
            yield "data: [DONE]\n\n"
        finally:
            stream.cancel()

    def _chunk(
        self,
        body: dict[str, Any],
        text: str,
        ids: list[int],
        finish: str | None,
        token_logprobs: list[TokenLogprob],
    ) -> str:
        logprobs = _logprobs(token_logprobs) if body.get("logprobs") is not None else None
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": logprobs}
        choice |= {"finish_reason": finish, "stop_reason": None}
        if body.get("return_token_ids") and not self.omits_token_ids:
            choice["token_ids"] = ids
        return _event({"object": "text_completion", "model": body["model"], "choices": [choice]})


def _logprobs(token_logprobs: list[TokenLogprob]) -> dict[str, Any]:
    """The chosen token first, then as many of the likeliest as were asked for, itself or not."""
    tops = [{chance.token: chance.logprob} | dict(chance.top) for chance in token_logprobs]
    return {
        "text_offset": [0 for _ in token_logprobs],
        "token_logprobs": [chance.logprob for chance in token_logprobs],
        "tokens": [f"token_id:{chance.token}" for chance in token_logprobs],
        "top_logprobs": [{f"token_id:{t}": p for t, p in top.items()} for top in tops],
    }


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, kind: str = "BadRequestError") -> Response:
    error = {"message": message, "type": kind, "param": None, "code": status}
    phrase = HTTPStatus(status).phrase
    return JSONResponse({"error": error | {"type": kind or phrase}}, status)
