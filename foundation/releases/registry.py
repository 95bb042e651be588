"""Registry of released potentials: names, versions and aliases, and the checksum that their files must have.

It lies in the package (model_cards/registry.yaml), so a name means the same bytes wherever they come from. The checksum
is that of SHA256SUMS, which has those of all other files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from data_pipeline.store.untrusted import typed
from data_pipeline.structure import SYMBOLS
from foundation.checkpoint import SHA256

PACKAGE = Path(__file__).resolve().parents[2] / "model_cards"
"""Folder of the package with the registry, the shipped releases and the cards."""
NAME = r"[a-z0-9][a-z0-9._-]*"
"""Pattern of names and aliases; capital letters do not matter where they are asked for."""
VERSION = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class NoSuchRelease(FileNotFoundError):
    """A name that was removed, or a version that does not exist; the message says what there is instead."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A released potential."""

    name: str
    """Name, `<architecture or family>-<data>-<theory>-<version>`."""
    version: str
    """Version of the release; the first listed one of a name is meant if none is given."""
    aliases: tuple[str, ...]
    """Other names of this version."""
    licence: str
    """Licence of the weights (SPDX identifier)."""
    theories: tuple[str, ...]
    """Levels of theory that it knows."""
    elements: tuple[str, ...]
    """Symbols of the elements that it knows."""
    sha256: str
    """Checksum of its SHA256SUMS."""
    folder: str | None
    """Folder in model_cards/releases/ of this package; None if it is not shipped."""
    addresses: tuple[str, ...]
    """Addresses of its folder (https://... or hf:org/name@revision), tried in order."""

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases):
            if not re.fullmatch(NAME, name):
                raise ValueError(f"{name!r} is no name: small letters, digits, and . _ - between them")
        if not re.fullmatch(VERSION, self.version) or not re.fullmatch(SHA256, self.sha256):
            raise ValueError(f"{self.name}: {self.version!r} is no version, or {self.sha256!r} no checksum")
        if self.folder is not None and not re.fullmatch(VERSION, self.folder):
            raise ValueError(f"{self.name}: {self.folder!r} is no folder of the package")
        if self.folder is None and not self.addresses:
            raise ValueError(f"{self.name}: neither a folder nor an address")
        if unknown := set(self.elements) - set(SYMBOLS):
            raise ValueError(f"{self.name}: {', '.join(sorted(unknown))} is no element")

    @property
    def title(self) -> str:
        """Name and version, as it can be asked for."""
        return f"{self.name}@{self.version}"

    @property
    def shipped(self) -> Path | None:
        """Folder of the release in this package, or None."""
        return None if self.folder is None else PACKAGE / "releases" / self.folder


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A name that is not given any more."""

    name: str
    """The name."""
    successor: str
    """Name to use instead."""
    reason: str
    """Reason of the removal."""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """All released potentials."""

    releases: tuple[Release, ...]
    """Releases, the newest version of a name first."""
    removed: tuple[Removed, ...]
    """Names that were removed."""

    def __post_init__(self) -> None:
        titles = [release.title for release in self.releases]
        names = {release.name for release in self.releases}
        aliases = [alias for release in self.releases for alias in release.aliases]
        others = [*aliases, *(each.name for each in self.removed)]
        twice = [each for each in (*titles, *others) if (*titles, *others, *names).count(each) > 1]
        if twice:
            raise ValueError(f"{twice[0]} occurs twice")
        for each in self.removed:
            if each.successor not in names:
                raise ValueError(f"the successor of {each.name}, {each.successor}, is no release")

    @property
    def names(self) -> list[str]:
        """All names, aliases after the names."""
        names = dict.fromkeys(release.name for release in self.releases)
        return [*names, *(alias for release in self.releases for alias in release.aliases)]

    def find(self, word: str) -> Release | None:
        """Return the release that a name, an alias or name@version means; None if the name is unknown.

        Raises:
            NoSuchRelease: the name was removed, or has no such version; the message says what there is.
        """
        name, marked, version = word.partition("@")
        found = list(self._named(name.lower()))
        if not found:
            return None
        if not marked:
            return found[0]
        chosen = [release for release in self.releases if release.name == found[0].name]
        for release in chosen:
            if release.version == version:
                return release
        there = ", ".join(release.title for release in chosen)
        raise NoSuchRelease(f"{word}: there is no version {version!r} of {name}, but {there}")

    def _named(self, name: str) -> Iterator[Release]:
        """Yield the releases of a name or an alias."""
        for each in self.removed:
            if each.name == name:
                raise NoSuchRelease(f"{name} was removed: {each.reason}. Its successor is {each.successor}")
        yield from (release for release in self.releases if name == release.name)
        yield from (release for release in self.releases if name in release.aliases)


@cache
def registry() -> Registry:
    """Return the registry of this package."""
    return read_registry(PACKAGE / "registry.yaml")


def read_registry(file: Path) -> Registry:
    """Return the registry in a file.

    Raises:
        ValueError: an entry is missing or unknown, or two releases have the same name.
    """
    return typed(Registry, yaml.safe_load(file.read_text()), "")
