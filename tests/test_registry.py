"""The registry: which adapters there are, and who is in service."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from chatbot.known_bases import UnknownBaseError
from chatbot.registry import (
    PromotionConflictError,
    Registry,
    RegistryError,
    UnconfirmedPromotionError,
)
from feedback.settings import Home
from feedback.store import Store


@pytest.fixture
def registry(store: Store, home: Home) -> Registry:
    return Registry(store, home)


def new(home: Home, number: int, revision: str = "sha-1") -> Path:
    """A folder with the manifest of an adapter; the registry looks at nothing else."""
    folder = home.adapters / f"a-{number:012x}"
    folder.mkdir()
    manifest = {
        "id": folder.name,
        "base": "tiny",
        "base_revision": revision,
        "snapshot": "s-1",
        "recipe": {"seed": 7},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def promoted(registry: Registry, home: Home, count: int) -> list[str]:
    """Adapters that were in service one after the other."""
    ids = [registry.register(new(home, number)) for number in range(count)]
    for id in ids:
        registry.promote(id, "person", "ann", "try it")
    return ids


def serving(registry: Registry) -> str:
    current = registry.current()
    assert current is not None
    return current.id


def test_an_adapter_keeps_what_its_manifest_and_its_maker_say(
    registry: Registry, home: Home
) -> None:
    id = registry.register(new(home, 1), parent="a-0", lineage={"rows": 20})
    row = registry.adapter(id)
    assert (row.base, row.base_revision, row.snapshot) == ("tiny", "sha-1", "s-1")
    assert (row.parent, row.recipe, row.lineage) == ("a-0", {"seed": 7}, {"rows": 20})
    assert registry.folder(id) == home.adapters / id


def test_registering_the_same_adapter_again_changes_nothing(registry: Registry, home: Home) -> None:
    folder = new(home, 1)
    registry.register(folder, parent="a-0")
    registry.register(folder, parent="a-other")
    assert [row.parent for row in registry.adapters()] == ["a-0"]


def test_a_folder_that_is_elsewhere_or_not_what_it_says_is_refused(
    registry: Registry, home: Home, tmp_path: Path
) -> None:
    moved = new(home, 1).rename(home.adapters / "a-renamed")
    with pytest.raises(RegistryError, match="not the adapter"):
        registry.register(moved)
    with pytest.raises(RegistryError, match="move it there"):
        registry.register(tmp_path)
    (home.adapters / "empty").mkdir()
    with pytest.raises(RegistryError, match="manifest"):
        registry.register(home.adapters / "empty")
    assert registry.adapters() == []


def test_an_unknown_adapter_is_not_promoted(registry: Registry, home: Home) -> None:
    known = registry.register(new(home, 1))
    with pytest.raises(RegistryError, match=known):
        registry.promote("a-nowhere", "person", "ann", "why not")
    assert registry.current() is None


def test_the_newest_promotion_is_in_service_and_history_keeps_all(
    registry: Registry, home: Home
) -> None:
    ids = promoted(registry, home, 3)
    assert serving(registry) == ids[-1]
    assert [row.adapter for row in registry.history()] == ids[::-1]


def test_two_rollbacks_go_two_steps_back_and_no_further(registry: Registry, home: Home) -> None:
    first, second, third = promoted(registry, home, 3)
    assert registry.rollback("ann").adapter == second
    assert registry.rollback("ann").adapter == first
    with pytest.raises(RegistryError, match="no earlier"):
        registry.rollback("ann")
    registry.promote(third, "person", "ann", "again")
    assert registry.rollback("ann").adapter == first
    assert len(registry.history()) == 7


def test_a_rollback_stays_with_its_base(registry: Registry, home: Home) -> None:
    promoted(registry, home, 1)
    other = registry.register(new(home, 9, revision="sha-2"))
    registry.promote(other, "start", "talkback", "another base")
    with pytest.raises(RegistryError, match="no earlier"):
        registry.rollback("ann")


def test_reports_are_found_by_their_adapter(registry: Registry) -> None:
    for number in (1, 2):
        registry.add_report(
            f"r-{number}", adapter=f"a-{number}", against="a-0", verdict="refuse", reasons=["worse"]
        )
    assert [report.id for report in registry.reports()] == ["r-2", "r-1"]
    (report,) = registry.reports("a-1")
    assert (report.against, report.verdict, report.reasons) == ("a-0", "refuse", ["worse"])


def test_the_first_start_puts_an_adapter_equal_to_the_base_in_service(
    registry: Registry, tiny_base: Path
) -> None:
    from chatbot.model.adapter import verify_adapter
    from chatbot.model.base import load_base

    base = load_base(str(tiny_base))
    first = registry.ensure_promoted(base)
    assert verify_adapter(registry.folder(first.id), base).id == first.id == serving(registry)
    assert registry.ensure_promoted(base) == first
    assert [row.by for row in registry.history()] == ["start"]


def test_back_on_a_base_its_last_adapter_speaks_again(
    registry: Registry, home: Home, tiny_base: Path
) -> None:
    from chatbot.model.base import load_base

    base = load_base(str(tiny_base))
    registry.ensure_promoted(base)
    learnt = registry.register(new(home, 5, revision=base.revision))
    registry.promote(learnt, "gate", "cycle", "better")
    other = registry.register(new(home, 9, revision="sha-2"))
    registry.promote(other, "start", "talkback", "another base")
    assert registry.ensure_promoted(base).id == learnt == serving(registry)


def test_a_base_is_where_it_was_served_from_last(
    registry: Registry, tiny_base: Path, tmp_path: Path
) -> None:
    from chatbot.model.base import load_base

    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_base, old)
    adapter = registry.ensure_promoted(load_base(str(old), weights=False))
    assert registry.locate_base(adapter) == (str(old), None)
    old.rename(new)
    for _ in range(4):  # no failed attempt, which would be passed over in silence after three
        with pytest.raises(
            UnknownBaseError, match=f"there is no folder {old}.*--base-model FOLDER"
        ):
            registry.locate_base(adapter)
    assert registry.ensure_promoted(load_base(str(new), weights=False)) == adapter
    assert registry.locate_base(adapter) == (str(new), None)
    starter = replace(adapter, base="/old/site-packages/chatbot/starter", base_revision="sha-7")
    assert registry.locate_base(starter) == ("talkback-starter", None)
    hub = replace(adapter, base="org/model", base_revision="0123abc")
    assert registry.locate_base(hub) == ("org/model", "0123abc")


@pytest.mark.parametrize("verdict", ["refuse", "not_enough_evidence"])
def test_what_the_gate_did_not_find_better_takes_a_confirmed_decision(
    registry: Registry, home: Home, verdict: str
) -> None:
    first, second = promoted(registry, home, 2)
    registry.rollback("ann")
    registry.add_report("r-1", adapter=second, against=first, verdict=verdict, reasons=["Worse."])
    with pytest.raises(UnconfirmedPromotionError, match=r"verdict on a-.*Worse\.; confirm"):
        registry.promote(second, "person", "otto", "I like it")
    assert serving(registry) == first
    made = registry.promote(second, "person", "otto", "I like it", confirmed=True)
    assert (serving(registry), made.who, made.reason) == (second, "otto", "I like it")


def test_two_operators_do_not_overrule_each_other_unknowingly(
    registry: Registry, home: Home
) -> None:
    first, second, third = promoted(registry, home, 3)
    seen = registry.history()[0].id
    registry.rollback("otto", "too terse", seen=seen)
    for overrule in (
        lambda: registry.rollback("eve", seen=seen),
        lambda: registry.promote(third, "person", "eve", "why not", seen=seen),
    ):
        with pytest.raises(PromotionConflictError, match=r"otto promoted .* on 20.*too terse"):
            overrule()
    assert serving(registry) == second
    assert registry.rollback("eve", seen=registry.history()[0].id).adapter == first
