"""Files of labelled frames as the build reads them, one small valid set of each format."""

import json
import random
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import h5py
import lmdb
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.sources import (
    AlexandriaJson,
    AseFiles,
    AseLmdb,
    DeepmdNpy,
    MaceHdf5,
    MatpesJson,
    MlearnJson,
    MptrjJson,
    Source,
)
from data_pipeline.structure import InvalidStructure
from tests.fuzz.harness import Mutation, Target
from tests.fuzz.mutations import damaged_bytes, damaged_files, damaged_json, damaged_numbers, damaged_text

FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3], [0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]
STRESS = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]
VOIGT = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def copper(count: int = 3) -> list[ase.Atoms]:
    """Return frames of four atoms with all labels."""
    frames = []
    for number in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=number)
        stress = 0.01 * np.array(VOIGT)
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - number, forces=np.array(FORCES), stress=stress)
        frames.append(atoms)
    return frames


def extxyz(folder: Path) -> None:
    """Write frames in extended XYZ."""
    ase.io.write(folder / "frames.extxyz", copper())


def database(folder: Path) -> None:
    """Write ASE's database."""
    with ase.db.connect(folder / "frames.db") as rows:
        for number, atoms in enumerate(copper()):
            rows.write(atoms, number=number, data={"note": [1.0, 2.0]})


OUTCAR_HEAD = """ vasp.6.4.2
 POTCAR:    PAW_PBE Cu 22Jun2005
   NELM   =     60;   NELMIN=  2; NELMDL= -5     # of ELM steps
   ions per type =               2
   ZVAL   =  11.00
   NELECT =      22.0000    total number of electrons
"""
OUTCAR_STEP = """---------------------------- Iteration {number:6d}(  12)  ----------------------------
---------------- aborting loop because EDIFF is reached ----------------
  in kB      10.00000    20.00000    30.00000     4.00000     5.00000     6.00000
      direct lattice vectors                 reciprocal lattice vectors
     4.000000000  0.000000000  0.000000000     0.250000000  0.000000000  0.000000000
     0.000000000  4.000000000  0.000000000     0.000000000  0.250000000  0.000000000
     0.000000000  0.000000000  4.000000000     0.000000000  0.000000000  0.250000000

 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.100000      0.200000      0.300000
      2.00000      2.00000      0.00000        -0.100000     -0.200000     -0.300000
 -----------------------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =        -7.50000000 eV

  energy  without entropy=       -7.50000000  energy(sigma->0) =       -7.50000000

"""


def another_run(folder: Path, chance: random.Random) -> str:
    """Put a run of other atoms behind the first."""
    count = chance.choice([1, 2, 3])
    head = OUTCAR_HEAD.replace("Cu", "Au").replace("type =               2", f"type =               {count}")
    with (folder / "OUTCAR").open("a") as file:
        file.write(head + OUTCAR_STEP.format(number=chance.choice([1, 4])))
    return f"a run of {count} atoms behind"


def outcar(folder: Path) -> None:
    """Write three ionic steps as VASP prints them."""
    (folder / "OUTCAR").write_text(OUTCAR_HEAD + "".join(OUTCAR_STEP.format(number=n) for n in (1, 2, 3)))


VASPRUN_STEP = """ <calculation>
  <scstep><energy><i name="e_fr_energy"> -10.0 </i><i name="e_0_energy"> -10.0 </i></energy></scstep>
  <structure>
   <crystal><varray name="basis"><v> 4 0 0 </v><v> 0 4 0 </v><v> 0 0 4 </v></varray></crystal>
   <varray name="positions"><v> 0 0 0 </v><v> 0.5 0.5 0.25 </v></varray>
  </structure>
  <varray name="forces"><v> 0.1 0.2 0.3 </v><v> -0.1 -0.2 -0.3 </v></varray>
  <varray name="stress"><v> 16 4 3 </v><v> 4 32 2 </v><v> 3 2 -16 </v></varray>
  <energy><i name="e_fr_energy"> -10.0 </i><i name="e_0_energy"> -10.0 </i></energy>
 </calculation>
"""


def vasprun(folder: Path) -> None:
    """Write three ionic steps as VASP's XML."""
    head = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <parameters><i type="int" name="NELM"> 60 </i></parameters>
 <atominfo><array name="atoms"><set><rc><c>Cu</c><c> 1</c></rc><rc><c>O </c><c> 2</c></rc></set></array></atominfo>
"""
    (folder / "vasprun.xml").write_text(head + 3 * VASPRUN_STEP + "</modeling>\n")


def lmdb_rows(folder: Path) -> None:
    """Write rows as ase-db-backends does, each beside its JSON."""
    for number, atoms in enumerate(copper(), 1):
        row = {
            "numbers": {"__ndarray__": [[4], "int64", atoms.numbers.tolist()]},
            "positions": {"__ndarray__": [[4, 3], "float64", atoms.positions.ravel().tolist()]},
            "cell": {"__ndarray__": [[3, 3], "float64", atoms.cell[:].ravel().tolist()]},
            "pbc": {"__ndarray__": [[3], "bool", [True] * 3]},
            "energy": -10.0 - number,
            "forces": {"__ndarray__": [[4, 3], "float64", np.ravel(FORCES).tolist()]},
            "stress": {"__ndarray__": [[6], "float64", VOIGT]},
            "key_value_pairs": {"charge": 0, "spin": 1},
            "data": {"sid": number},
        }
        (folder / f"{number}.json").write_text(json.dumps(row))
    packed(folder)


def packed(folder: Path) -> None:
    """Write the shard from the JSON beside it."""
    (folder / "rows.aselmdb").unlink(missing_ok=True)
    with lmdb.open(str(folder / "rows.aselmdb"), subdir=False, lock=False) as shard, shard.begin(write=True) as writing:
        writing.put(b"nextid", zlib.compress(b"4"))
        for path in folder.glob("*.json"):
            writing.put(path.stem.encode(), zlib.compress(path.read_bytes()))


def salt() -> dict[str, Any]:
    """Return pymatgen's Structure.as_dict(), as far as it is read."""
    places = ([0.0, 0.1, 0.2], [0.5, 0.5, 0.6], [0.25, 0.6, 0.2], [0.75, 0.1, 0.7])
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": abc, "properties": {"forces": force}}
        for symbol, abc, force in zip(("Na", "Cl", "Na", "Cl"), places, FORCES, strict=True)
    ]
    lattice = {"matrix": [[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.5, -0.5, 6.0]], "pbc": [True, True, True]}
    return {"charge": 0, "lattice": lattice, "sites": sites}


CORPORA: dict[str, Any] = {
    "mptrj": {
        f"mp-{number}": {
            f"mp-{number}-0-0": {
                "structure": salt(),
                "uncorrected_total_energy": -7.5,
                "corrected_total_energy": -8.5,
                "force": FORCES,
                "stress": STRESS,
            }
        }
        for number in range(3)
    },
    "matpes": [
        {"structure": salt(), "energy": -7.5, "forces": FORCES, "stress": VOIGT, "matpes_id": name} for name in "abc"
    ],
    "alexandria": {
        "entries": [{"structure": salt(), "energy": -7.5, "data": {"mat_id": name, "stress": STRESS}} for name in "abc"]
    },
    "mlearn": [
        {"structure": salt(), "outputs": {"energy": -7.5, "forces": FORCES, "virial_stress": VOIGT}} for _ in range(3)
    ],
}


def corpus(name: str) -> Callable[[Path], None]:
    """Return what writes a corpus."""
    return lambda folder: (folder / "corpus.json").write_text(json.dumps(CORPORA[name], indent=1)) and None


def deepmd(folder: Path) -> None:
    """Write a system of DeePMD-kit."""
    frames, place = copper(), folder / "set.000"
    place.mkdir()
    (folder / "type.raw").write_text("0\n0\n1\n1\n")
    (folder / "type_map.raw").write_text("Cu\nAu\n")
    np.save(place / "coord.npy", np.array([a.positions.ravel() for a in frames]))
    np.save(place / "box.npy", np.array([a.cell[:].ravel() for a in frames]))
    np.save(place / "energy.npy", np.array([a.get_potential_energy() for a in frames]))
    np.save(place / "force.npy", np.array([a.get_forces().ravel() for a in frames]))
    np.save(place / "virial.npy", np.array([np.ravel(STRESS)] * 3))


def mace(folder: Path) -> None:
    """Write a file of mace_prepare_data in the newer layout."""
    with h5py.File(folder / "train.h5", "w") as file:
        for number, atoms in enumerate(copper()):
            config = file.create_group(f"config_batch_0/config_{number}")
            labels = {"energy": -10.0, "forces": np.array(FORCES), "stress": np.array(VOIGT)}
            for name, value in labels.items():
                config[f"properties/{name}"], config[f"property_weights/{name}"] = value, 1.0
            for name in ("positions", "cell", "pbc"):
                config[name] = np.asarray(getattr(atoms, name))
            config["atomic_numbers"], config["weight"] = atoms.numbers, 1.0


def reader(source: Callable[[str], Source], name: str) -> Callable[[Path], list[tuple]]:
    """Return what reads the frames of a source, with all that they hold."""

    def read(folder: Path) -> list[tuple]:
        frames = source(str(folder / name))
        return [
            (s.numbers.tolist(), s.positions.tolist(), s.energy, s.forces.tolist(), s.stress.tolist()) for s in frames
        ]

    return read


def judge(frames: list[tuple]) -> str | None:
    """Say what is wrong with frames, whatever they were read from: nothing may be lost or empty."""
    if not frames:
        return "no frames, and no word about it"
    finite = all(np.isfinite(np.concatenate([np.ravel(part) for part in frame])).all() for frame in frames)
    return None if finite else "a value that is not finite"


def target(
    name: str,
    make: Callable[[Path], None],
    source: Callable[[str], Source],
    file: str,
    mutations: Mapping[str, Mutation],
) -> Target:
    """Return the target of a format."""
    return Target(
        name=name,
        make=make,
        read=reader(source, file),
        mutations=mutations,
        refusals=(InvalidStructure, OSError),
        judge=judge,
    )


def of_ase(path: str) -> AseFiles:
    """Return the source of a file that ASE reads."""
    return AseFiles(files=(path,))


def whole(pattern: str) -> dict[str, Mutation]:
    """Return what can happen to any file."""
    return {**damaged_bytes(pattern), **damaged_files(pattern, expects="refused")}


JSON_SOURCES: dict[str, Callable[[str], Source]] = {
    "mptrj": lambda path: MptrjJson(mptrj_json=(path,)),
    "matpes": lambda path: MatpesJson(matpes_json=(path,)),
    "alexandria": lambda path: AlexandriaJson(alexandria_json=(path,)),
    "mlearn": lambda path: MlearnJson(mlearn_json=(path,)),
}

TARGETS = (
    target("extxyz", extxyz, of_ase, "frames.extxyz", {**whole("*.extxyz"), **damaged_text("*.extxyz")}),
    target(
        "outcar",
        outcar,
        of_ase,
        "OUTCAR",
        {
            **whole("OUTCAR"),
            **damaged_text("OUTCAR"),
            "another run": Mutation(edit=another_run, expects="refused", names="frame"),
        },
    ),
    target("vasprun", vasprun, of_ase, "vasprun.xml", {**whole("*.xml"), **damaged_text("*.xml")}),
    target("ase-db", database, of_ase, "frames.db", whole("*.db")),
    target(
        "aselmdb",
        lmdb_rows,
        lambda path: AseLmdb(aselmdb=(path,)),
        "rows.aselmdb",
        {**whole("*.aselmdb"), **damaged_numbers("*.aselmdb", 4 * 4096), **damaged_json("*.json", seal=packed)},
    ),
    *(
        target(name, corpus(name), source, "corpus.json", {**whole("*.json"), **damaged_json("*.json")})
        for name, source in JSON_SOURCES.items()
    ),
    target(
        "deepmd",
        deepmd,
        lambda path: DeepmdNpy(deepmd_npy=(path,)),
        "",
        {**damaged_bytes("*.npy"), **damaged_files("coord.npy", expects="refused"), **damaged_text("*.raw")},
    ),
    target("mace", mace, lambda path: MaceHdf5(mace_hdf5=(path,)), "train.h5", whole("*.h5")),
)
