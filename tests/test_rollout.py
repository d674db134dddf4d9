"""Promotions that a running service follows, with a tiny model that really speaks."""

import threading
from pathlib import Path
from typing import Any

import pytest

from chatbot.engine.protocol import BASE, Sampling
from chatbot.model.adapter import WEIGHTS_FILE, content_id
from chatbot.question import Question
from chatbot.service import Service
from feedback.ids import now
from tests.fixtures.tiny_models import write_adapter
from tests.fixtures.turns import begin_turn, whole_turn
from tests.fixtures.waiting import wait_until


class TestSwap:
    """Law 5: a swap drops nothing and mixes nothing."""

    def test_a_running_stream_ends_whole_on_its_adapter_and_the_next_speaks_with_the_new(
        self, service: Service
    ) -> None:
        old = service.speaking
        sampling = Sampling(max_tokens=600)
        alone = whole_turn(service, "Tell me all", sampling=sampling, model_only=True).text
        new = register(service, 1)
        turn = begin_turn(service, Question("Tell me all", "ann", sampling=sampling))
        listening = iter(turn)
        text = next(listening)
        service.registry.promote(new, "person", "ann", "try")
        assert service.rollout.follow() or service.speaking == new
        during = whole_turn(service, "Tell me all")
        assert during.speaker.adapter == new
        text += "".join(listening)
        assert text == alone and turn.speaker.adapter == old
        assert during.text != text[: len(during.text)]
        assert service.store.message(turn.message_id).content == text
        wait_until_gone(service, old)

    def test_the_watcher_follows_a_promotion_by_itself(self, service: Service) -> None:
        new = register(service, 1)
        service.registry.promote(new, "person", "ann", "try")
        wait_until_speaking(service, new)
        assert whole_turn(service, "Hello").speaker.adapter == new

    def test_a_bad_adapter_is_refused_and_service_goes_on(self, service: Service) -> None:
        old, bad = service.speaking, register(service, 1)
        weights = service.registry.folder(bad) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
        service.registry.promote(bad, "person", "ann", "try")
        assert service.rollout.follow() is False
        assert service.speaking == old and bad in service.warning and "changed" in service.warning
        assert whole_turn(service, "Hello").speaker.adapter == old
        good = register(service, 2)
        service.registry.promote(good, "person", "ann", "a better one")
        wait_until_speaking(service, good)
        assert service.warning == ""

    def test_a_failure_to_follow_is_logged_once_until_it_is_over(
        self, service: Service, caplog: pytest.LogCaptureFixture
    ) -> None:
        def failures() -> int:
            return sum("following promotions failed" in one.message for one in caplog.records)

        for broken in (1, 2):
            with service.store.write() as db:
                db.execute("alter table promotion rename to promotion_away")
            wait_until(lambda broken=broken: failures() == broken)
            threading.Event().wait(0.5)  # five more tries
            assert failures() == broken
            with service.store.write() as db:
                db.execute("alter table promotion_away rename to promotion")
            threading.Event().wait(0.5)
        new = register(service, 1)
        service.registry.promote(new, "person", "ann", "try")
        wait_until_speaking(service, new)

    @pytest.mark.parametrize("file", ["manifest.json", "adapter_config.json", WEIGHTS_FILE])
    def test_started_on_an_adapter_that_cannot_be_read_the_base_speaks_and_says_why(
        self, service: Service, tiny_base: Path, file: str
    ) -> None:
        unreadable = service.registry.folder(service.speaking) / file
        service.close()
        unreadable.unlink()
        unreadable.mkdir()  # root may read any file, but nobody a folder as one
        again = Service.open(service.home, str(tiny_base))
        assert again.speaking == BASE and str(unreadable) in again.warning
        assert whole_turn(again, "Hello").speaker.adapter == BASE
        again.close()

    def test_started_on_a_bad_adapter_the_one_before_speaks(
        self, service: Service, tiny_base: Path
    ) -> None:
        old, bad = service.speaking, register(service, 1)
        service.close()
        service.registry.promote(bad, "person", "ann", "try")
        (service.registry.folder(bad) / "adapter_config.json").write_text("{}")
        again = Service.open(service.home, str(tiny_base))
        assert again.speaking == old and bad in again.warning
        again.close()

    def test_a_pinned_adapter_answers_whoever_is_in_service(self, service: Service) -> None:
        pinned = [register(service, seed) for seed in range(1, 8)]
        answers = {id: whole_turn(service, "Hello", adapter=id) for id in pinned}
        assert {turn.speaker.adapter for turn in answers.values()} == set(pinned)
        assert len({turn.text for turn in answers.values()}) == len(pinned)
        loaded = service.engine.adapters()
        assert service.speaking in loaded and len(loaded) <= 2 + 4
        assert whole_turn(service, "Hello", adapter=BASE).speaker.adapter == BASE
        assert whole_turn(service, "Hello", adapter=pinned[0]).text == answers[pinned[0]].text

    def test_a_rollback_brings_the_old_voice_back(self, service: Service) -> None:
        old, before = service.speaking, whole_turn(service, "Hello").text
        new = register(service, 1)
        service.registry.promote(new, "person", "ann", "try")
        wait_until_speaking(service, new)
        service.registry.rollback("ann")
        wait_until_speaking(service, old)
        assert whole_turn(service, "Hello").text == before


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the id of every adapter whose content is hashed in this process."""
    ids: list[str] = []

    def recorded(config: dict[str, Any], weights: bytes) -> str:
        ids.append(content_id(config, weights))
        return ids[-1]

    monkeypatch.setattr("chatbot.model.adapter.content_id", recorded)
    return ids


class TestVerification:
    """An adapter is verified once, by whoever reads it, before anything live changes."""

    def test_a_promotion_hashes_the_adapter_once(self, service: Service, hashed: list[str]) -> None:
        new = register(service, 1)
        service.rollout.close()
        hashed.clear()
        service.registry.promote(new, "person", "ann", "try")
        assert service.rollout.follow() and service.speaking == new
        assert hashed == [new]

    def test_an_adapter_asked_for_by_name_is_hashed_once(
        self, service: Service, hashed: list[str]
    ) -> None:
        new = register(service, 1)
        hashed.clear()
        assert whole_turn(service, "Hello", adapter=new).speaker.adapter == new
        assert whole_turn(service, "Hello again", adapter=new).speaker.adapter == new
        assert hashed == [new]

    def test_what_was_hashed_is_what_speaks_even_if_the_file_changes_meanwhile(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new, other = register(service, 1), register(service, 2)
        of_other = (service.registry.folder(other) / WEIGHTS_FILE).read_bytes()
        of_new = service.registry.folder(new) / WEIGHTS_FILE

        def swapped_after_hashing(config: dict[str, Any], weights: bytes) -> str:
            id = content_id(config, weights)
            if id == new:
                of_new.write_bytes(of_other)
            return id

        speaks_as_other = whole_turn(service, "Hello", adapter=other).text
        monkeypatch.setattr("chatbot.model.adapter.content_id", swapped_after_hashing)
        assert whole_turn(service, "Hello", adapter=new).text != speaks_as_other
        assert of_new.read_bytes() == of_other

    def test_a_loaded_adapter_whose_files_were_damaged_since_is_not_promoted(
        self, service: Service
    ) -> None:
        old, bad = service.speaking, register(service, 1)
        assert whole_turn(service, "Hello", adapter=bad).speaker.adapter == bad
        weights = service.registry.folder(bad) / WEIGHTS_FILE
        weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
        service.registry.promote(bad, "person", "ann", "try")
        assert service.rollout.follow() is False
        assert service.speaking == old and "changed" in service.warning


def register(service: Service, seed: int) -> str:
    """Another adapter of the service's base."""
    return service.registry.register(write_adapter(service.home.adapters, service.base, seed=seed))


def wait_until_speaking(service: Service, adapter: str) -> None:
    for _ in range(500):
        if service.speaking == adapter:
            return
        threading.Event().wait(0.02)
    pytest.fail(f"{service.speaking} still speaks at {now()}, not {adapter}: {service.warning}")


def wait_until_gone(service: Service, adapter: str) -> None:
    for _ in range(500):
        if adapter not in service.engine.stats()["adapters"]:
            return
        threading.Event().wait(0.02)
    pytest.fail(f"{adapter} is still loaded: {service.engine.stats()}")
