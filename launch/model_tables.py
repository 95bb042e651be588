"""Tables that `foundation models` and `foundation publish` print."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from data_pipeline.structure import SYMBOLS
from foundation import checkpoint
from foundation.checkpoint import Description
from foundation.publish import PublishConfig, Published
from foundation.released import InfoConfig, LineageConfig, Listed, licence_of, release_of
from foundation.releases.lineage import Ancestor
from foundation.reports.card import CardFacts
from launch.tables import console
from launch.yaml_files import to_yaml


def listed(found: Sequence[Listed]) -> None:
    """Print named potentials."""
    table = Table()
    for title in ("name", "also", "levels of theory", "elements", "licence", "lies in"):
        table.add_column(title, no_wrap=title == "name", overflow="fold")
    for each in found:
        release = each.release
        cells = (release.title, ", ".join(release.aliases), ", ".join(release.theories), str(len(release.elements)))
        table.add_row(*cells, release.licence, each.place or "not here yet")
    console.print(table)


def info(config: InfoConfig, folder: Path, described: Description) -> None:
    """Print what a potential is, and the line that uses it."""
    origin, release, card = described.origin, release_of(config.name), CardFacts(**described.origin.card)
    rows = {
        "name": release.title if release else config.name,
        "also": ", ".join(release.aliases) if release else "",
        "description": card.description,
        "licence": licence_of(folder),
        "levels of theory": ", ".join(described.theories),
        f"elements ({len(described.elements)})": " ".join(SYMBOLS[number] for number in sorted(described.elements)),
        "parameters": f"{origin.num_parameters:,}" if origin.num_parameters else "",
        "architecture": described.architecture,
        "made by": origin.method,
        "weights": described.weights_sha256,
        "cite": card.citation,
        "folder": str(folder),
        "card": str(folder / checkpoint.CARD) if (folder / checkpoint.CARD).is_file() else "",
    }
    for title, value in rows.items():
        if value:
            console.print(f"{title}: {value}", highlight=False)
    theory = f', theory="{described.theories[0]}"' if len(described.theories) > 1 else ""
    console.print(f'    atoms.calc = foundation.Calculator("{config.name}"{theory})', highlight=False)


def paths(folders: Sequence[Path]) -> None:
    """Print folders, one a line, for other programs."""
    for folder in folders:
        console.print(str(folder), highlight=False)


def verified(found: Sequence[tuple[str, Path, str]]) -> int:
    """Print the findings on copies, and return the exit code."""
    for name, folder, finding in found:
        console.print(f"{name}: {finding}" + (f" ({folder})" if finding == "ok" else ""), highlight=False)
    return 0 if all(finding == "ok" for _, _, finding in found) else 1


def lineage(config: LineageConfig, described: Description, ancestors: Sequence[Ancestor]) -> None:
    """Print where a potential comes from, a line each, and the configuration of its run if it is asked for."""
    for each in ancestors:
        name, remark = f" {each.name}" if each.name else "", f" ({each.remark})" if each.remark else ""
        console.print(f"{each.kind}:{name}{remark}\n    {each.sha256}", highlight=False)
    run = {name: value for name, value in described.origin.config.items() if name != "card"}
    if not run:
        console.print("configuration: none, nothing was trained here")
    elif config.configuration:
        console.print(f"configuration:\n{to_yaml(run)}", highlight=False)
    else:
        console.print(f"configuration: {len(run)} entries (--configuration true shows them)", highlight=False)


def published(config: PublishConfig, found: Published) -> None:
    """Print where a release is, the line that loads it, and its entry for the registry."""
    console.print(f"published: {config.to}")
    if not found.word.startswith(("s3:", "gs:", "memory:")):
        console.print(f'    foundation.load("{found.word}")', highlight=False)
    console.print(f"entry for the registry:\n{found.entry}", highlight=False)
