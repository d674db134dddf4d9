"""Finds the home folder, and reads a stage's table of ``talkback.toml``.

    TALKBACK_HOME=/srv/talkback TALKBACK_SERVER_PORT=8080 talkback serve

A stage declares its settings beside the code that reads them; the environment overrides the file,
and a key or table that nobody knows is an error.
"""

import json
import os
import re
import shlex
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as PydanticSettingsError

from feedback.errors import TalkbackError, describe_os_error
from feedback.publish import make_folder, private_mode

_SERVICE_VARIABLE = re.compile(
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*|PORT=\w+://.*"
)
"""What Kubernetes puts into each container for a service: SERVER_PORT=tcp://10.0.0.7:8000 of one
that is called talkback-server."""


class SettingsError(TalkbackError):
    """Reports a setting that cannot be read; names key, table, file and what is known."""


@dataclass(frozen=True)
class Home:
    """Names the paths in the one folder that holds all state: back it up and nothing is lost."""

    root: Path

    @classmethod
    def locate(cls, path: Path | None = None) -> Self:
        """Return the home at ``path``, ``TALKBACK_HOME`` or ``~/.talkback``; makes nothing."""
        name = str(path or os.environ.get("TALKBACK_HOME", "")).strip() or "~/.talkback"
        try:
            return cls(Path(name).expanduser().resolve())
        except RuntimeError as error:  # a user without HOME and without an entry in passwd
            raise SettingsError(f"{name}: {error} Name a folder in TALKBACK_HOME.") from error

    @classmethod
    def find(cls, path: Path | None = None) -> Self:
        """Return the home that `locate` finds, with its folders."""
        home = cls.locate(path)
        try:
            make_folder(home.root, stat.S_IRWXU)
            for folder in (home.snapshots, home.adapters, home.reports):
                make_folder(folder, private_mode(home.root))
        except OSError as error:
            raise SettingsError(
                f"cannot make the home {home.root}: {error.strerror}; "
                "name a writable folder in TALKBACK_HOME"
            ) from error
        return home

    def exposure(self) -> str:
        """Describe in one line that everybody on this machine can read the home, and the remedy;
        "" when only its owner and its group can."""
        mode = self.root.stat().st_mode
        state = (self.db, self.toml, self.snapshots, self.adapters, self.reports)
        exposed = [path for path in state if path.exists() and path.stat().st_mode & stat.S_IROTH]
        if not (mode & stat.S_IXOTH and exposed):
            return ""
        whom = "o" if mode & stat.S_ISGID else "go"
        return (
            f"everybody on this machine can read {exposed[0]}; close the home with: "
            f"chmod -R {whom}-rwx {shlex.quote(str(self.root))}"
        )

    @property
    def db(self) -> Path:
        """Return the path of the SQLite database."""
        return self.root / "talkback.db"

    @property
    def snapshots(self) -> Path:
        """Return the folder that holds a folder a snapshot."""
        return self.root / "snapshots"

    @property
    def adapters(self) -> Path:
        """Return the folder that holds a folder an adapter."""
        return self.root / "adapters"

    @property
    def reports(self) -> Path:
        """Return the folder that holds a folder a report."""
        return self.root / "reports"

    @property
    def general(self) -> Path:
        """Return the folder that holds what the bases answer to the general prompts."""
        return self.root / "general"

    @property
    def forms(self) -> Path:
        """Return the folder that says in which form each base goes by approved answers."""
        return self.root / "forms"

    @property
    def toml(self) -> Path:
        """Return the path of the settings file."""
        return self.root / "talkback.toml"

    @property
    def lock(self) -> Path:
        """Return the path of the lock that one cycle at a time holds."""
        return self.root / "cycle.lock"

    @property
    def server_lock(self) -> Path:
        """Return the path of the lock that servers share, and that a restore has alone."""
        return self.root / "server.lock"

    @property
    def engine(self) -> Path:
        """Return the path of the file in which the server says how its engine computes."""
        return self.root / "engine.json"

    @property
    def running_cycle(self) -> Path:
        """Return the path of the file in which the cycle that has the lock says what it does."""
        return self.root / "cycle.json"


class Settings(BaseSettings):
    """Reads a table of ``talkback.toml``; a subclass names its ``table`` and declares its keys."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
        str_strip_whitespace=True,
    )
    table: ClassVar[str]

    @classmethod
    def read(cls, home: Home) -> Self:
        """Read defaults, the file's table and ``TALKBACK_<TABLE>_<KEY>``, of which the later wins;
        raise SettingsError."""
        table = _read_tables(home).get(cls.table, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{cls.table!r} in {home.toml} is a value; write it as a table")
        cls._refuse_unknown(table, f"table [{cls.table}] of {home.toml}")
        try:
            return cls(**_merge(table, cls._environment()))
        except ValidationError as error:
            raise SettingsError(_describe_error(error, cls.table, home.toml)) from error

    @classmethod
    def _environment(cls) -> dict[str, Any]:
        prefix = f"TALKBACK_{cls.table.upper()}_"
        keys = _read_variables(prefix)
        cls._refuse_unknown([key.split("__")[0].lower() for key in keys], f"environment {prefix}*")
        source = EnvSettingsSource(cls, env_prefix=prefix)
        source.env_vars = {f"{prefix}{key}".lower(): value for key, value in keys.items()}
        try:
            return _parse_nested(source())
        except PydanticSettingsError as error:
            raise SettingsError(f"{prefix}*: {error}; lists and tables are JSON") from error

    @classmethod
    def _refuse_unknown(cls, keys: Iterable[str], where: str) -> None:
        unknown = sorted(set(keys) - set(cls.model_fields))
        if unknown:
            known = ", ".join(sorted(cls.model_fields))
            raise SettingsError(f"unknown key {unknown[0]!r} in {where}; known: {known}")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the environment to ``read``: settings made in code are what the code passes."""
        return (init_settings,)


def check_tables(home: Home, known: Iterable[str]) -> None:
    """Raise SettingsError for a table that no stage reads: most likely a slip of the pen."""
    names = sorted(set(known))
    for table in _read_tables(home):
        if table not in names:
            raise SettingsError(
                f"unknown table [{table}] in {home.toml}; known: {', '.join(names)}"
            )


def _read_variables(prefix: str) -> dict[str, str]:
    """Return the variables of a prefix that are set, without it and without outer white space.

    An empty one is not set. Those that Kubernetes makes for a service of such a name are not ours.
    """
    found = {
        name.removeprefix(prefix): value.strip()
        for name, value in os.environ.items()
        if name.startswith(prefix)
    }
    return {
        key: value
        for key, value in found.items()
        if value and not _SERVICE_VARIABLE.fullmatch(f"{key}={value}")
    }


def _read_tables(home: Home) -> dict[str, Any]:
    try:
        return tomllib.loads(home.toml.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"cannot read the settings: {describe_os_error(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{home.toml} is not TOML: {error}") from error


def _parse_nested(environment: dict[str, Any]) -> dict[str, Any]:
    """Parse the values of sub-tables, whose types are not declared: ``0.1`` is a number."""
    return {
        key: {name: _parse_value(text) for name, text in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in environment.items()
    }


def _parse_value(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return both tables merged key by key, inside sub-tables too; ``above`` wins."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _describe_error(error: ValidationError, table: str, file: Path) -> str:
    complaint = error.errors()[0]
    key = ".".join(str(part) for part in complaint["loc"])
    return (
        f"{key} = {complaint['input']!r} in table [{table}] of {file} "
        f"(or TALKBACK_{table.upper()}_{key.upper()}): {complaint['msg']}"
    )
