"""Limits of a network's sizes, far above those in use and far below what a machine cannot handle.

A size may come from a file that was downloaded, and is refused before anything of that size is built. The largest
published networks of this family have 1,024 channels, 12 blocks and degree 6.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

import re
from collections.abc import Sequence

from e3nn import o3

from data_pipeline.structure import MAX_ATOMIC_NUMBER

MAX_CHANNELS = 16_384
"""Largest width of a layer, and largest number of channels of an irrep."""
MAX_BLOCKS = 64
"""Largest number of interaction blocks."""
MAX_LAYERS = 16
"""Largest number of hidden layers of the radial networks."""
MAX_DEGREE = 8
"""Highest degree of irreps and harmonics: at 8 a block has 369 paths and takes seconds to prepare, at 11 a gigabyte."""
MAX_CUTOFF_POWER = 100
"""Highest power of the polynomial cutoff function, whose terms cancel to all digits far above it."""
CUTOFFS = (0.1, 100.0)
"""Smallest and largest cutoff [Å]."""
MAX_PARAMETERS = 10**10
"""Largest number of parameters: 40 GB in float32."""
MAX_THEORIES, MAX_NAME = 256, 256
"""Largest number of levels of theory, and of characters of a name."""
IRREP = re.compile(r"\s*(?:([0-9]{1,5})x)?([0-9]{1,2})([eo])\s*")


def parse_irreps(text: str) -> o3.Irreps:
    """Return the irreps of a string such as 128x0e+64x1o.

    Raises:
        ValueError: the string is not a list of irreps, or has more terms, channels or degrees than a network can have.
    """
    if len(text) > 1000:
        raise ValueError(f"irreps of {len(text)} characters, the first {text[:40]!r}: at most 1000")
    terms = [IRREP.fullmatch(term) for term in text.split("+")]
    found = [(int(term[1] or 1), int(term[2]), 1 if term[3] == "e" else -1) for term in terms if term]
    if len(found) < len(terms):
        raise ValueError(f"irreps {text[:80]!r}: write them as 128x0e+64x1o")
    if not all(0 < channels <= MAX_CHANNELS and degree <= MAX_DEGREE for channels, degree, _ in found):
        raise ValueError(f"irreps {text[:80]!r}: 1 to {MAX_CHANNELS} channels and degrees up to {MAX_DEGREE}")
    return o3.Irreps([(channels, (degree, parity)) for channels, degree, parity in found])


def check_elements(elements: Sequence[object]) -> None:
    """Check a list of elements.

    Raises:
        ValueError: it is empty, an element occurs twice, or a number is not that of an element.
    """
    if not 0 < len(elements) <= MAX_ATOMIC_NUMBER:
        raise ValueError(f"elements: {len(elements)} of them; need 1 to {MAX_ATOMIC_NUMBER}")
    wrong = [number for number in elements if not (type(number) is int and 0 < number <= MAX_ATOMIC_NUMBER)]
    if wrong:
        raise ValueError(f"elements: {repr(wrong[0])[:40]} is not an atomic number (1 to {MAX_ATOMIC_NUMBER})")
    twice = [number for number in elements if elements.count(number) > 1]
    if twice:
        raise ValueError(f"elements: {twice[0]} occurs twice")


def check_theories(theories: Sequence[str]) -> None:
    """Check a list of names of levels of theory.

    Raises:
        ValueError: it is empty or too long, or a name occurs twice, is empty, too long or cannot be printed.
    """
    if not 0 < len(theories) <= MAX_THEORIES:
        raise ValueError(f"theories: {len(theories)} of them; need 1 to {MAX_THEORIES}")
    for name in theories:
        if not (isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() and name.strip()):
            raise ValueError(f"theories: {repr(name)[:40]} is not a name of 1 to {MAX_NAME} printable characters")
    if len(set(theories)) < len(theories):
        raise ValueError("theories: a name occurs twice")
