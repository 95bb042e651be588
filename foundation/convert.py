"""Conversion of potentials of other programs to our folders, and back.

With the facts of a card the folder is a release: with golden predictions, card, licence and checksums. It holds nothing
of the day or the machine, so the same command gives the same bytes.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.store import durable, lock
from foundation import checkpoint
from foundation.export import card_facts, finish, write_evaluation
from foundation.golden import GENERATED, generated
from foundation.interop import n2p2, simple_nn
from foundation.interop.published import PUBLISHED, find_published
from foundation.interop.sevennet import to_sevennet
from foundation.last_layer import LastLayer
from foundation.naming import SavedPotential, SevenNetPotential, resolve
from foundation.potential import Potential
from foundation.releases.registry import registry
from foundation.reports.card import CardFacts, check_facts
from foundation.reports.evaluation_report import Evaluation
from foundation.reports.front_matter import Measured, front_matter
from foundation.reports.suite_table import suite_table
from foundation.reports.trust import copy_into as trust_into

NUM_GOLDEN = 3
"""Number of golden structures of a release."""
Format = Literal["sevennet"]
Readable = Literal["sevennet", "n2p2", "simple-nn"]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Conversion from another program's file, or into one: give either --from or --to."""

    from_: Readable | None = None
    """Program that wrote the checkpoint to read (--from on the command line)."""
    to: Format | None = None
    """Program that will read the result."""
    checkpoint: Path | None = None
    """With --from: the file to read, or a published name, such as sevennet-0; of n2p2 the folder, of SIMPLE-NN
    its potential_saved."""
    model: Path | None = None
    """With --to: potential to read, by its folder, run or published name."""
    theory: str | None = None
    """With --from: name of the level of theory, for a file that names none."""
    units: n2p2.Units | None = None
    """With --from n2p2: units of length and energy, which its files do not state."""
    out: Path
    """Folder (--from) or file (--to) to write; an older one of the same kind is replaced."""
    card: CardFacts | None = None
    """With --from sevennet: facts of the card, to write a release; None: the potential alone. A name then means the
    file in the sevenn package, which must be installed."""
    licence_file: Path | None = None
    """With a card: text of the licence with its notice, copied into the release."""
    evaluation: Path | None = None
    """With a card: evaluation.json of `foundation evaluate` of the same weights, whose errors the card states."""
    uncertainty: Path | None = None
    """With a card: folder of the same weights with uncertainty and coverage, by `foundation uncertainty`, which the
    release then has too."""
    created: str | None = None
    """With a card: date on it; None: today."""

    def __post_init__(self) -> None:
        if (self.from_ is None) == (self.to is None):
            raise ValueError("give either --from or --to")
        if self.from_ and (self.checkpoint is None or self.model):
            raise ValueError(f"--from {self.from_} reads a --checkpoint and writes the folder --out; it has no --model")
        if (self.from_ == "n2p2") != (self.units is not None):
            raise ValueError(f"--units {' or '.join(n2p2.SIZES)} belongs to --from n2p2, whose files do not state them")
        if self.card is not None and self.from_ != "sevennet":
            raise ValueError("--card belongs to --from sevennet: a release is made of a converted potential")
        if self.card is None and (self.licence_file or self.evaluation or self.uncertainty or self.created):
            raise ValueError(
                "--licence_file, --evaluation, --uncertainty and --created belong to a release: give the facts of "
                "--card"
            )
        if self.to and (self.model is None or self.checkpoint or self.theory):
            raise ValueError(
                f"--to {self.to} reads a --model and writes the file --out; it has no --checkpoint and no --theory"
            )


def convert(config: ConvertConfig) -> Path:
    """Convert a potential and return the written path.

    Raises:
        FileExistsError: the name to write is taken by a folder or file of another kind.
        FileNotFoundError: the input is missing.
        ValueError: the input is refused or damaged, or the other program has no such network.
        InUse: another process writes there.
    """
    with lock.hold(lock.beside(config.out), config.out):
        return _convert(config)


def _convert(config: ConvertConfig) -> Path:
    if config.checkpoint is not None:
        checkpoint.refuse_to_replace(config.out, "potential")
        potential, provenance = _read(config, config.checkpoint)
        if config.card is not None:
            _release(config, config.card, potential, provenance)
        else:
            checkpoint.save(potential, config.out, provenance)
    elif config.model is not None:
        if config.out.is_dir():
            raise FileExistsError(f"{config.out} is a folder; --out is the file to write")
        if config.out.exists():
            raise FileExistsError(f"{config.out} exists and is not replaced; remove it or choose another --out")
        potential = resolve(config.model).load()
        config.out.parent.mkdir(parents=True, exist_ok=True)
        to_sevennet(potential, config.out)
    return config.out


def _read(config: ConvertConfig, source: Path) -> tuple[Potential, dict]:
    """Return the potential of another program's file, and its provenance."""
    theory = config.theory or "unknown"
    if config.units is not None:
        potential = n2p2.potential_in(source, config.units, theory)
        return potential, n2p2.provenance_of_n2p2(source, config.units, potential)
    if config.from_ == "simple-nn":
        potential = simple_nn.potential_in(source, theory)
        return potential, simple_nn.provenance_of_simple_nn(source, potential)
    return _from_sevennet(source, config.theory, release=config.card is not None)


def _from_sevennet(word: Path, theory: str | None, *, release: bool) -> tuple[Potential, dict]:
    """Return the potential of a checkpoint of SevenNet, or of a release made of one, and its provenance."""
    # what a release is made of is not the release, which may be about to change
    published = not word.exists() and str(word) in PUBLISHED and (release or theory is not None)
    found = SevenNetPotential(find_published(str(word))) if published else resolve(word)
    if isinstance(found, SevenNetPotential):
        found = replace(found, theory=theory)
    elif not isinstance(found, SavedPotential) or word.exists() or registry().find(str(word)) is None:
        raise IsADirectoryError(f"{word} is a folder, not a file of SevenNet")
    potential, described = found.read()
    return potential, described.provenance


def _release(config: ConvertConfig, card: CardFacts, potential: Potential, provenance: dict) -> None:
    """Write a potential as a release.

    Raises:
        MissingFact: the card lacks a fact.
        ValueError: the evaluation or the uncertainty is of other weights.
    """
    check_facts(card)
    # the versions of this machine's packages had no part in the weights
    provenance |= {"versions": {}, "config": {"card": asdict(card)}}
    with durable.whole_folder(lock.real(config.out)) as partial:
        checkpoint.write_into(partial, potential, provenance)
        described = checkpoint.describe(partial)
        facts = card_facts(potential, described)
        facts |= {"golden_of": asdict(GENERATED), "converted": described.origin.converted_from}
        facts |= {"created": config.created} if config.created else {}
        errors: Measured = {}
        if config.evaluation is not None:
            evaluation = Evaluation.from_json(config.evaluation)
            if evaluation.weights_sha256 != described.weights_sha256:
                raise ValueError(f"{config.evaluation}: the report is of other weights; evaluate {config.out} again")
            errors = write_evaluation(partial, evaluation)
            facts |= {"evaluation": evaluation, "errors": evaluation.errors}
            facts |= {"suites": suite_table(evaluation.suites)} if evaluation.suites else {}
        trust = ""
        if config.uncertainty is not None:
            trust = trust_into(partial, config.uncertainty, _last_layer(config.uncertainty, described.weights_sha256))
        if config.licence_file is not None:
            shutil.copyfile(config.licence_file, partial / checkpoint.LICENCE)
        before = front_matter(card, described.origin, potential.theories, errors)
        finish(partial, potential, generated(potential, NUM_GOLDEN), card, facts, around=(before, trust))


def _last_layer(folder: Path, weights_sha256: str) -> LastLayer:
    """Return the uncertainty of a potential in a folder.

    Raises:
        ValueError: the potential has other weights, or no uncertainty.
    """
    if checkpoint.describe(folder).weights_sha256 != weights_sha256:
        raise ValueError(
            f"{folder}: the uncertainty is of other weights; measure it again with `foundation uncertainty`"
        )
    found = checkpoint.load(folder).last_layer
    if found is None:
        raise ValueError(
            f"{folder} has no uncertainty; add it with `foundation uncertainty --model {folder} --data ...`"
        )
    return found
