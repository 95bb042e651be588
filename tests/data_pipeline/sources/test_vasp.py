"""OUTCAR and vasprun.xml: steps that are labels, steps that are none, and what is said of a damaged file."""

import gzip
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sources import AseFiles, MachineLearned
from data_pipeline.structure import InvalidStructure, Structure

HEAD = """ vasp.6.4.2
 POTCAR:    PAW_PBE Cu 22Jun2005
   NELM   =     60;   NELMIN=  2; NELMDL= -5     # of ELM steps
   ions per type =               2
   ZVAL   =  11.00
   NELECT =      22.0000    total number of electrons
"""
CELL = """      direct lattice vectors                 reciprocal lattice vectors
     4.000000000  0.000000000  0.000000000     0.250000000  0.000000000  0.000000000
     0.000000000  4.000000000  0.000000000     0.000000000  0.250000000  0.000000000
     0.000000000  0.000000000  4.000000000     0.000000000  0.000000000  0.250000000
"""
REACHED = "---- aborting loop because EDIFF is reached ----\n"
UNCONVERGED = "---- aborting loop EDIFF was not reached (unconverged)  ----\n"
STOPPED = "---- aborting loop because hard stop was set ----\n"


def calculated(number: int, energy: float, ended: str = REACHED, steps: int = 12) -> str:
    """One step as VASP prints it, with forces of 0.1."""
    return f"""----- Iteration {number:6d}({steps:4d})  -----
{ended}  in kB      10.00000    20.00000    30.00000     4.00000     5.00000     6.00000
{CELL} POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.100000      0.200000      0.300000
      2.00000      2.00000      0.00000        -0.100000     -0.200000     -0.300000
 -----------------------------------------------------------------------------------
    total drift:                                0.000000      0.000000      0.000000

  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  = {energy:18.8f} eV

  energy  without entropy= {energy:17.8f}  energy(sigma->0) = {energy:17.8f}

"""


def predicted(energy: float) -> str:
    """One prediction of VASP's force field, with forces of 0.7."""
    return f"""  ML FORCE on cell =-STRESS in cart. coord. units (eV/cell)
  in kB       7.00000     7.00000     7.00000     0.00000     0.00000     0.00000
{CELL}  POSITION                                       TOTAL-FORCE (eV/Angst) (ML)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.700000      0.200000      0.300000
      2.00000      2.00000      0.00000        -0.700000     -0.200000     -0.300000
 -----------------------------------------------------------------------------------
  ML FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy ML TOTEN  = {energy:18.8f} eV

  ML energy  without entropy= {energy:17.8f}  ML energy(sigma->0) = {energy:17.8f}

"""


def frames_of(path: Path, text: str) -> list:
    path.write_text(text)
    (part,) = AseFiles(files=(str(path),)).parts()
    return list(part.read())


def summary(frames: Sequence) -> list:
    """Energies of what is read, and of the others what they are."""
    return [frame.energy if isinstance(frame, Structure) else type(frame).__name__ for frame in frames]


@pytest.fixture
def outcar(tmp_path: Path):
    return lambda text: frames_of(tmp_path / "OUTCAR", text)


@pytest.mark.parametrize(
    ("ended", "steps", "reason"),
    [
        (UNCONVERGED, 60, "EDIFF was not reached"),
        (UNCONVERGED, 7, "EDIFF was not reached"),
        (STOPPED, 7, "hard stop was set"),
        ("", 60, "60 steps that NELM allows"),
    ],
)
def test_a_step_whose_electrons_did_not_converge_is_refused(outcar, ended: str, steps: int, reason: str) -> None:
    frames = outcar(HEAD + calculated(1, -7.5) + calculated(2, -3.3, ended, steps) + calculated(3, -7.4))
    assert summary(frames) == [-7.5, "InvalidStructure", -7.4]
    assert "OUTCAR, frame 1: the electrons did not converge" in str(frames[1])
    assert reason in str(frames[1])


def test_a_step_that_converged_with_the_last_electronic_step_is_read(outcar) -> None:
    assert summary(outcar(HEAD + calculated(1, -7.5, REACHED, 60) + calculated(2, -7.4, "", 59))) == [-7.5, -7.4]


def test_predictions_are_left_out_wherever_they_stand(outcar, caplog: pytest.LogCaptureFixture) -> None:
    # while a force field learns, a prediction comes before every calculation, of the same step, as VASP 6.4 prints it
    text = HEAD + predicted(0.0) + calculated(1, -7.5)
    text += predicted(-7.1) + predicted(-7.2) + predicted(-7.3) + calculated(4, -7.4) + predicted(-7.6)
    with caplog.at_level(logging.WARNING):
        frames = outcar(text)
    assert summary(frames) == [-7.5, "MachineLearned", "MachineLearned", -7.4, "MachineLearned"]
    assert {float(f.forces[0, 0]) for f in frames if isinstance(f, Structure)} == {float(np.float32(0.1))}
    assert "3 machine-learned steps are left out" in caplog.text


def test_what_is_predicted_within_a_calculated_step_is_no_label(outcar) -> None:
    inside = predicted(-9.0).partition("  ML FREE")[0]
    text = HEAD + calculated(1, -7.5).replace("  FREE ENERGIE", inside + "  FREE ENERGIE")
    (structure,) = outcar(text)
    assert structure.forces[0, 0] == np.float32(0.1)
    assert structure.stress[0, 0] == pytest.approx(-10 / 1602.1766, rel=1e-5)


def test_a_run_of_predictions_only_is_refused_by_that_name(outcar) -> None:
    with pytest.raises(InvalidStructure, match=r"OUTCAR: all 2 steps are machine-learned \(ML_LMLFF\)"):
        outcar(HEAD + predicted(-7.1) + predicted(-7.2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("in kB      10.00000", "in kB  *************"),
        ("in kB      10.00000", "in kB               "),
        ("0.100000      0.200000", "************* 0.200000"),
        ("      2.00000      2.00000", "  ***********      2.00000"),
        ("TOTEN  =        -7.40000000", "TOTEN  =  *****************"),
        ("     4.000000000  0.000000000", "     ***********  0.000000000"),
        ("energy(sigma->0) =       -7.40000000", "energy(sigma->0) = ****************"),
    ],
)
def test_stars_in_place_of_a_number_refuse_the_step_and_no_other(outcar, old: str, new: str) -> None:
    bad = calculated(2, -7.4)
    assert old in bad
    frames = outcar(HEAD + calculated(1, -7.5) + bad.replace(old, new) + calculated(3, -7.3))
    assert summary(frames) == [-7.5, "InvalidStructure", -7.3]
    assert "OUTCAR, frame 1: " in str(frames[1])


def test_an_outcar_of_a_charged_cell_is_refused(outcar) -> None:
    (frame,) = outcar(HEAD.replace("22.0000 ", "21.0000 ") + calculated(1, -7.5))
    assert "has charge 1 " in str(frame)


def test_two_runs_in_one_outcar_are_refused(tmp_path: Path) -> None:
    three = HEAD.replace("Cu", "Au").replace("type =               2", "type =               3")
    with pytest.raises(InvalidStructure, match=r"OUTCAR, frame 2: the head of another run precedes it"):
        frames_of(tmp_path / "OUTCAR", HEAD + calculated(1, -7.0) + calculated(2, -7.1) + three + calculated(1, -9.0))
    unfinished = calculated(2, -7.1)[:300]
    with pytest.raises(InvalidStructure, match=r"OUTCAR, frame 1: the head of another run"):
        frames_of(tmp_path / "OUTCAR", HEAD + calculated(1, -7.0) + unfinished + three + calculated(1, -9.0))
    with pytest.raises(InvalidStructure, match=r"OUTCAR: begins with the heads of two runs"):
        frames_of(tmp_path / "OUTCAR", HEAD + three + calculated(1, -7.0))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_whose_table_has_not_a_row_for_every_ion_is_refused_and_no_other(tmp_path: Path, rows: int) -> None:
    row = "      2.00000      2.00000      0.00000        -0.100000     -0.200000     -0.300000\n"
    wrong = calculated(2, -7.1).replace(row, (rows - 1) * row)
    frames = frames_of(tmp_path / "OUTCAR", HEAD + calculated(1, -7.0) + wrong + calculated(3, -7.2))
    assert [isinstance(frame, Structure) for frame in frames] == [True, False, True]
    assert f"has {rows} rows for 2 ions" in str(frames[1])


def test_a_compressed_outcar_is_read_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "OUTCAR.gz"
    path.write_bytes(gzip.compress((HEAD + calculated(1, -7.5, UNCONVERGED) + calculated(2, -7.4)).encode()))
    (part,) = AseFiles(files=(str(path),)).parts()
    assert summary(list(part.read())) == ["InvalidStructure", -7.4]


def xml_step(energy: float, electronic: int = 3, stress: str = "<v> 16 4 3 </v><v> 4 32 2 </v><v> 3 2 -16 </v>") -> str:
    scf = f'<scstep><energy><i name="e_fr_energy"> {energy} </i><i name="e_0_energy"> {energy} </i></energy></scstep>'
    return f"""<calculation>{scf * electronic}
  <structure><crystal><varray name="basis"><v> 4 0 0 </v><v> 0 4 0 </v><v> 0 0 4 </v></varray></crystal>
   <varray name="positions"><v> 0 0 0 </v><v> 0.5 0.5 0.25 </v></varray></structure>
  <varray name="forces"><v> 0.1 0.2 0.3 </v><v> -0.1 -0.2 -0.3 </v></varray>
  <varray name="stress">{stress}</varray>
  <energy><i name="e_fr_energy"> {energy} </i><i name="e_0_energy"> {energy} </i></energy>
 </calculation>
"""


def xml_run(*steps: str, incar: str = "", electrons: float = 17.0) -> str:
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling><incar>{incar}</incar>
 <parameters><i type="int" name="NELM"> 60</i><i name="NELECT"> {electrons} </i></parameters>
 <atominfo><array name="atoms"><set><rc><c>Cu</c><c>   1</c></rc><rc><c>O </c><c>   2</c></rc></set></array>
  <array name="atomtypes"><set><rc><c>   1</c><c>Cu</c><c> 63.5 </c><c> 11.0</c><c> PAW </c></rc>
  <rc><c>   1</c><c>O </c><c> 16.0 </c><c> 6.0</c><c> PAW </c></rc></set></array></atominfo>
 <structure name="initialpos"><varray name="positions"><v> 0 0 0 </v><v> 0.5 0.5 0.25 </v></varray></structure>
{"".join(steps)}</modeling>
"""


PREDICTED = '<structure><varray name="positions"><v> 0 0 0 </v><v> 0.5 0.5 0.25 </v></varray></structure>'


@pytest.fixture
def vasprun(tmp_path: Path):
    return lambda text: frames_of(tmp_path / "vasprun.xml", text)


def test_a_vasprun_step_that_took_all_electronic_steps_is_refused(vasprun) -> None:
    frames = vasprun(xml_run(xml_step(-10.0), xml_step(-9.0, 60), xml_step(-9.5, 59)))
    assert summary(frames) == [-10.0, "InvalidStructure", -9.5]
    assert "vasprun.xml, frame 1: the electrons took all 60 steps that NELM allows" in str(frames[1])


@pytest.mark.parametrize(
    ("steps", "incar", "expected"),
    [
        ((xml_step(-10.0), xml_step(-9.0, 0), xml_step(-9.5)), "", [-10.0, "MachineLearned", -9.5]),
        ((PREDICTED, xml_step(-10.0), PREDICTED), "", ["MachineLearned", -10.0, "MachineLearned"]),
    ],
    ids=["calculation", "structure"],
)
def test_predicted_steps_of_a_vasprun_are_left_out(
    vasprun, steps: tuple[str, ...], incar: str, expected: list, caplog: pytest.LogCaptureFixture
) -> None:
    incar += '<i type="logical" name="ML_LMLFF"> T  </i>'
    with caplog.at_level(logging.WARNING):
        assert summary(vasprun(xml_run(*steps, incar=incar))) == expected
    assert "machine-learned steps are left out" in caplog.text


@pytest.mark.parametrize("step", [xml_step(-9.0, 0), PREDICTED, xml_step(-9.0)], ids=["no-scstep", "structure", "mode"])
def test_a_vasprun_of_predictions_only_is_refused_by_that_name(vasprun, step: str) -> None:
    incar = '<i type="logical" name="ML_LMLFF"> T  </i><i type="string" name="ML_MODE">run</i>'
    with pytest.raises(InvalidStructure, match=r"vasprun.xml: all 1 steps are machine-learned"):
        vasprun(xml_run(step, incar=incar))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<v> 16 4 3 </v>", "<v> ******** 4 3 </v>", "stress are not numbers"),
        ("<v> 16 4 3 </v>", "<v> 16 9 3 </v>", "not symmetric"),
        ("<v> 0.1 0.2 0.3 </v>", f"<v> {'[' * 5000} 0.2 0.3 </v>", r"forces are not numbers \(.{1,500}$"),
        ("<v> 0.1 0.2 0.3 </v>", "<v> ******** 0.2 0.3 </v>", "forces are not numbers"),
        ("<v> 0.1 0.2 0.3 </v>", "", r"forces has shape \(1, 3\), expected \(2, 3\)"),
        ("<v> 0.5 0.5 0.25 </v>", "<v> 0.5 0.5 </v>", "positions are not numbers"),
        ("<v> 0 4 0 </v>", "", r"basis has shape \(2, 3\)"),
        ('<energy><i name="e_fr_energy"> -9.0 </i>', "<energy>", "cannot be read"),
    ],
)
def test_a_damaged_step_of_a_vasprun_is_refused_and_no_other(vasprun, old: str, new: str, reason: str) -> None:
    bad = xml_step(-9.0)
    assert old in bad
    frames = vasprun(xml_run(xml_step(-10.0), bad.replace(old, new), xml_step(-9.5)))
    assert summary(frames) == [-10.0, "InvalidStructure", -9.5]
    with pytest.raises(InvalidStructure, match=rf"vasprun.xml, frame 1: .*{reason}"):
        raise frames[1]


def test_a_vasprun_of_a_charged_cell_is_refused(vasprun) -> None:
    (frame,) = vasprun(xml_run(xml_step(-10.0), electrons=18.0))
    assert "has charge -1 " in str(frame)


def test_a_vasprun_without_electronic_steps_that_predicts_nothing_is_refused(vasprun) -> None:
    (frame,) = vasprun(xml_run(xml_step(-10.0, 0)))
    assert not isinstance(frame, MachineLearned)
    assert "no electronic step" in str(frame)


def test_an_unfinished_vasprun_gives_its_complete_steps_and_a_damaged_one_an_error(vasprun) -> None:
    text = xml_run(xml_step(-10.0), xml_step(-9.5))
    assert summary(vasprun(text[: text.rindex("<energy>")])) == [-10.0]
    last = text.rindex("</structure>")
    with pytest.raises(InvalidStructure, match=r"vasprun.xml, after frame 0: not XML \(mismatched tag"):
        vasprun(text[:last] + "</crystal>" + text[last:])
    with pytest.raises(InvalidStructure, match=r"vasprun.xml: the file holds no frames"):
        vasprun(text[: text.index("<calculation>")])
