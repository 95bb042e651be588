"""Level of theory of VASP's output, as its two files state it."""

import gzip
from pathlib import Path

import pytest

from data_pipeline.sources.vasp_settings import read_settings

HEAD = """ vasp.6.3.0 20Jan22
   ENCUT = 300
 POTCAR:    PAW_PBE Si 05Jan2001
   LEXCH  = {pseudo}
   ENMAX  =  245.345; ENMIN  =  184.009 eV
{meta}   METAGGA=      F    non-selfconsistent MetaGGA calc.
   ENCUT  =  520.0 eV  38.22 Ry    6.18 a.u.   9.17  9.05  9.39*2*pi/ulx,y,z
   GGA_COMPAT  = T    GGA compatible to vasp.4.4-vasp.4.6
   GGA     =    {gga}    GGA type
   LEXCH   =     8    internal setting for exchange type
{more}----------- Iteration      1(   1)  -----------
   GGA = RP
"""


@pytest.mark.parametrize(
    ("pseudo", "gga", "meta", "more", "text"),
    [
        ("PE", "--", "", "", "PBE"),
        ("CA", "--", "", "", "LDA"),
        ("PE", "PS", "", "", "PBEsol"),
        ("PE", "RP", "", "", "RPBE"),
        ("PE", "XX", "", "", "XX"),
        ("PE", "--", " METAGGA = SCAN     LMAXTAU =  0\n", "", "SCAN"),
        ("PE", "--", "   METAGGA = R2SCAN\n", "", "r2SCAN"),
        ("PE", "PE", "", "   LDAU = .TRUE.\n", "PBE+U"),
        ("PE", "PE", "", "   LDAU = .FALSE.\n", "PBE"),
        ("PE", "PE", "", "   IVDW = 12\n", "PBE+D3(BJ)"),
        ("PE", "PE", "", "   IVDW = 0\n", "PBE"),
        ("PE", "PE", "", "   LSORBIT = T\n", "PBE+SOC"),
        ("PE", "PE", "", "   LHFCALC =     T\n   AEXX    =    0.2500\n   HFSCREEN=    0.2000\n", "HSE06"),
        ("PE", "PE", "", "   LHFCALC =     T\n   AEXX    =    0.2500\n", "PBE0"),
        ("PS", "--", "", "   LHFCALC = T\n   AEXX = 0.3\n", "PBEsol hybrid (AEXX 0.3, HFSCREEN 0)"),
    ],
)
def test_an_outcar_states_its_functional(
    tmp_path: Path, pseudo: str, gga: str, meta: str, more: str, text: str
) -> None:
    path = tmp_path / "OUTCAR"
    path.write_text(HEAD.format(pseudo=pseudo, gga=gga, meta=meta, more=more))
    assert read_settings(path).text == f"{text}, VASP, 520 eV"


XML = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <incar>{incar}</incar>
 <parameters><separator name="electronic"><i name="ENMAX">    520.00</i><i type="string" name="GGA">--</i>{all}
 </separator></parameters>
 <atominfo><array name="atomtypes"><set>
  <rc><c>   2</c><c>Si</c><c>     28.085</c><c>      4.0</c><c>  {pseudo} Si 05Jan2001            </c></rc>
 </set></array></atominfo>
 <calculation><scstep></scstep></calculation>
 <calculation>
"""


@pytest.mark.parametrize(
    ("incar", "all_of_them", "pseudo", "text"),
    [
        ("", "", "PAW_PBE", "PBE"),
        ('<i type="string" name="GGA">PS</i>', "", "PAW_PBE", "PBEsol"),
        ('<i type="string" name="METAGGA">R2SCAN</i>', "", "PAW_PBE", "r2SCAN"),
        ('<i type="logical" name="LDAU"> T  </i>', '<i type="logical" name="LDAU"> T  </i>', "PAW_PBE", "PBE+U"),
        ("", '<i type="logical" name="LDAU"> F  </i>', "PAW_PBE", "PBE"),
    ],
)
def test_a_vasprun_states_its_functional_even_if_it_is_unfinished(
    tmp_path: Path, incar: str, all_of_them: str, pseudo: str, text: str
) -> None:
    content = XML.format(incar=incar, all=all_of_them, pseudo=pseudo)
    (tmp_path / "vasprun.xml").write_text(content)
    with gzip.open(tmp_path / "vasprun.xml.gz", "wt") as file:
        file.write(content)
    for name in ("vasprun.xml", "vasprun.xml.gz"):
        assert read_settings(tmp_path / name).text == f"{text}, VASP, 520 eV"


def test_what_a_file_does_not_state_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "OUTCAR").write_text(" vasp.6.3.0\n   ions per type = 2\n")
    found = read_settings(tmp_path / "OUTCAR")
    assert (found.functional, found.cutoff) == (None, None)
    assert found.text == "functional not stated, VASP"
