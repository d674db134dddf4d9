"""Tests what the package says of itself: its dependencies, and that it begins anywhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("talkback", "chatbot", "feedback", "training", "evaluation")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported_modules() -> set[str]:
    """Return the top-level modules of others that our code imports, wherever it does."""
    found = {
        name.partition(".")[0]
        for stage in STAGES
        for file in (ROOT / stage).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in names_in(node)
    }
    return found - {*STAGES, *sys.stdlib_module_names}


def names_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module


def declared_packages() -> set[str]:
    """Return the declared dependencies, and the packages that their extras stand for."""
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["space"]]
    return {normalized(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def normalized(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_whatever_the_code_imports_is_declared() -> None:
    distributions, declared = packages_distributions(), declared_packages()
    undeclared = {
        module
        for module in imported_modules()
        if not declared & {normalized(name) for name in distributions.get(module, [module])}
    }
    assert undeclared == set()


def test_every_dependency_says_how_old_it_may_be() -> None:
    assert [line for line in PROJECT["dependencies"] if ">=" not in line] == []


def test_the_command_line_begins_where_unix_modules_are_missing() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['fcntl', 'pwd', 'resource', 'termios']))\n"
        "sys.argv = ['talkback', '--help']\n"
        "from talkback.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Copy what makes a wheel with kernels and nothing else."""
    kernels = Path("chatbot/engine/local/kernels")
    (tmp_path / kernels).mkdir(parents=True)
    for file in (ROOT / kernels).iterdir():
        if file.suffix in (".c", ".h", ".py"):
            shutil.copy(file, tmp_path / kernels)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "chatbot/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for package in ("chatbot/engine", "chatbot/engine/local"):
        shutil.copy(ROOT / package / "__init__.py", tmp_path / package)
    return tmp_path


def build_wheel(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=sources,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_a_wheel_without_kernels_says_so_by_its_name(sources: Path) -> None:
    done = build_wheel(sources, CC="false")
    assert done.returncode == 0, done.stderr
    (wheel,) = (sources / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "NO KERNELS" in done.stdout + done.stderr


def test_a_wheel_that_must_have_kernels_is_not_built_without(sources: Path) -> None:
    done = build_wheel(sources, CC="false", TALKBACK_REQUIRE_KERNELS="1")
    assert done.returncode != 0 and not [*(sources / "dist").glob("*.whl")]


def test_a_wheel_with_kernels_is_for_its_platform(sources: Path) -> None:
    (sources / "chatbot/engine/local/kernels/forward.c").write_text("int kernel;\n")
    done = build_wheel(sources, TALKBACK_REQUIRE_KERNELS="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = (sources / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "none-any" not in wheel.name and sum(".so" in name for name in names) == 3
