"""Level of theory that VASP's output states: functional, +U, hybrid, dispersion, spin-orbit coupling and cutoff.

An OUTCAR states the settings in its head, a vasprun.xml in its first elements; only these are read. Settings that the
user did not give stand there with their defaults: GGA is then "--", and the functional that of the pseudopotentials.
"""

import contextlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ase.io.formats import open_with_compression

from data_pipeline.sources.source import errors_named

MAX_HEAD = 4 * 2**20
"""Largest head of an OUTCAR that is searched [bytes]: thousands of k-points, or atoms with their neighbours."""
FUNCTIONALS = {
    "PE": "PBE",
    "PS": "PBEsol",
    "RP": "RPBE",
    "RE": "revPBE",
    "91": "PW91",
    "AM": "AM05",
    "BF": "BEEF-vdW",
    "OR": "optPBE",
    "BO": "optB88",
    "MK": "optB86b",
    "ML": "rev-vdW-DF2",
    "CA": "LDA",
}
"""Functionals by VASP's GGA tag; the pseudopotentials' LEXCH has the same names."""
META = {"R2SCAN": "r2SCAN", "SCAN": "SCAN", "RSCAN": "rSCAN", "TPSS": "TPSS", "RTPSS": "revTPSS", "MBJ": "MBJ"}
"""Functionals by VASP's METAGGA tag; other names are kept as they are."""
_SETTING = re.compile(
    r"^[ \t]*(METAGGA|GGA|LEXCH|LDAU|LHFCALC|AEXX|HFSCREEN|IVDW|LUSE_VDW|LSORBIT|ENCUT)[ \t]*=[ \t]*([^\s;]+)",
    re.MULTILINE,
)
_FALSE = ("F", "FALSE", "0", "NONE", "--", "-", "")


@dataclass(frozen=True, kw_only=True)
class VaspSettings:
    """Settings of a calculation on which its energies depend."""

    functional: str | None
    """Functional with +U, hybrid and dispersion, such as PBE+U; None if the file does not state it."""
    cutoff: float | None
    """Plane-wave cutoff [eV]; None if the file does not state it."""

    @property
    def text(self) -> str:
        """Level of theory in words, such as "PBE, VASP, 520 eV"."""
        cutoff = [] if self.cutoff is None else [f"{self.cutoff:g} eV"]
        return ", ".join([self.functional or "functional not stated", "VASP", *cutoff])


def read_settings(path: Path) -> VaspSettings:
    """Read the settings of an OUTCAR or a vasprun.xml.

    Raises:
        InvalidStructure: the file cannot be read.
    """
    with errors_named(path, "head"), cast(Any, open_with_compression(str(path), "rb")) as file:
        beginning = file.read(MAX_HEAD)
        is_xml = beginning.lstrip()[:1] == b"<"
        found = _of_xml(beginning) if is_xml else _of_outcar(beginning.decode(errors="replace"))
    return VaspSettings(functional=_functional(found), cutoff=_number(found.get("ENMAX") or found.get("ENCUT")))


def _of_outcar(text: str) -> dict[str, str]:
    """Return the settings in the head of an OUTCAR; the last one with a name is the one that VASP resolved."""
    head = re.split(r"-{3,}\s*Iteration\s", text, maxsplit=1)[0]
    found: dict[str, str] = {}
    for name, value in _SETTING.findall(head):
        # the pseudopotentials' LEXCH is a name, VASP's own a number; METAGGA = F is about another calculation
        if not (name == "LEXCH" and value.lstrip("-").isdigit()) and not (name == "METAGGA" and value in _FALSE):
            found[name] = value
    return found


def _of_xml(content: bytes) -> dict[str, str]:
    """Return the settings in the first elements of a vasprun.xml; `incar` has those given, `parameters` all."""
    found: dict[str, str] = {}
    with contextlib.suppress(ET.ParseError):  # at the end of the bytes that were read
        for _, element in ET.iterparse(io.BytesIO(content), events=("end",)):
            if element.tag in ("incar", "parameters"):
                settings = {(i.get("name") or "").upper(): (i.text or "").strip() for i in element.iter("i")}
                found |= {name: value for name, value in settings.items() if value.upper() not in ("", "--")}
            elif element.tag == "atominfo":
                names = [(cell.text or "").strip() for cell in element.findall("array[@name='atomtypes']/set/rc/c")]
                found["LEXCH"] = "PE" if any(name.startswith("PAW_PBE") for name in names) else found.get("LEXCH", "")
            elif element.tag == "calculation":
                break
    return found


def _functional(found: Mapping[str, str]) -> str | None:
    gga, meta = (found.get(name, "").strip(".").upper() for name in ("GGA", "METAGGA"))
    name = FUNCTIONALS.get(gga if gga not in _FALSE else found.get("LEXCH", "").upper(), gga.strip("-") or None)
    if meta not in _FALSE:
        name = META.get(meta, meta)
    if name is None:
        return None
    if _is_set(found, "LHFCALC"):
        screening, exact = (_number(found.get(key)) or 0.0 for key in ("HFSCREEN", "AEXX"))
        hybrid = {(True, 0.25): "HSE06", (False, 0.25): "PBE0"}.get((abs(screening - 0.2) < 0.01, round(exact, 2)))
        name = hybrid if hybrid and name == "PBE" else f"{name} hybrid (AEXX {exact:g}, HFSCREEN {screening:g})"
    if _is_set(found, "LDAU"):
        name += "+U"
    if _is_set(found, "LUSE_VDW"):
        name += "+vdW-DF"
    if _is_set(found, "IVDW"):
        name += {"11": "+D3", "12": "+D3(BJ)", "10": "+D2", "1": "+D2"}.get(found["IVDW"], f"+IVDW {found['IVDW']}")
    return name + "+SOC" * _is_set(found, "LSORBIT")


def _is_set(found: Mapping[str, str], name: str) -> bool:
    return found.get(name, "").strip(".").upper() not in _FALSE


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
