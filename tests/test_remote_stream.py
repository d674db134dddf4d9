"""Bodies that are sent to a server, and its answers against the local engine's."""

import pytest

from chatbot.engine.protocol import BASE, EngineError, Sampling
from tests.fakes.vllm_server import MODEL
from tests.fixtures.remote_base import Connect, RemoteBase, Serve
from tests.fixtures.waiting import wait_for_end


def test_a_request_is_our_own_tokens_and_leaves_nothing_to_the_servers_defaults(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    engine = connect(server)
    sampling = Sampling(5, 0.7, 0.9, 40, 0.1, 1.1, ("zzz",), 7)
    asked = remote_base.request(BASE, sampling)
    wait_for_end(engine.submit(asked))
    wait_for_end(engine.submit(remote_base.request()))
    first, second = server.completions()
    assert first["prompt"] == asked.prompt_ids and first["model"] == MODEL
    wanted = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 7}
    wanted |= {"min_p": 0.1, "repetition_penalty": 1.1, "stop": ["zzz"], "stream": True}
    assert wanted.items() <= first.items()
    assert first["stop_token_ids"] == [remote_base.base.tokenizer.eos_token_id]
    usual = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert usual.items() <= second.items() and "stop" not in second and "seed" not in second


def test_log_probabilities_and_penalties_are_those_of_the_in_process_engine(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    sampling = Sampling(
        8, frequency_penalty=0.5, presence_penalty=-0.5, logit_bias=((70, 3.0),), logprobs=2
    )
    alone = wait_for_end(server.engine.submit(remote_base.request(BASE, sampling)))
    stream = wait_for_end(connect(server).submit(remote_base.request(BASE, sampling)))
    assert stream.ids == alone.ids and stream.text == alone.text
    assert len(stream.logprobs) == len(stream.ids)
    for one, other in zip(stream.logprobs, alone.logprobs, strict=True):  # its prefix was recalled
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-4)
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-4)
    wanted = {"frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": {"70": 3.0}}
    assert wanted.items() <= server.completions()[0].items()
    with pytest.raises(EngineError, match="logprobs"):
        connect(server, prompt="text").submit(remote_base.request(BASE, sampling))


def test_a_server_that_tells_no_tokens_is_believed_their_number(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    server.omits_token_ids = True
    stream = wait_for_end(connect(server).submit(remote_base.request()))
    assert stream.text == remote_base.expected[BASE].text and stream.ids == []
    assert stream.completion_tokens == len(remote_base.expected[BASE].ids)
    assert stream.first_token_ms is not None
