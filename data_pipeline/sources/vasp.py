"""OUTCAR and vasprun.xml, step by step: refuses invalid labels that ASE accepts.

ASE reads every ionic step alike. Here a step whose electrons did not converge is refused, as is one with a number too
long to print (****); a step predicted by VASP's own force field (ML_LMLFF) is left out and counted. An unfinished run
gives its complete steps.

In an OUTCAR a prediction has "ML" in its headings. A calculated step has one too, before its electronic steps, so that
the number in "Iteration" tells how many steps in between were only predicted. In a vasprun.xml a step without
electronic steps is predicted; the number of electronic steps is compared with NELM, because the file does not state
convergence.
"""

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast
from xml.parsers.expat import errors as expat

import ase
import ase.units
import numpy as np
from ase.io.formats import open_with_compression
from ase.io.vasp import atoms_from_step
from ase.io.vasp_parsers import vasp_outcar_parsers as outcar
from jaxtyping import Float64

from data_pipeline.quoting import abbreviated, one_line
from data_pipeline.sources.labels import check_charge
from data_pipeline.sources.lines import lines_of, of_one_frame
from data_pipeline.sources.source import Frames, MachineLearned, errors_named, no_frames, reason_of
from data_pipeline.structure import InvalidStructure

KBAR = -0.1 * ase.units.GPa
"""VASP's kbar, positive in compression, as stress [eV/Å³], positive in tension."""
_HEADS = ("POTCAR:", "VRHFIN", "ions per type", "NIONS", "total number of electrons")
"""Lines that only the head of a run has; after the first step they belong to another run."""
_TABLE = "TOTAL-FORCE (eV/Angst)"
_END = "FREE ENERGIE OF THE ION-ELECTRON SYSTEM"
_LINES_BEHIND_END = 4
_ITERATION = re.compile(r"Iteration\s+(\d+)\(\s*(\d+)\)")
_NELM = re.compile(r"^\s*NELM\s*=\s*(\d+)", re.MULTILINE)
_NELECT = re.compile(r"^\s*NELECT\s*=\s*([\d.]+)", re.MULTILINE)
_VALENCES = re.compile(r"^\s*ZVAL\s*=((?:[ \t]+[\d.]+)+)\s*$", re.MULTILINE)
_COUNTS = re.compile(r"^\s*ions per type\s*=((?:[ \t]+\d+)+)\s*$", re.MULTILINE)
MAX_CHARGE = 1e-2
"""Largest difference between the electrons of the atoms and those of the run [e] due to rounding in print."""
_UNFINISHED = {
    expat.codes[message]
    for message in (expat.XML_ERROR_NO_ELEMENTS, expat.XML_ERROR_UNCLOSED_TOKEN, expat.XML_ERROR_PARTIAL_CHAR)
}
"""Errors of the parser that mean the end of the file; others occur before it."""


def read_outcar(path: Path) -> Frames:
    """Read the ionic steps of an OUTCAR, one at a time."""
    number = predicted = last = 0
    with (
        errors_named(path, "frame 0"),
        TextIOWrapper(cast(Any, open_with_compression(str(path), "rb")), errors="replace") as file,
    ):
        lines_left = lines_of(file.readline, path)
        head, first = _head(of_one_frame(lines_left, path))
        if not first:
            raise no_frames(path)
        if sum("ions per type" in line for line in head) > 1:
            raise InvalidStructure(f"{path}: begins with the heads of two runs. Put each run in its own file.")
        most = _NELM.findall("".join(head))
        header = outcar.OutcarHeaderParser(parsers=[outcar.SpeciesTypes(), outcar.IonsPerSpecies()]).build(head)
        charge = _outcar_charge("".join(head))
        parsers = [outcar.Cell(), outcar.PositionsAndForces(), outcar.Stress(), outcar.Energy()]
        parser = outcar.OutcarChunkParser(header=header, parsers=parsers)
        for lines in _blocks(lines_left, first, path):
            _check_one_run(lines, path, number)
            if f"ML {_END}" in lines[-1 - _LINES_BEHIND_END]:
                predicted += 1
                continue
            ionic, electronic = _iteration(lines) or (last + 1 + predicted, 0)
            for _ in range(min(predicted, max(0, ionic - last - 1))):
                yield number, MachineLearned("was predicted by a force field")
                number += 1
            try:
                check_charge(charge)
                _check_converged(lines, electronic, int(most[-1]) if most else None)
                calculated = _calculated(lines)
                _check_tables(calculated, len(header["symbols"]))
                yield number, parser.build(calculated)
            except InvalidStructure as error:
                yield number, error
            except Exception as error:  # ASE's parsing raises any type
                yield number, InvalidStructure(reason_of(error))
            number, predicted, last = number + 1, 0, ionic
    for _ in range(predicted):
        yield number, MachineLearned("was predicted by a force field")
        number += 1
    if number == 0:
        raise no_frames(path)


def _head(file: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the lines before the first step, and its first line."""
    head = []
    for line in file:
        if "Iteration" in line or _END in line:
            return head, [line]
        head.append(line)
    return head, []


def _blocks(file: Iterator[str], lines: list[str], path: Path) -> Iterator[list[str]]:
    """Yield the lines up to each energy; lines after the last complete one belong to an unfinished step."""
    while True:
        step = of_one_frame(file, path)
        while not lines or _END not in lines[-1]:
            line = next(step, None)
            if line is None:
                return
            lines.append(line)
        behind = list(itertools.islice(file, _LINES_BEHIND_END))
        if len(behind) < _LINES_BEHIND_END:
            return
        yield lines + behind
        lines = []


def _iteration(lines: list[str]) -> tuple[int, int] | None:
    """Return the numbers of the ionic and of the last electronic step, or None."""
    found = [match for line in lines if "Iteration" in line and (match := _ITERATION.search(line))]
    return (int(found[-1][1]), int(found[-1][2])) if found else None


def _check_one_run(lines: list[str], path: Path, number: int) -> None:
    """Refuse steps of another run, whose atoms need not be those of the head."""
    text = "".join(lines)
    if (found := next((word for word in _HEADS if word in text), None)) is not None:
        raise InvalidStructure(
            f"{path}, frame {number}: the head of another run precedes it ({found!r}), as in concatenated "
            "files. Put each run in its own file."
        )


def _check_tables(lines: list[str], num_atoms: int) -> None:
    """Refuse a table of positions and forces without a row for every ion; ASE reads the number of rows in the head."""
    for start in (number for number, line in enumerate(lines) if _TABLE in line):
        rows = itertools.takewhile(lambda line: not line.startswith(" --"), itertools.islice(lines, start + 2, None))
        if (found := sum(1 for _ in rows)) != num_atoms:
            raise InvalidStructure(f"the table of positions and forces has {found} rows for {num_atoms} ions")


def _check_converged(lines: list[str], electronic: int, most: int | None) -> None:
    """Refuse a step that reached the limit of electronic steps; VASP 6 prints a line for that, VASP 5 does not."""
    ended = [line for line in lines if "aborting loop" in line]
    if ended and "because EDIFF is reached" not in ended[-1]:
        raise InvalidStructure(f"the electrons did not converge ({ended[-1].strip(' -' + chr(10))[:80]})")
    if not ended and most is not None and electronic >= most:
        raise InvalidStructure(f"the electrons did not converge within the {most} steps that NELM allows")


def _calculated(lines: list[str]) -> list[str]:
    """Return the lines without those of a prediction; refuse a stress too long to print."""
    result, predicted = [], False
    for line in lines:
        predicted |= "ML FORCE on cell" in line
        if "in kB " in line:
            if not predicted:
                _check_numbers(line, outcar.Stress().get_line(0, [line]).split()[2:])
                result.append(line)
            predicted = False
        elif "(ML)" not in line:
            result.append(line)
    return result


def _check_numbers(line: str, values: list[str]) -> None:
    try:
        found = len([float(value) for value in values])
    except ValueError:
        found = 0
    if found != 6:
        raise InvalidStructure(f"the stress is not six numbers: {abbreviated(line.strip())}")


def _outcar_charge(head: str) -> dict[str, float]:
    """Return the charge from the numbers of electrons, or {} if the file lacks them or the frame is neutral."""
    electrons, valences, counts = (pattern.findall(head) for pattern in (_NELECT, _VALENCES, _COUNTS))
    if not electrons or not valences or not counts:
        return {}
    per_atom, per_type = map(float, valences[-1].split()), map(int, counts[-1].split())
    neutral = sum(valence * count for valence, count in zip(per_atom, per_type, strict=False))
    charge = neutral - float(electrons[-1])
    return {"charge": charge} if abs(charge) > MAX_CHARGE else {}


def read_vasprun(path: Path) -> Frames:
    """Read the ionic steps of a vasprun.xml, one at a time."""
    run, number = _Run(), -1
    with errors_named(path, "frame 0"), cast(Any, open_with_compression(str(path), "rb")) as file:
        elements = ET.iterparse(file, events=("start", "end"))
        while True:
            try:
                event, element = next(elements)
            except (StopIteration, ET.ParseError) as error:
                if isinstance(error, StopIteration) or error.code in _UNFINISHED:
                    break
                raise InvalidStructure(
                    f"{path}, after frame {number}: not XML ({error}). The file is damaged; get it again, or remove "
                    "it from the source's files."
                ) from error
            frame = run.begin(element) if event == "start" else run.end(element)
            if frame is not None:
                number += 1
                yield number, frame
    if number < 0:
        raise no_frames(path)


class _Run:
    """State of reading a vasprun.xml: its settings and atoms, and the position."""

    def __init__(self) -> None:
        self._settings: dict[str, str] = {}
        self._species: list[str] = []
        self._charge: dict[str, float] = {}
        self._in_step = False

    def begin(self, element: ET.Element) -> None:
        """Record that a step begins."""
        self._in_step |= element.tag == "calculation"

    def end(self, element: ET.Element) -> ase.Atoms | InvalidStructure | None:
        """Return the frame that this element completes, or None."""
        if element.tag in ("incar", "parameters"):
            self._settings |= {i.get("name", "").upper(): (i.text or "").strip() for i in element.iter("i")}
        elif element.tag == "atominfo":
            self._species, valence = _species(element)
            self._charge = {"valence": valence}
        elif element.tag == "structure" and not self._in_step and not element.get("name") and self._predicts():
            return MachineLearned("was predicted by a force field")
        elif element.tag == "calculation":
            self._in_step = False
            frame = self._step(element)
            element.clear()
            return frame
        return None

    def _predicts(self) -> bool:
        return self._settings.get("ML_LMLFF", "F").strip(".").upper().startswith("T")

    def _step(self, step: ET.Element) -> ase.Atoms | InvalidStructure:
        electronic = len(step.findall("scstep"))
        only_predicts = self._settings.get("ML_MODE", "").lower() == "run" or self._settings.get("ML_ISTART") == "2"
        if self._predicts() and (electronic == 0 or only_predicts):
            return MachineLearned("was predicted by a force field")
        try:
            self._check(step, electronic)
            atoms = atoms_from_step(
                step,
                ibz_kpts=[],
                kpt_weights=[],
                parameters={"pstress": float(self._settings.get("PSTRESS", 0))},
                atoms=ase.Atoms(self._species, pbc=True),
                natoms=len(self._species),
            )
            if (stress := step.find('varray[@name="stress"]')) is not None:
                atoms.calc.results["stress"] = KBAR * _rows(stress, 3)  # ASE keeps six, whether symmetric or not
        except InvalidStructure as error:
            return error
        except Exception as error:  # ASE's parsing raises any type
            return InvalidStructure(reason_of(error))
        return atoms

    def _check(self, step: ET.Element, electronic: int) -> None:
        """Refuse a step that did not converge, is charged, or lacks a row for an atom."""
        if electronic == 0:
            raise InvalidStructure("it has no electronic step, so nothing was calculated")
        most, algorithm = self._settings.get("NELM"), self._settings.get("ALGO", "").lower()
        if most is not None and electronic >= int(most) and not (int(most) == 1 and algorithm == "exact"):
            raise InvalidStructure(
                f"the electrons took all {electronic} steps that NELM allows; the file does not state convergence"
            )
        electrons = float(self._settings.get("NELECT", 0))
        if electrons and self._charge.get("valence"):
            charge = self._charge["valence"] - electrons
            check_charge({"charge": charge} if abs(charge) > MAX_CHARGE else {})
        for place, rows in (
            ('structure/crystal/varray[@name="basis"]', 3),
            ('structure/varray[@name="positions"]', len(self._species)),
            ('varray[@name="forces"]', len(self._species)),
            ('varray[@name="stress"]', 3),
        ):
            if (table := step.find(place)) is not None:
                _rows(table, rows)


def _rows(table: ET.Element, rows: int) -> Float64[np.ndarray, "rows 3"]:
    """Return a table; VASP prints stars for a number that is too long, and a missing row would become zeros."""
    try:
        values = np.array([[float(word) for word in (row.text or "").split()] for row in table], dtype=np.float64)
    except ValueError as error:
        raise InvalidStructure(f"{table.get('name')} are not numbers ({one_line(str(error))})") from error
    if values.shape != (rows, 3):
        raise InvalidStructure(f"{table.get('name')} has shape {values.shape}, expected ({rows}, 3)")
    return values


def _species(info: ET.Element) -> tuple[list[str], float]:
    """Return the symbol of each atom, and the number of electrons of all atoms (zero if unknown)."""
    species = [(row[0].text or "").strip() for row in info.findall("array[@name='atoms']/set/rc")]
    types = [[(cell.text or "").strip() for cell in row] for row in info.findall("array[@name='atomtypes']/set/rc")]
    valence = sum((int(row[0]) * float(row[3]) for row in types if len(row) > 3), 0.0)
    return species, valence
