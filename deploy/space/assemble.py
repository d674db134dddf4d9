"""Assembles the files of a Space: our packages, and app.py, README.md, requirements.txt.

    python deploy/space/assemble.py /tmp/space && cd /tmp/space && git init && git push ...

A Space installs requirements.txt alone, before the repository is there, so the packages travel
as source beside app.py and only their dependencies are listed. The engine's kernels travel as pip
compiled them here, which a Space can use if this is Linux on x86-64 with Python 3.11.
"""

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def assemble(out: Path) -> None:
    """Fill the folder ``out`` (made if need be) with all that the Space needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    out.mkdir(parents=True, exist_ok=True)
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        package = pattern.removesuffix("*")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, out / package, dirs_exist_ok=True, ignore=ignore)
    for name in ("app.py", "README.md"):
        shutil.copy(HERE / name, out)
    shutil.copy(ROOT / "LICENSE", out)
    (out / "requirements.txt").write_text("\n".join(project["project"]["dependencies"]) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python deploy/space/assemble.py OUT")
    assemble(Path(sys.argv[1]))
