"""Addresses of released potentials: hf:org/name@revision of the Hugging Face hub, and https:// of any web server.

Both are a folder whose files lie at its address behind a slash, so one downloader serves them, without the hub's
library. An address is not in the registry: its first answer is believed, unless the word ends in #sha256= and the
checksum of SHA256SUMS.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from foundation.checkpoint import SHA256

HUB = "https://huggingface.co"
"""Address of the hub, unless $HF_ENDPOINT has another."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB = re.compile(rf"hf:(?P<name>{_PART}/{_PART})(?P<folder>(?:/{_PART})*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?")
_WEB = re.compile(r"(?P<scheme>https?):/{1,2}(?P<rest>[^/?#\s][^?#\s]*)")
"""Pattern of web addresses; a path has lost one of the slashes."""
_ADDRESS = re.compile(r"(hf:|https?:/)")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Folder of a release elsewhere."""

    word: str
    """The address as it was given."""
    base: str
    """Address before the slash and the name of a file."""
    sha256: str | None = None
    """Checksum that SHA256SUMS must have, or None."""
    hub: str | None = None
    """Name of the repository on the hub, or None."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request: the user's token, for the hub alone."""
        token = _token() if self.hub else None
        return {"Authorization": f"Bearer {token}"} if token else {}


def is_address(word: str) -> bool:
    """Return whether a word is meant as an address."""
    return bool(_ADDRESS.match(word))


def parse_address(word: str) -> Address:
    """Return the address in a word.

    Raises:
        ValueError: it is none; the message has the form.
    """
    place, marked, pin = word.partition("#")
    digest = pin.removeprefix("sha256=") if marked else None
    if digest is not None and not re.fullmatch(SHA256, digest):
        raise ValueError(f"{word}: behind # belongs sha256= and the checksum of SHA256SUMS, 64 hexadecimal digits")
    if found := _HUB.fullmatch(place):
        revision = quote(found["revision"] or "main", safe="")
        base = f"{hub()}/{found['name']}/resolve/{revision}{found['folder']}"
        return Address(word=word, base=base, sha256=digest, hub=found["name"])
    if found := _WEB.fullmatch(place):
        base = f"{found['scheme']}://{found['rest'].rstrip('/')}"
        if found["scheme"] == "http" and digest is None and urlsplit(base).hostname not in LOOPBACK:
            raise ValueError(f"{word}: what comes by http may be altered on the way; use https, or add #sha256=...")
        return Address(word=word, base=base, sha256=digest)
    raise ValueError(f"{word}: not an address: hf:org/name@revision, or https:// and a folder, without ? and spaces")


def hub() -> str:
    """Return the address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _token() -> str | None:
    """Return the user's token for the hub: $HF_TOKEN, or that of `hf auth login`."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return os.environ.get("HF_TOKEN") or (file.read_text().strip() if file.is_file() else None) or None


def hub_name(word: str) -> str | None:
    """Return the name on the hub of the repository at an address, or None."""
    found = _HUB.fullmatch(word.partition("#")[0])
    return found.group("name") if found else None
