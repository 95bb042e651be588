"""Training that begins with the weights of a potential: what has to fit, and what becomes of the reference energies.

The references and the scale of the start stay, because its weights are trained to what these leave: fitted again to
other data they would move every prediction. Only a level of theory that the start does not know gets references of its
own, fitted to the new data; its biases in the network begin as the mean of the others.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.statistics import Statistics
from data_pipeline.structure import SYMBOLS
from foundation import checkpoint
from foundation.models import ModelConfig
from foundation.potential import Potential
from foundation.theories import add_theory

log = logging.getLogger(__name__)


def start_from(folder: Path, model: ModelConfig, statistics: Mapping[str, Statistics]) -> Potential:
    """Return the potential of a folder, ready to be trained on data at levels of theory by name.

    Args:
        folder: Released folder or finished run.
        model: The architecture that the configuration of the training asks for.
        statistics: The training data's, by level of theory.

    Raises:
        FileNotFoundError: there is no potential in the folder.
        ValueError: the potential is of another architecture, or does not know an element of the data.
    """
    potential = checkpoint.load(folder)
    theirs, ours = asdict(potential.network.config), asdict(model)
    if ours["theory_biases"] is None:  # follows from the levels of theory
        del ours["theory_biases"]
    different = [
        f"{name} is {theirs[name]} there and {value} here" for name, value in ours.items() if theirs[name] != value
    ]
    if different:
        raise ValueError(f"{folder} is of another architecture than `model`: {'; '.join(different)}. Make them agree.")
    for theory, sums in statistics.items():
        unknown = sorted(set(sums.elements) - set(potential.elements))
        if unknown:
            raise ValueError(
                f"{folder} does not know {', '.join(SYMBOLS[z] for z in unknown)}, which the data at {theory} have: "
                "start from a potential that does, or build the data without these elements"
            )
    for theory, sums in statistics.items():
        if theory not in potential.theories:
            log.info(
                "%s does not know the level of theory %s: it is added, its references from the data", folder, theory
            )
            potential = add_theory(potential, theory, reference_energies=_references(potential, sums))
    return potential.train()


def _references(potential: Potential, sums: Statistics) -> Float64[Tensor, " elements"]:
    """Return references for a new level of theory [eV]: of elements without data, those of the start, moved alike."""
    elements = list(potential.elements)
    fitted = torch.from_numpy(sums.reference_energies()[elements])
    seen = torch.from_numpy(sums.atoms_of_element[elements] > 0)
    known = potential.get_buffer("reference_energies").mean(dim=0)
    return torch.where(seen, fitted, known + (fitted - known)[seen].mean())


def start_facts(folder: Path) -> dict:
    """Return what a card has to say of the weights that a training began with, as JSON: all data they have seen."""
    config = checkpoint.read_config(checkpoint.find(folder))
    provenance = config["provenance"]
    before = provenance.get("start", {}).get("datasets", [])
    return {
        "folder": str(folder),
        "weights_sha256": config["weights_sha256"],
        "datasets": provenance["datasets"] + before,
    }
