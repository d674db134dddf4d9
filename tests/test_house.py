"""The house rules that a reader relies on: names, rooms, docstrings, and docs that are true."""

import ast
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("talkback", "chatbot", "feedback", "training", "evaluation")
MOST_MODULES = 12

PRIVATE_WORDS = frozenset({"told", "said", "settle", "gear", "door", "aboard", "place", "plain"})
"""Words that this code once had meanings of its own for; the field's words stand there now."""
PRIVATE_WORDS_IN_C = PRIVATE_WORDS | {"meet", "turn", "hand"}
EVERYDAY: dict[str, str] = {}
"""Identifiers that hold one of these words in its everyday sense, and why there is no better."""

NOT_VERBS = """
    a about above after again all also an and another any are as at be before below beside
    between both but by each either else every everybody everyone everything false few first for
    four from he her here his how i if in into is it its just last least like many me more most my
    never new newest next no nobody none not nothing now of old oldest on once one ones only or
    other others our out over own people same several she so some somebody something such that
    the their them then there these they this those three to today too true two under until up
    upon us was we were what whatever when where whether which while who whoever whole whose why
    will with without you your
    adapter adapters approved chunk chunks conversation conversations cuda event events
    exemplar exemplars feedback kernel kernels key keys linear linears message messages model models
    number numbers page pages rotary row rows table tables text texts token tokens weights
"""
"""What no docstring begins with: its first word is a verb that says what the thing does."""

SAME_NAME_ALLOWED = frozenset({"__init__.py", "__main__.py"})
PAGE_FILES = frozenset({"page.py", "view.py"})
"""Each page has a folder with these two."""


def sources() -> list[Path]:
    """All modules of the product, without tests."""
    return [file for stage in STAGES for file in sorted((ROOT / stage).rglob("*.py"))]


def code_of_tests() -> list[Path]:
    """All test code but the script that runs with the code of another commit."""
    return sorted({*(ROOT / "tests").rglob("*.py")} - {*(ROOT / "tests").rglob("make_home.py")})


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def where(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def words(identifier: str) -> list[str]:
    """["lora", "batch"] of LoraBatch and of lora_batch."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def test_no_two_public_classes_have_one_name() -> None:
    found_in = defaultdict(list)
    for file in sources():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found_in[node.name].append(where(file, node))
    assert {name: found for name, found in found_in.items() if len(found) > 1} == {}


def test_exceptions_end_in_error() -> None:
    bases = {"Exception", "RuntimeError", "ValueError"}
    found: list[tuple[Path, ast.ClassDef]] = [
        (file, node)
        for file in sources()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ClassDef)
    ]
    for _ in range(4):  # bases of bases
        bases |= {
            node.name
            for _, node in found
            if any(isinstance(base, ast.Name) and base.id in bases for base in node.bases)
        }
    wrong = [
        f"{where(file, node)} {node.name}"
        for file, node in found
        if node.name in bases and not node.name.endswith("Error")
    ]
    assert wrong == []


@pytest.mark.parametrize("stage", STAGES)
def test_no_two_files_of_a_stage_have_one_name(stage: str) -> None:
    files = [file for file in sources() if file.relative_to(ROOT).parts[0] == stage]
    counts = Counter(file.name for file in files)
    pages = {file.parent for file in files if file.name in PAGE_FILES}
    twice = {name for name, count in counts.items() if count > 1}
    assert twice - SAME_NAME_ALLOWED - PAGE_FILES == set()
    assert all(folder.parent.name == "pages" for folder in pages)


def test_no_folder_is_crowded() -> None:
    counts = Counter(file.parent for file in sources() if file.name not in SAME_NAME_ALLOWED)
    crowded = {str(folder): count for folder, count in counts.items() if count > MOST_MODULES}
    assert crowded == {}


def test_helpers_of_the_tests_have_folders_of_their_own() -> None:
    flat = {file.name for file in (ROOT / "tests").glob("*.py")}
    helpers = {name for name in flat if not name.startswith("test_")} - {"conftest.py"}
    assert helpers == set()
    imported = re.compile(r"^\s*(?:from|import) tests\.test_", re.MULTILINE)
    assert [f.name for f in code_of_tests() if imported.search(f.read_text(encoding="utf-8"))] == []


def identifiers(file: Path) -> Iterator[tuple[str, str]]:
    """Every name that is defined in a file, with its place; tests are sentences and go free."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("test_"):
                yield node.name, where(file, node)
        elif isinstance(node, ast.arg):
            yield node.arg, where(file, node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, where(file, node)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, where(file, node)
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, where(file, node)


def test_identifiers_are_free_of_private_words() -> None:
    private = [
        f"{location} {name}"
        for file in [*sources(), *code_of_tests()]
        for name, location in [(file.stem, str(file.relative_to(ROOT))), *identifiers(file)]
        if PRIVATE_WORDS.intersection(words(name)) and name not in EVERYDAY
    ]
    assert private == []


def test_identifiers_in_c_are_free_of_private_words() -> None:
    files = [*(ROOT / "chatbot").rglob("*.c"), *(ROOT / "chatbot").rglob("*.h")]
    assert files
    private = []
    for file in files:
        code = re.sub(r"/\*.*?\*/|//[^\n]*|\"[^\"\n]*\"", " ", file.read_text(), flags=re.DOTALL)
        for name in sorted(set(re.findall(r"[A-Za-z_]\w*", code))):
            if PRIVATE_WORDS_IN_C.intersection(words(name)) and name not in EVERYDAY:
                private.append(f"{file.name} {name}")
    assert private == []


def documented(file: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a module and of all that is public in it, with their places."""
    nodes: list[ast.AST] = [tree(file)]
    while nodes:
        node = nodes.pop()
        if getattr(node, "name", "").startswith("_"):
            continue
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if (text := ast.get_docstring(node)) is not None:
            yield text, where(file, node)
        if isinstance(node, ast.Module | ast.ClassDef):
            nodes += node.body


def test_public_docstrings_begin_with_a_verb() -> None:
    wrong = [
        f"{location} {text.splitlines()[0]!r}"
        for file in sources()
        for text, location in documented(file)
        if re.split(r"[^A-Za-z']", text, maxsplit=1)[0].lower() in {*NOT_VERBS.split(), ""}
    ]
    assert wrong == []


def test_every_public_class_and_function_of_a_module_has_a_docstring() -> None:
    bare = [
        f"{where(file, node)} {node.name}"
        for file in sources()
        for node in tree(file).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not node.name.startswith("_") and ast.get_docstring(node) is None
    ]
    assert bare == []


# -- Docs cannot lie


def docs() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def defined(file: Path, name: str) -> bool:
    """Whether `Class.method`, `function` or `NAME` is defined in a file."""
    body: list[ast.stmt] = tree(file).body
    for part in name.split("."):
        found = None
        for node in body:
            names = {getattr(node, "name", None)}
            if isinstance(node, ast.Assign):
                names |= {getattr(target, "id", None) for target in node.targets}
            if isinstance(node, ast.AnnAssign):
                names |= {getattr(node.target, "id", None)}
            if part in names:
                found = node
        if found is None:
            return False
        body = getattr(found, "body", [])
    return True


@cache
def tracked() -> frozenset[str]:
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    return frozenset(listed)


@pytest.mark.parametrize("page", docs(), ids=lambda page: page.name)
def test_files_and_functions_that_docs_name_exist(page: Path) -> None:
    """`path/file.py` is a file here, and `path/file.py:Class.method` is defined in it."""
    text = page.read_text(encoding="utf-8")
    tops = "|".join((*STAGES, "tests", "deploy", "docs"))
    named = re.findall(rf"`((?:{tops})/[\w/.-]*)(?::([\w.]+))?`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = []
    for path, name in named:
        file = ROOT / path
        if not file.exists():
            missing.append(path)
        elif name and not defined(file, name):
            missing.append(f"{path}:{name}")
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", ["life-of-a-message.md", "life-of-a-correction.md"])
def test_a_life_has_eight_steps_each_with_its_file_and_function(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    steps = re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]
    assert [step.split(".")[0] for step in steps] == [str(n) for n in range(1, 9)]
    for step in steps:
        assert re.search(r"`[\w/]+\.(?:py|c):[\w.]+`", step), step.splitlines()[0]
