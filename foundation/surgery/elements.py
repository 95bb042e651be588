"""Elements added to a trained potential, without changing what it says of those it knows.

A new element begins as a copy of a chemically similar one: its weights in the network, its scale and its references.
A network may round its weights anew for another number of elements; then predictions move by that rounding.
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
    """Return a potential that knows more elements, after those it has, and predicts the same for structures of these.

    Args:
        potential: What to add to; it is left alone.
        numbers: Atomic numbers of the new elements.
        reference_energies: Their energies at each level of theory [eV], in the order of `numbers`; those of the
            elements that they begin as when absent.
        like: Atomic number of the element to begin as, of new elements for which it is not to be nearest_element().

    Raises:
        ValueError: a number is no element's, is known already or given twice; or `like` names an element that is not
            new, or one to begin as that the potential does not know.
    """
    like = dict(like or {})
    _check(potential, numbers, like)
    donors = {z: like.get(z, nearest_element(z, potential.elements)) for z in numbers}
    elements = (*potential.elements, *numbers)
    sources = [potential.elements.index(donors.get(z, z)) for z in elements]
    grown = Potential(potential.network.with_elements(elements, sources), elements, potential.theories)
    grown.get_buffer("scale").copy_(potential.get_buffer("scale")[sources])
    references = grown.get_buffer("reference_energies")
    references.copy_(potential.get_buffer("reference_energies")[:, sources])
    if reference_energies is not None:
        references[:, len(potential.elements) :] = reference_energies
    return grown.to(potential.device).train(potential.training)


def nearest_element(number: int, known: Sequence[int]) -> int:
    """Return the chemically nearest of known elements: of the same group of the periodic table, or else by number."""
    group, _ = periodic_position(number)
    return min(known, key=lambda z: (periodic_position(z)[0] != group, abs(z - number), z))


def _check(potential: Potential, numbers: Sequence[int], like: Mapping[int, int]) -> None:
    wrong = [z for z in numbers if not 1 <= z <= MAX_ATOMIC_NUMBER]
    if wrong or not numbers:
        raise ValueError(f"elements to add are atomic numbers in 1-{MAX_ATOMIC_NUMBER}, not {wrong or 'none at all'}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"an element is given twice in {list(numbers)}")
    known = [SYMBOLS[z] for z in numbers if z in potential.elements]
    if known:
        raise ValueError(f"the potential knows {', '.join(known)} already")
    for new, donor in like.items():
        if new not in numbers or donor not in potential.elements:
            raise ValueError(
                f"`like` says that {SYMBOLS[new]} begins as {SYMBOLS[donor]}: the first has to be one of the new "
                "elements and the second one that the potential knows"
            )
