"""A base is what it is, not where it lies: moved, saved anew, from the Hub, or truly another."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatbot.known_bases import UnknownBaseError
from chatbot.model.adapter import AdapterError, verify_adapter
from chatbot.model.base import Base, BaseError, load_base
from chatbot.pages.adapters import view
from chatbot.registry import Registry, RegistryError
from chatbot.service import Service
from evaluation.comparison import Comparison, ScoredAnswer
from evaluation.report import Report, Verdict
from feedback import exemplars
from feedback.settings import Home
from feedback.snapshot import Snapshot
from feedback.store import Store
from talkback.cycle import run_cycle
from talkback.cycle_history import CycleHistory
from tests.fakes.hub_server import COMMIT, serve_hub
from tests.fixtures import tiny_models
from tests.fixtures.base_changes import (
    GIVEN_OTHERWISE,
    Change,
    another_reach_of_positions,
    another_template,
    another_word_in_the_vocabulary,
    config_of_another_version,
    other_weights,
    saved_in_shards_of_float32,
)
from tests.fixtures.command_line import run_talkback
from tests.fixtures.lessons import LESSONS
from tests.fixtures.server_process import SERVER_TOML
from tests.fixtures.shop_corrections import teach
from tests.fixtures.turns import whole_turn


@pytest.fixture
def registry(store: Store, home: Home) -> Registry:
    return Registry(store, home)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base in a folder of the user's home; any look-up at the Hub ends the test."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError(f"the Hub was asked: {args}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "models"))
    folder = tiny_models.write_model(tmp_path / "models" / "mine")
    (folder / "retention.jsonl").write_text('{"question": "Two and two?", "answer": "Four."}\n')
    return folder


def learn(folder: Path, registry: Registry, home: Home) -> tuple[Base, str, str]:
    """Promote an adapter on the base in a folder; return the base, and the ids of its untrained
    adapter and of that one."""
    base = load_base(str(folder))
    untrained = registry.ensure_promoted(base).id
    learnt = registry.register(tiny_models.write_adapter(home.adapters, base))
    registry.promote(learnt, "gate", "gate", "better")
    return base, untrained, learnt


# -- Given otherwise: the same base


@pytest.mark.parametrize("change", GIVEN_OTHERWISE)
def test_a_base_given_otherwise_goes_on_with_its_adapters(
    change: Change, folder: Path, registry: Registry, home: Home
) -> None:
    base, untrained, learnt = learn(folder, registry, home)
    given = registry.bases.resolve(change(folder))
    again = load_base(given, weights=False)
    assert again.identity == base.identity
    assert registry.ensure_promoted(again).id == learnt and registry.base_change() is None
    assert verify_adapter(registry.folder(learnt), again).id == learnt
    assert registry.same_base(untrained) and registry.serving_order() == [untrained, learnt]
    name, commit = registry.locate_base(registry.adapter(learnt))
    assert (Path(name), commit) == (Path(given).expanduser().absolute(), None) or (
        os.path.samefile(name, Path(given).expanduser())
    )
    assert load_base(name).identity == base.identity


def test_a_relative_path_whose_folder_is_gone_is_not_looked_up_at_the_hub(
    folder: Path, registry: Registry
) -> None:
    assert registry.bases.resolve("models/mine") == "models/mine", "nobody knows it yet"
    registry.ensure_promoted(load_base(str(folder), weights=False))
    folder.rename(folder.parent / "yours")
    with pytest.raises(UnknownBaseError, match=f"no folder models/mine; it was {folder} when"):
        registry.bases.resolve("models/mine")
    assert registry.bases.resolve("models/mine", "main") == "models/mine"
    assert registry.bases.resolve("org/model") == "org/model"


def test_the_same_files_from_the_hub_and_from_a_folder_are_one_base(
    folder: Path, registry: Registry, tmp_path: Path
) -> None:
    """In a process of its own: the Hub's address is read once."""
    script = """
import sys
from pathlib import Path
from chatbot.model.base import load_base
from chatbot.registry import Registry
from feedback.settings import Home
from feedback.snapshot import Snapshot
from feedback.store import Store
home = Home.find(Path(sys.argv[1]))
registry = Registry(Store(home.db), home)
ids = []
for name in ("org/tiny", sys.argv[2], "org/tiny"):
    ids.append(registry.ensure_promoted(load_base(name, weights=False)).id)
    print(*registry.locate_base(registry.adapter(ids[-1])))
print(len(set(ids)), registry.base_change())
"""
    with serve_hub(folder) as address:
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}
        output = subprocess.check_output(
            [sys.executable, "-c", script, str(tmp_path / "home"), str(folder)],
            env=os.environ | environment,
            text=True,
        )
    assert output.splitlines() == [
        f"org/tiny {COMMIT}",
        f"{folder} None",
        f"org/tiny {COMMIT}",
        "1 None",
    ]


@pytest.mark.slow
def test_a_real_base_saved_anew_is_the_same_one_and_with_another_template_it_is_not(
    real_model: Path, tmp_path: Path
) -> None:
    base = load_base(str(real_model), weights=False)
    saved = tmp_path / "float32"
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    model.save_pretrained(saved, max_shard_size="200MB")
    AutoTokenizer.from_pretrained(real_model).save_pretrained(saved)
    assert load_base(str(saved), weights=False).identity == base.identity
    template = saved / "chat_template.jinja"
    template.write_text(template.read_text().replace("named SmolLM", "named Otto"))
    other = load_base(str(saved), weights=False)
    assert other.fingerprint == base.fingerprint and other.identity != base.identity


# -- Truly another base

CHANGES = (
    (other_weights, "other weights, w-"),
    (another_template, "the same weights w-"),
    (another_word_in_the_vocabulary, "the same weights w-"),
    (another_reach_of_positions, "the same weights w-"),
)


@pytest.mark.parametrize(("change", "what"), CHANGES)
def test_another_base_begins_its_own_line_and_the_former_waits_for_its_own(
    change: Change, what: str, folder: Path, registry: Registry, home: Home
) -> None:
    kept = Path(shutil.copytree(folder, folder.parent / "kept"))
    _, untrained, learnt = learn(folder, registry, home)
    other = load_base(change(folder), weights=False)
    zero = registry.ensure_promoted(other)
    assert zero.id not in (untrained, learnt) and registry.serving_order() == [zero.id]
    made = registry.base_change()
    assert made is not None and what in made.reason
    assert "cycles learn all approved answers anew" in made.reason
    assert "mine, not the one in service" in view.adapter_card(registry, learnt)
    assert "the base changed from mine" in view.promotion_history(registry, zero.id)
    with pytest.raises(AdapterError, match=f"but the base here, .* has {what}"):
        verify_adapter(registry.folder(learnt), other)
    with pytest.raises(RegistryError, match=r"belongs to another base.*--base-model"):
        registry.promote(learnt, "person", "ann", "I liked it")
    with pytest.raises(RegistryError, match="no earlier adapter"):
        registry.rollback("ann")
    assert {row.id for row in registry.adapters()} == {untrained, learnt, zero.id}

    assert registry.ensure_promoted(load_base(str(kept), weights=False)).id == learnt
    back = registry.base_change()
    assert back is not None and f"its own adapter {learnt} goes on" in back.reason
    assert registry.rollback("ann").adapter == untrained


# -- Homes from before identities were kept


def forget_identities(registry: Registry, store: Store) -> None:
    """Leave a home as Talkback left it when it named bases by their revision alone."""
    with store.write() as db:
        db.execute("delete from base")
    for row in registry.adapters():
        file = registry.folder(row.id) / "manifest.json"
        manifest = json.loads(file.read_text())
        del manifest["identity"]
        file.write_text(json.dumps(manifest))


def test_an_older_home_goes_on_by_the_weights_that_its_manifests_name(
    folder: Path, registry: Registry, store: Store, home: Home
) -> None:
    base, untrained, learnt = learn(folder, registry, home)
    forget_identities(registry, store)
    again = load_base(config_of_another_version(folder), weights=False)
    assert again.revision != base.revision
    assert registry.ensure_promoted(again).id == learnt and registry.base_change() is None
    assert registry.same_base(untrained) and registry.rollback("ann").adapter == untrained
    assert verify_adapter(registry.folder(untrained), again)


def test_an_older_home_on_another_base_begins_anew(
    folder: Path, registry: Registry, store: Store
) -> None:
    first = registry.ensure_promoted(load_base(str(folder)))
    forget_identities(registry, store)
    other = load_base(str(tiny_models.write_model(folder.parent / "other", seed=5)))
    assert registry.ensure_promoted(other).id != first.id
    change = registry.base_change()
    assert change is not None and "from mine to other (other weights" in change.reason


# -- Cycles


@pytest.fixture
def quick_stages(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Have cycles train random adapters and find each of them better, at once; return the
    arguments of each stage."""
    begun: list[list[str]] = []

    def run(module: str, arguments: list[str], **options: object) -> dict[str, object]:
        begun.append([module, *arguments])
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        if module == "training.train":
            base = load_base(given["--base-model"], given.get("--revision"))
            base.check_identity(given["--base-identity"])
            out = Path(given["--out"])
            adapter = tiny_models.write_adapter(out, base, seed=100 + len(begun))
            return {"id": adapter.name, "metrics": {}}
        suites = {"repairs": repaired(Path(given["--snapshot"])), "held_out": [], "retention": []}
        names = [Path(given[key]).name for key in ("--candidate", "--current")]
        verdict = Verdict("promote", ["It is better."])
        report = Report(*names, given["--base-model"], "s-1", suites, verdict=verdict)
        report.write(Path(given["--out"]))
        return {}

    monkeypatch.setattr("talkback.cycle.run_stage", run)
    monkeypatch.setenv("TALKBACK_CYCLE_GENERAL_PROMPTS", "false")
    return begun


def repaired(snapshot: Path) -> list[Comparison]:
    """What a report holds where an adapter gives each corrected answer unaided."""
    right, wrong = ScoredAnswer("", True, 100.0, 0.0), ScoredAnswer("", False, 0.0, 9.0)
    return [
        Comparison(
            row["prompt"][-1]["content"], row["completion"][0]["content"], None, right, wrong
        )
        for row in Snapshot.read(snapshot).rows("repairs")
    ]


def open_service(home: Home, name: str) -> Service:
    return Service.open(home, name, poll_seconds=0.1)


def test_a_new_base_learns_all_that_was_approved_and_the_former_goes_on_where_it_was(
    folder: Path, home: Home, quick_stages: list[list[str]]
) -> None:
    home.toml.write_text(SERVER_TOML)
    kept = Path(shutil.copytree(folder, folder.parent / "kept"))
    three = dict(list(LESSONS.items())[:3])
    with closing(open_service(home, "~/mine")) as service:
        teach(service, three)
        first = run_cycle(home, force=True)
        assert first.kind == "promoted" and first.reasons == ["It is better."]
        assert run_cycle(home).detail == "0 new of 5 needed"
        assert exemplars.active_answers(service.store) == [], "all have graduated"

    with closing(open_service(home, another_template(folder))) as service:
        assert len(exemplars.active_answers(service.store)) == 3, "they are in the prompts again"
        assert first.adapter not in service.rollout.adapters()
        status = json.loads(run_talkback(home, "status", "--json").stdout)
        assert "with another configuration, tokenizer or chat template" in status["base change"]
        assert status["base"] == str(folder)
        listed = json.loads(run_talkback(home, "adapters", "--json").stdout)
        assert [row["same_base"] for row in listed] == [True, False, False]
        outcome = run_cycle(home)
        assert outcome.kind == "promoted" and outcome.reasons[0] == status["base change"]
        assert outcome.snapshot == first.snapshot, "learnt from the same rows"
        assert run_cycle(home).reasons == [], "it is over with the first promotion"
        assert exemplars.active_answers(service.store) == []

    with closing(open_service(home, str(kept))) as service:
        assert service.speaking == first.adapter
        outcome = run_cycle(home)
        assert outcome.detail == "0 new of 5 needed" and "goes on" in outcome.reasons[0]
        teach(service, dict(list(LESSONS.items())[3:8]))
        newest = run_cycle(home)
        assert newest.kind == "promoted"
        assert service.registry.adapter(str(newest.adapter)).parent == first.adapter


def test_a_cycle_goes_on_where_the_folder_was_saved_anew_under_a_running_server(
    folder: Path, home: Home, quick_stages: list[list[str]]
) -> None:
    home.toml.write_text(SERVER_TOML)
    with closing(open_service(home, str(folder))) as service:
        teach(service, dict(list(LESSONS.items())[:5]))
        saved_in_shards_of_float32(folder)
        outcome = run_cycle(home)
        assert outcome.kind == "promoted" and outcome.reasons == ["It is better."]
        assert service.registry.same_base(str(outcome.adapter))
        service.rollout.follow()
        assert whole_turn(service, "Hello").speaker.adapter == outcome.adapter
        other_weights(folder)
        teach(service, dict(list(LESSONS.items())[5:]))
        with pytest.raises(BaseError, match=r"not the base that the server speaks with.*other we"):
            run_cycle(home)


def test_a_failed_attempt_on_one_base_is_none_on_another(
    store: Store,
) -> None:
    history = CycleHistory(store)
    for _ in range(3):
        history.begin("s-1", "sha-1")
    assert history.count_failed_attempts("s-1", {"sha-1", "sha-7"}) == 3
    assert history.count_failed_attempts("s-1", {"sha-2"}) == 0
