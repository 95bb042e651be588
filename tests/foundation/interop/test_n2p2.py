"""Networks of n2p2 are read as its documentation defines them, and refused where they have something else."""

import itertools
import math
from pathlib import Path

import ase
import numpy as np
import pytest
from ase import units
from ase.neighborlist import neighbor_list

import foundation
from data_pipeline.store.untrusted import CorruptFile
from foundation.interop.behler_parrinello import UnsupportedNetwork
from foundation.interop.n2p2 import potential_in
from launch.__main__ import main

CUTOFF = 9.0
FUNCTIONS = """
symfunction_short O 2 H 0.01 0.0 9.0   # any order
symfunction_short O 2 O 0.05 2.0 9.0
symfunction_short H 2 O 0.01 0.0 9.0
symfunction_short H 3 O H 0.02 -1.0 4.0 9.0
symfunction_short H 3 O H 0.01 1.0 1.0 9.0
symfunction_short O 9 H H 0.03 1.0 2.0 9.0
symfunction_short O 3 H O 0.01 1.0 1.0 9.0
"""
ORDERED = {
    "H": [("2", "O", 0.01, 0.0), ("3", "HO", 0.01, 1.0, 1.0), ("3", "HO", 0.02, 4.0, -1.0)],
    "O": [("2", "H", 0.01, 0.0), ("2", "O", 0.05, 2.0), ("3", "HO", 0.01, 1.0, 1.0), ("9", "HH", 0.03, 2.0, 1.0)],
}
"""Functions in n2p2's order: by type, width, shift, exponent, sign."""
SIZES = (3, 2)


def water() -> ase.Atoms:
    rng = np.random.default_rng(3)
    molecule = np.array([[0.0, 0.0, 0.0], [0.9, 0.2, 0.0], [-0.3, 0.9, 0.1]])
    positions = np.concatenate([molecule + place for place in 2.9 * np.eye(3)])
    return ase.Atoms("OHHOHHOHH", positions + 0.05 * rng.normal(size=(9, 3)), cell=6.0 * np.eye(3), pbc=True)


def network(folder: Path, **changes: str) -> dict[str, tuple]:
    """Write a folder, and return scaling and layers of each element."""
    settings = {
        "elements": "O H",
        "atom_energy": "O -75.0",
        "cutoff_type": "1",
        "global_nodes_short": "3 2",
        "global_activation_short": "t t l",
        "scale_symmetry_functions": "",
        "scale_min_short": "-1.0",
        "scale_max_short": "1.0",
    } | changes
    folder.mkdir()
    lines = [f"{name.partition('!')[0]} {value}" for name, value in settings.items() if value is not None]
    (folder / "input.nn").write_text("\n".join(lines) + FUNCTIONS)
    rng, rows, found = np.random.default_rng(0), ["# header"], {}
    for place, (symbol, number) in enumerate((("H", 1), ("O", 8))):
        count = len(ORDERED[symbol])
        low = rng.uniform(0, 0.2, count)
        scale = np.stack([low, low + rng.uniform(0.5, 2, count), low + 0.3, rng.uniform(0.1, 0.5, count)], axis=1)
        rows += [f"{place + 1} {k + 1} " + " ".join(f"{x:.17g}" for x in scale[k]) for k in range(count)]
        sizes = (count, *SIZES, 1)
        layers = [(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in itertools.pairwise(sizes)]
        text = ["# value type index layer neuron layer neuron"]
        for layer, (weight, bias) in enumerate(layers):
            for (a, b), value in np.ndenumerate(weight):
                text.append(f"{value:.17g} a 1 {layer} {a + 1} {layer + 1} {b + 1}")
            text += [f"{value:.17g} b 1 {layer + 1} {b + 1}" for b, value in enumerate(bias)]
        (folder / f"weights.{number:03d}.data").write_text("\n".join(text))
        found[symbol] = scale, layers
    (folder / "scaling.data").write_text("\n".join([*rows, "-1.0 2.0 0.1 0.2"]))
    return found


def by_hand(atoms: ase.Atoms, parts: dict[str, tuple], kind: str, normalized: bool) -> float:
    """Return the energy [Hartree] from the formulas, without references."""

    def smooth(r: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * r / CUTOFF)) if r < CUTOFF else 0.0

    receivers, senders, vectors = neighbor_list("ijD", atoms, CUTOFF * units.Bohr)
    vectors, energy = vectors / units.Bohr, 0.0
    for atom, symbol in enumerate(atoms.symbols):
        edges, inputs = np.flatnonzero(receivers == atom), []
        for function in ORDERED[symbol]:
            if function[0] == "2":
                _, neighbor, width, shift = function
                lengths = [np.linalg.norm(vectors[e]) for e in edges if atoms.symbols[senders[e]] == neighbor]
                inputs.append(sum(math.exp(-width * (r - shift) ** 2) * smooth(r) for r in lengths))
                continue
            _, neighbors, width, exponent, sign = function
            total = 0.0
            for j, k in itertools.combinations(edges, 2):
                if "".join(sorted(atoms.symbols[senders[e]] for e in (j, k))) != neighbors:
                    continue
                a, b, c = (float(np.linalg.norm(v)) for v in (vectors[j], vectors[k], vectors[j] - vectors[k]))
                bend = 2 ** (1 - exponent) * (1 + sign * float(vectors[j] @ vectors[k]) / (a * b)) ** exponent
                near = function[0] == "3"
                sides = a * a + b * b + (c * c if near else 0.0)
                total += bend * math.exp(-width * sides) * smooth(a) * smooth(b) * (smooth(c) if near else 1.0)
            inputs.append(total)
        scale, layers = parts[symbol]
        low, high, mean, sigma = scale.T
        values = np.array(inputs)
        values = {
            "scale": -1 + 2 * (values - low) / (high - low),
            "center": values - mean,
            "both": -1 + 2 * (values - mean) / (high - low),
            "sigma": -1 + 2 * (values - mean) / sigma,
        }[kind]
        for number, (weight, bias) in enumerate(layers):
            values = (values @ weight + bias) / (len(weight) if normalized else 1)
            values = np.tanh(values) if number < 2 else values
        energy += float(values[0])
    return energy


KINDS: dict[str, dict[str, str]] = {
    "scale": {},
    "center": {"scale_symmetry_functions!": "", "center_symmetry_functions": ""},
    "both": {"center_symmetry_functions": ""},
    "sigma": {"scale_symmetry_functions_sigma": ""},
}


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_energies_are_those_of_the_formulas(tmp_path: Path, kind: str, normalized: bool) -> None:
    changes = {name: value for name, value in KINDS[kind].items() if not name.endswith("!")}
    if normalized:
        changes |= {"normalize_nodes": "", "mean_energy": "0.25", "conv_energy": "4.0", "conv_length": "1.7"}
    folder = tmp_path / "n2p2"
    parts = network(folder, **changes)
    if kind in ("center", "sigma"):
        settings = (folder / "input.nn").read_text()
        (folder / "input.nn").write_text(settings.replace("scale_symmetry_functions \n", ""))
    atoms = water()
    expected = by_hand(atoms, parts, kind, normalized)
    expected = expected / 4.0 + 9 * 0.25 if normalized else expected
    atoms.calc = foundation.Calculator(potential_in(folder, "bohr-hartree"))
    assert atoms.get_potential_energy() == pytest.approx(units.Hartree * (expected - 3 * 75.0), rel=1e-12)


def test_the_command_writes_a_folder_that_predicts_the_same(tmp_path: Path) -> None:
    network(tmp_path / "n2p2")
    words = ["convert", "--from", "n2p2", "--checkpoint", str(tmp_path / "n2p2"), "--units", "bohr-hartree"]
    assert main([*words, "--theory", "BLYP", "--out", str(tmp_path / "out")]) == 0
    atoms, found = water(), []
    for potential in (potential_in(tmp_path / "n2p2", "bohr-hartree"), foundation.load(tmp_path / "out")):
        atoms.calc = foundation.Calculator(potential)
        found.append(np.append(atoms.get_forces(), atoms.get_potential_energy()))
    np.testing.assert_array_equal(*found)
    assert foundation.load(tmp_path / "out").theories == ("BLYP",)


def test_units_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network(tmp_path / "n2p2")
    assert (
        main(["convert", "--from", "n2p2", "--checkpoint", str(tmp_path / "n2p2"), "--out", str(tmp_path / "out")]) == 2
    )
    assert "--units bohr-hartree or angstrom-ev" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoff_type": "2"}, "cutoff_type 2"),
        ({"cutoff_type": "1 0.5"}, "cutoff_type 1 0.5"),
        ({"global_activation_short": "t s l"}, "global_activation_short t s l"),
        ({"nnp_type": "4G"}, "nnp_type 4G"),
        ({"symfunction_short": "H 12 0.01 0.0 9.0"}, "only types 2, 3 and 9"),
        ({"symfunction_short": "H 3 O H 0.01 1.0 1.0 9.0 0.5"}, "have no shift"),
    ],
)
def test_what_this_program_lacks_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    network(tmp_path / "n2p2", **changes)
    with pytest.raises(UnsupportedNetwork, match=message):
        potential_in(tmp_path / "n2p2", "bohr-hartree")


def test_several_cutoffs_are_refused(tmp_path: Path) -> None:
    network(tmp_path / "n2p2")
    settings = tmp_path / "n2p2" / "input.nn"
    settings.write_text(settings.read_text().replace("O 2 O 0.05 2.0 9.0", "O 2 O 0.05 2.0 8.0"))
    with pytest.raises(UnsupportedNetwork, match=r"input\.nn: symmetry functions of several cutoffs"):
        potential_in(tmp_path / "n2p2", "bohr-hartree")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (
            "weights.008.data",
            lambda text: "\n".join(text.splitlines()[:9]),
            "weights of layers of 4 and 3 and 2 and 1 are missing",
        ),
        ("scaling.data", lambda text: "\n".join(text.splitlines()[:4]), "rows for O, which has 4 functions"),
        ("input.nn", lambda text: text.replace("elements O H", "elements O Hx"), "'Hx' is not the symbol"),
        ("input.nn", lambda text: text.replace("0.05 2.0", "abc 2.0"), "not the settings of n2p2"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, damage, message: str) -> None:
    network(tmp_path / "n2p2")
    path = tmp_path / "n2p2" / file
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorruptFile, match=rf"{file}.*{message}"):
        potential_in(tmp_path / "n2p2", "bohr-hartree")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        potential_in(tmp_path / "n2p2", "bohr-hartree")
