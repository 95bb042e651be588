"""A compiled library as a folder: C header and source, numbers, the library itself and checksums."""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.store import durable, lock
from data_pipeline.structure import SYMBOLS
from foundation.checkpoint import CHECKSUMS, write_checksums
from foundation.engine.convolution import part
from foundation.engine.library import definitions, weights_file
from foundation.engine.network import network_source
from foundation.kernels.cpu import compiler
from foundation.potential import Potential

LIBRARY, WEIGHTS, HEADER, FACTS = "libfoundation_model.so", "model.weights", "foundation_model.h", "library.json"
"""Files of the folder; source files are model0.c, model1.c and so on."""


def belongs(path: Path) -> bool:
    """Return whether a file is one of a library's."""
    return path.name in (LIBRARY, WEIGHTS, HEADER, FACTS, CHECKSUMS) or bool(re.fullmatch(r"model\d+\.c", path.name))


@dataclass(frozen=True, kw_only=True)
class LibraryFacts:
    """Content of library.json."""

    elements: tuple[str, ...]
    """Symbols, in the library's order."""
    cutoff: float
    """Distance below which atoms are neighbours [Å]."""
    theory: str
    """Level of theory."""
    dtype: str
    """Float type."""
    table: bool
    """True if radial functions come from a table."""
    repulsion: bool
    """True if atoms much closer than a bond repel each other, whatever the network says."""
    weights_sha256: str
    """Checksum of the potential's weights."""
    compiled_for: str
    """Compiler and vectors of the library."""
    command: str
    """Command that compiles it anew, in the folder."""


def write_library(potential: Potential, theory: int, weights_sha256: str, folder: Path, *, table: bool = True) -> None:
    """Write the library of a potential at one level of theory; the folder appears when it is complete.

    Raises:
        NoCompiler: there is no C compiler, or it fails.
        ValueError: its network cannot be compiled.
    """
    source, dtype = network_source(potential, theory, table=table), potential.dtype
    built = compiler.build(source.sources, definitions(source, dtype))
    files = [f"model{number}.c" for number in range(len(source.sources))]
    flags = " ".join([*compiler.flags(), *definitions(source, dtype)])
    facts = LibraryFacts(
        elements=tuple(SYMBOLS[number] for number in potential.elements),
        cutoff=float(potential.cutoff),
        theory=potential.theories[theory],
        dtype=str(dtype).removeprefix("torch."),
        table=table,
        repulsion=potential.repulsion is not None,
        weights_sha256=weights_sha256,
        compiled_for=compiler.describe(),
        command=f"cc {flags} -o {LIBRARY} {' '.join(files)} -lm",
    )
    with durable.whole_folder(lock.real(folder)) as partial:
        shutil.copyfile(built, partial / LIBRARY)
        (partial / WEIGHTS).write_bytes(weights_file(source, dtype))
        (partial / HEADER).write_text(part(HEADER))
        for name, text in zip(files, source.sources, strict=True):
            (partial / name).write_text(text)
        (partial / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n")
        write_checksums(partial)
