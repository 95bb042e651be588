"""Lineage of a potential: the checksums of everything that its weights come from, as its config.json has them.

A release that was trained here carries the checksum of its start's weights, of the manifests of its data and of those
that it rehearsed, of its Fisher, and the resolved configuration of its run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from foundation.checkpoint import Description
from foundation.provenance import Facts, Provenance
from foundation.releases.registry import Registry

UNKNOWN = "not stated"
FACTS = ("theory", "licence")
"""Facts of a data set that are shown."""


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """Something that the weights of a potential come from."""

    kind: str
    """Relation to the potential."""
    name: str
    """Its name."""
    sha256: str
    """Checksum of its file, its manifest or its weights."""
    remark: str = ""
    """Anything else to know."""


def lineage(described: Description, known: Registry) -> list[Ancestor]:
    """Return the ancestors of a potential, itself first.

    Args:
        described: Description of the potential.
        known: Registry in which parents are looked up by the name that the description has.
    """
    origin = described.origin
    own = Ancestor(kind="weights", name=origin.name, sha256=described.weights_sha256, remark=origin.method)
    return [own, *_parents(origin, known), *_data(origin), *_protection(origin)]


def _parents(origin: Provenance, known: Registry) -> Iterator[Ancestor]:
    converted, start = origin.converted_from, origin.start
    if converted.sha256:
        yield Ancestor(kind="converted from", name=converted.file, sha256=converted.sha256, remark=converted.name)
    if start.weights_sha256:
        release = known.find(start.name) if start.name in known.names else None
        remark = f"released as {release.title}" if release else start.folder
        if start.checkpoint is not None and not start.checkpoint.finished:
            remark += f", its checkpoint of step {start.checkpoint.step}"
        yield Ancestor(kind="parent", name=start.name or start.folder, sha256=start.weights_sha256, remark=remark)
    if origin.interpolated is not None:
        remark = f"at {origin.interpolated.alpha:g} of the way from the parent"
        yield Ancestor(kind="result", name="", sha256=origin.interpolated.weights_sha256, remark=remark)


def _data(origin: Provenance) -> Iterator[Ancestor]:
    kinds = (("data", origin.datasets), ("rehearsed", origin.rehearsed), ("data of the parent", origin.start.datasets))
    for kind, datasets in kinds:
        for facts in datasets:
            yield Ancestor(
                kind=kind,
                name=_stated(facts, "name"),
                sha256=_stated(facts, "manifest_fingerprint"),
                remark=", ".join((f"{_stated(facts, 'num_frames')} frames", *(_stated(facts, each) for each in FACTS))),
            )


def _protection(origin: Provenance) -> Iterator[Ancestor]:
    if origin.fisher is not None:
        data = ", ".join(f"{each.name} ({each.split}) {each.fingerprint}".rstrip() for each in origin.fisher.data)
        remark = f"{origin.fisher.num_structures} structures of {data}"
        yield Ancestor(kind="Fisher", name="", sha256=origin.fisher.sha256 or UNKNOWN, remark=remark)
    if origin.protection is not None:
        remark = f"{origin.protection.num_structures} generated crystals, seed {origin.protection.seed}"
        yield Ancestor(kind="carries", name="rehearsal and Fisher", sha256="in SHA256SUMS", remark=remark)


def _stated(facts: Facts, name: str) -> str:
    value = str(facts.get(name) or UNKNOWN)
    return UNKNOWN if value.startswith(UNKNOWN) else value
