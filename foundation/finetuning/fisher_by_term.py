"""The diagonal Fisher of each term of the loss, on structures without labels: it serves fine-tunings with any loss.

Take the labels to be the start's own predictions plus independent noise of zero mean: the Fisher of the model's own
distribution instead of the empirical one (Martens, J. Mach. Learn. Res. 21, 146 (2020), sections 5 and 11). The squared
derivative of the loss of a structure by a weight θ is then, in the mean over the noise,

    F = Σ_t (w_t)² · E[ψ_t(noise)²] · G_t,    G_t = Σ_i (∂y_i/∂θ)² / n²,

where t is energy per atom, forces or stress, y_i are its n components, w_t is the weight of the term and ψ_t the
derivative of its error: products of derivatives of different components vanish in the mean, also those of different
terms. So G_t, which depends on no loss, is stored, and combined for the loss of a run. The sum over components is
estimated with one vector of random signs for each structure, whose squared product with the derivatives has that mean
(Bekas et al., Appl. Numer. Math. 57, 1214 (2007)). A structure costs three backward passes.

Numbers are stored in bfloat16, as their sampling error is far above its 0.4 %: a file takes 6 bytes per weight.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from data_pipeline.building.duplicates import content_key
from data_pipeline.graphs.batch import GraphBatch, to_graph
from data_pipeline.loading.datasets import Dataset
from data_pipeline.store import durable
from data_pipeline.store.json_record import parse_json
from data_pipeline.store.untrusted import check_finite, check_layout, read_layout, refusing, require, typed
from data_pipeline.structure import Structure
from foundation import checkpoint
from foundation.finetuning.fisher import CHECKSUM, FACTS, STRUCTURES, CorruptFisher, Fisher, checksum
from foundation.finetuning.squared_gradients import whole_in_training
from foundation.potential import Potential, Prediction
from foundation.training.loss import TERMS, LossConfig, TermConfig

SCHEMA_VERSION = 1
NOISE = {"energy": 0.01, "forces": 0.05, "stress": 0.001}
"""Standard deviation of the noise: energy per atom [eV], forces [eV/Å], stress [eV/Å³], the size of the errors of a
universal potential. Only quadratic losses, and Huber's within its delta, depend on it."""
COMPONENTS = {"energy": 1, "forces": 3, "stress": 9}
"""Number of components of a label whose Euclidean norm is the L2 error."""


@dataclass(frozen=True, kw_only=True)
class FisherFacts:
    """Facts in the header of the file."""

    num_structures: int
    """Number of structures in the mean."""
    weights_sha256: str
    """Checksum of the potential's weights."""
    data: tuple[dict[str, str], ...]
    """Name, split and manifest fingerprint of each data set."""

    def __post_init__(self) -> None:
        if self.num_structures < 1:
            raise ValueError("num_structures must be at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class FisherByTerm:
    """The diagonal Fisher of each term of the loss."""

    values: dict[str, dict[str, Tensor]]
    """G by name of the term and of the parameter, bfloat16."""
    structures: Int64[Tensor, " structures"]
    """Content keys of the structures in the mean, in order; of their names, in a file of an older version."""
    facts: FisherFacts
    """Origin of the numbers."""

    def of(self, loss: LossConfig, potential: Potential) -> Fisher:
        """Return the Fisher of a loss, for the potential whose weights it belongs to.

        Raises:
            ValueError: it was computed for other weights.
        """
        if self.facts.weights_sha256 != checkpoint.weights_sha256(potential):
            raise ValueError("the Fisher belongs to other weights than the start's; make it again")
        factors = {
            name: term.weight**2 * derivative_square(term, NOISE[name], COMPONENTS[name])
            for name, term in ((name, getattr(loss, name)) for name in TERMS)
        }
        parameters = {name: parameter.detach().cpu().clone() for name, parameter in potential.named_parameters()}
        sums = {
            name: sum((factors[term] * self.values[term][name].double() for term in TERMS), torch.zeros(()))
            for name in parameters
        }
        return Fisher(
            values=sums,
            theta_star=parameters,
            num_structures=self.facts.num_structures,
            num_above_threshold=0,
            num_unknown=0,
            loss_threshold=None,
            loss=loss,
            data=self.facts.data,
            structures=self.structures,
            weights_sha256=self.facts.weights_sha256,
        )


def derivative_square(term: TermConfig, noise: float, components: int) -> float:
    """Return the mean square over Gaussian noise of the derivative of a term's error by a component of the residual.

    The derivative is that of the mean over components, times their number, without the term's weight.

    Args:
        term: The term; a stratified Huber error is taken as Huber's, which it is for forces below 100 eV/Å.
        noise: Standard deviation of a component of the residual, in the unit of the label.
        components: Number of components of the vector whose norm is the L2 error.
    """
    if term.kind == "mae":
        return 1.0
    if term.kind == "mse":
        return 4.0 * noise**2
    if term.kind == "l2":
        return float(components)
    bound = term.delta / noise
    inside = math.erf(bound / math.sqrt(2)) - math.sqrt(2 / math.pi) * bound * math.exp(-0.5 * bound**2)
    return noise**2 * inside + term.delta**2 * math.erfc(bound / math.sqrt(2))


def fisher_by_term(potential: Potential, datasets: Sequence[Dataset], *, seed: int = 0) -> FisherByTerm:
    """Return the Fisher by term over all structures that the potential can predict; labels are not read.

    Args:
        potential: The potential, including frozen parameters; mode and flags are restored afterwards.
        datasets: Splits of data, each with its level of theory.
        seed: Seed of the random signs.

    Raises:
        ValueError: no structure is left, or a derivative is not finite; the message names the structure.
    """
    parameters = list(potential.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    sums = torch.zeros(len(TERMS), size, dtype=torch.float64, device=potential.device)
    generator, keys = torch.Generator().manual_seed(seed), []
    with whole_in_training(potential):
        for structure, theory in _structures(datasets, potential):
            batch = to_graph(structure, potential.cutoff, potential.dtype, theory).to(potential.device)
            for row, value in zip(sums, _signed(potential(batch), batch, generator), strict=True):
                gradients = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
                flat = torch.cat([gradient.double().flatten() for gradient in gradients])
                if not bool(flat.isfinite().all()):
                    raise ValueError(f"structure {structure.id!r}: a derivative is not finite; leave it out")
                row += flat.square()
            keys.append(content_key(structure))
    if not keys:
        raise ValueError("the potential does not know all elements of any structure, so there is no Fisher")
    means = dict(zip(TERMS, (sums / len(keys)).to(torch.bfloat16).cpu(), strict=True))
    return FisherByTerm(
        values={term: _by_parameter(mean, potential) for term, mean in means.items()},
        structures=torch.tensor(keys, dtype=torch.int64).unique(),
        facts=FisherFacts(
            num_structures=len(keys),
            weights_sha256=checkpoint.weights_sha256(potential),
            data=tuple(
                {"name": each.manifest.provenance.name, "split": each.split, "fingerprint": each.manifest.fingerprint}
                for each in datasets
            ),
        ),
    )


def _structures(datasets: Sequence[Dataset], potential: Potential) -> Iterator[tuple[Structure, int]]:
    """Yield the structures whose elements the potential knows, each with the number of its level of theory."""
    for dataset in datasets:
        for structure in dataset.frames():
            if np.isin(structure.numbers, potential.elements).all():
                yield structure, dataset.theory_number


def save(fisher: FisherByTerm, path: Path) -> None:
    """Write a Fisher by term as safetensors with its facts in the header; the file appears only when it is complete."""
    tensors = {f"{term}.{name}": value for term, named in fisher.values.items() for name, value in named.items()}
    tensors[STRUCTURES] = fisher.structures
    facts = json.dumps(asdict(fisher.facts) | {"schema_version": SCHEMA_VERSION}, sort_keys=True)
    with durable.whole_file(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, {FACTS: facts, CHECKSUM: checksum(facts, tensors)}))


def read(path: Path, potential: Potential) -> FisherByTerm:
    """Return the Fisher by term of a file, of a potential.

    Raises:
        FileNotFoundError: no such file.
        CorruptFisher: it is not one, not of a potential with these parameters, or written by a newer program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no Fisher there")
    with refusing(
        path, CorruptFisher, "not the Fisher of this potential ({}); make it again with `foundation protect`"
    ):
        layout, header = read_layout(path)
        require(header, (FACTS, CHECKSUM))
        values = typed(dict[str, Any], parse_json(header[FACTS].encode()), FACTS)
        version = typed(int, values.pop("schema_version"), "schema_version")
        if version > SCHEMA_VERSION:
            raise CorruptFisher(f"{path}: schema {version} is newer than this program's {SCHEMA_VERSION}; update it")
        named = dict(potential.named_parameters())
        expected = {
            f"{term}.{name}": (torch.bfloat16, tuple(each.shape)) for term in TERMS for name, each in named.items()
        }
        count = math.prod(layout.get(STRUCTURES, (torch.int64, ()))[1])
        check_layout(layout, expected | {STRUCTURES: (torch.int64, (count,))})
        tensors = safetensors.torch.load_file(path)
        if checksum(header[FACTS], tensors) != header[CHECKSUM]:
            raise ValueError("it differs from its checksum")
        check_finite(tensors)
        negative = [name for name in expected if bool((tensors[name] < 0).any())]
        if negative:
            raise ValueError(f"{negative[0]} is a mean of squares but has a negative number")
        return FisherByTerm(
            values={term: {name: tensors[f"{term}.{name}"] for name in named} for term in TERMS},
            structures=tensors[STRUCTURES],
            facts=typed(FisherFacts, values, FACTS),
        )


def _by_parameter(flat: Tensor, potential: Potential) -> dict[str, Tensor]:
    """Return the parts of a concatenation of all parameters by their names."""
    named = dict(potential.named_parameters())
    parts = flat.split([parameter.numel() for parameter in named.values()])
    return {name: part.view(named[name].shape).clone() for name, part in zip(named, parts, strict=True)}


def _signed(prediction: Prediction, batch: GraphBatch, generator: torch.Generator) -> Iterator[Float64[Tensor, ""]]:
    """Yield, for each term, the mean of a structure's predicted components with random signs.

    The noise of a stress is symmetric, like the stress.
    """
    forces = _signs((len(batch.numbers), 3), generator).to(prediction.forces)
    upper = _signs((3, 3), generator).triu()
    stress = (upper + upper.triu(1).T).to(prediction.stress)
    yield (prediction.energy / batch.num_atoms).sum()
    yield (forces * prediction.forces).mean().double()
    yield (stress * prediction.stress[0]).mean().double()


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1.0
