"""Adding elements to a trained potential without changing its predictions for the others.

A new element starts as a copy of a chemically similar one: its weights in the network, its scale and its references. A
network may round its weights anew for another number of elements; then predictions change by that rounding.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float64
from torch import Tensor

from data_pipeline.structure import MAX_ATOMIC_NUMBER, SYMBOLS
from foundation.nn.embedding import periodic_position
from foundation.potential import Potential


def add_elements(
    potential: Potential,
    numbers: Sequence[int],
    reference_energies: Float64[Tensor, "theories new"] | None = None,
    like: Mapping[int, int] | None = None,
) -> Potential:
    """Return a potential with more elements, after the existing ones, with unchanged predictions for those.

    Args:
        potential: The potential to extend; it is not modified.
        numbers: Atomic numbers of the new elements.
        reference_energies: Their energies at each level of theory [eV], in the order of `numbers`; None: those of their
            source elements.
        like: Atomic number of the source element, for new elements whose source is not nearest_element().

    Raises:
        ValueError: a number is not that of an element, is already known or given twice; or `like` names an element that
            is not new, or a source that the potential does not know.
    """
    like = dict(like or {})
    _check(potential, numbers, like)
    donors = {z: like.get(z, nearest_element(z, potential.elements)) for z in numbers}
    elements = (*potential.elements, *numbers)
    sources = [potential.elements.index(donors.get(z, z)) for z in elements]
    grown = Potential(potential.network.with_elements(elements, sources), elements, potential.theories)
    grown.get_buffer("scale").copy_(potential.get_buffer("scale")[sources])
    grown.repulsion = potential.repulsion
    references = grown.get_buffer("reference_energies")
    references.copy_(potential.get_buffer("reference_energies")[:, sources])
    if reference_energies is not None:
        references[:, len(potential.elements) :] = reference_energies
    return grown.to(potential.device).train(potential.training)


def nearest_element(number: int, known: Sequence[int]) -> int:
    """Return the chemically nearest known element: in the same group of the periodic table, or else by number."""
    group, _ = periodic_position(number)
    return min(known, key=lambda z: (periodic_position(z)[0] != group, abs(z - number), z))


def _check(potential: Potential, numbers: Sequence[int], like: Mapping[int, int]) -> None:
    wrong = [z for z in numbers if not 1 <= z <= MAX_ATOMIC_NUMBER]
    if wrong or not numbers:
        raise ValueError(f"elements to add are atomic numbers in 1-{MAX_ATOMIC_NUMBER}, not {wrong or 'none at all'}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"an element occurs twice in {list(numbers)}")
    known = [SYMBOLS[z] for z in numbers if z in potential.elements]
    if known:
        raise ValueError(f"the potential already knows {', '.join(known)}")
    for new, donor in like.items():
        if new not in numbers or donor not in potential.elements:
            raise ValueError(
                f"`like` makes {SYMBOLS[new]} a copy of {SYMBOLS[donor]}: the first must be one of the new "
                "elements and the second one that the potential knows"
            )
