"""Publication of a release: to the Hugging Face hub, a folder that a web server shows, or a bucket.

The same bytes go everywhere, so one checksum in the registry holds for all addresses. What arrived is fetched back and
compared before it is reported.
"""

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.quoting import one_line
from data_pipeline.store.remote import put_files
from data_pipeline.store.shards import sha256
from data_pipeline.structure import SYMBOLS
from foundation import checkpoint
from foundation.checkpoint import CARD, CHECKSUMS, Description
from foundation.golden import verify_golden
from foundation.released import copy, licence_of
from foundation.releases.addresses import hub, parse_address
from foundation.releases.cache import OFFLINE, folder_at, offline

log = logging.getLogger(__name__)

BUCKETS = ("s3://", "gs://", "memory://")
"""Protocols of buckets; each needs its package of fsspec, such as s3fs."""


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Release to publish, and its place."""

    release: Path
    """Release folder."""
    to: str
    """hf:org/name or hf:org/name@branch, a folder, or a bucket (s3://bucket/folder)."""
    private: bool = False
    """Make a new repository of the hub visible to its organization only."""
    message: str = ""
    """Message of the commit; empty: the name of the release."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A release where others find it."""

    word: str
    """Word by which it is loaded: an address of this very version, or a folder."""
    entry: str
    """Entry for the registry, as YAML."""


def publish(config: PublishConfig) -> Published:
    """Publish a release.

    Raises:
        FileNotFoundError: no release there, or the package for the place is not installed.
        CorruptCheckpoint: the release is damaged.
        GoldenMismatch: it does not reproduce its golden predictions.
        ValueError: it is a private one, has no card, or the place is no address.
        PermissionError: nothing may leave this machine, or the hub refuses.
    """
    folder = checkpoint.find(config.release)
    described = _checked(folder)
    if config.to.startswith("hf:"):
        word = _to_hub(config, folder, described)
    elif config.to.startswith(BUCKETS):
        _refuse_offline(config.to)
        # the list of the others last: who finds it finds them
        put_files(folder, [*checkpoint.checksums_in(folder), CHECKSUMS], config.to)
        word = config.to
    else:
        copy(folder, Path(config.to))
        word = config.to
    return Published(word=word, entry=entry(folder, described, word))


def _checked(folder: Path) -> Description:
    """Return the description of a release that others may have, verified.

    Raises:
        ValueError: it is private, or has no card.
    """
    for name in (checkpoint.GOLDEN, CARD):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: not a release, it lacks {name}: make one with `foundation export`")
    verify_golden(folder)
    described = checkpoint.describe(folder)
    if described.origin.private:
        raise ValueError(f"{folder}: a private release; export it again with `--private false`, which asks for a card")
    if not (folder / CARD).read_text().startswith("---\n"):
        raise ValueError(f"{folder / CARD}: it does not tell its licence to the hub; export the run again")
    return described


def _to_hub(config: PublishConfig, folder: Path, described: Description) -> str:
    """Upload a release as one commit, fetch it back, and return its address."""
    _refuse_offline(config.to)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError("the hub needs huggingface_hub: pip install 'foundation[hub]'")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    address, branch = parse_address(config.to), config.to.partition("@")[2] or None
    assert address.hub is not None
    if address.hub != config.to.removeprefix("hf:").partition("@")[0]:
        raise ValueError(f"{config.to}: a release is published as a whole repository, hf:org/name, without a folder")
    api = huggingface_hub.HfApi(endpoint=hub())
    files = [CHECKSUMS, *checkpoint.checksums_in(folder)]
    try:
        api.create_repo(address.hub, private=config.private, exist_ok=True)
        if branch is not None:
            api.create_branch(address.hub, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=address.hub,
            folder_path=folder,
            revision=branch,
            allow_patterns=files,
            # what an older release of the repository had and this one has not
            delete_patterns=["*"],
            commit_message=config.message or f"Release {described.origin.name or folder.name}",
        )
    except HfHubHTTPError as error:
        how = "log in with `hf auth login`, or set HF_TOKEN"
        raise PermissionError(f"{config.to}: the hub refuses ({one_line(str(error))}): {how}") from error
    word = f"hf:{address.hub}@{done.oid}"
    # as others will get it, compared with what was sent
    folder_at(f"{word}#sha256={sha256(folder / CHECKSUMS)}")
    return word


def _refuse_offline(place: str) -> None:
    if offline():
        raise PermissionError(f"{place}: nothing may be uploaded, because of --offline or {OFFLINE}")


def entry(folder: Path, described: Description, word: str) -> str:
    """Return the entry of a release for the registry; the name and the version of a new one are to be chosen."""
    name = (described.origin.name or folder.name).lower().replace(" ", "-")
    values = {
        "name": name,
        "version": "1",
        "aliases": [],
        "licence": licence_of(folder),
        "theories": list(described.theories),
        "elements": [SYMBOLS[number] for number in sorted(described.elements)],
        "sha256": sha256(folder / CHECKSUMS),
        "folder": None,
        "addresses": [word],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n  ".join([f"- {lines[0]}", *lines[1:]])
