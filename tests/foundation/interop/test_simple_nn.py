"""Networks of SIMPLE-NN are read as its formulas define them, and refused where they have something else."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

import foundation
from data_pipeline.store.untrusted import CorruptFile
from foundation.interop.behler_parrinello import UnsupportedNetwork
from foundation.interop.simple_nn import potential_in
from launch.__main__ import main

CUTOFF = 4.5
FUNCTIONS = {
    "O": ["2 4.5 0.05 0.0 0.0 Si", "2 4.5 0.2 1.0 0.0 O", "4 4.5 0.02 4.0 -1.0 Si O", "5 4.5 0.03 2.0 1.0 Si Si"],
    "Si": ["4 4.5 0.02 1.0 1.0 O Si", "2 4.5 0.05 0.0 0.0 O", "4 4.5 0.01 2.0 1.0 O O"],
}
ACTIVATIONS: dict[str, Callable] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "swish": lambda x: x / (1 + np.exp(-x)),
}
Layer = tuple[str, np.ndarray, np.ndarray]
Part = tuple[np.ndarray, np.ndarray, list[Layer]]


def quartz() -> ase.Atoms:
    rng = np.random.default_rng(3)
    places = np.array([[0, 0, 0], [1.6, 0.1, 0.2], [0.1, 1.6, 1.7], [3.1, 1.5, 0.2], [1.7, 3.1, 1.6], [3.0, 0.2, 3.1]])
    return ase.Atoms("SiO2SiO2", places + 0.05 * rng.normal(size=(6, 3)), cell=4.7 * np.eye(3), pbc=True)


def write(file: Path, activation: str = "sigmoid", *, rotated: bool = True) -> dict[str, Part]:
    """Write a network, and return shift, divisor and layers of each element."""
    rng, lines, parts = np.random.default_rng(0), ["ELEM_LIST Si O", ""], {}
    for symbol in ("Si", "O"):
        functions = FUNCTIONS[symbol]
        count = len(functions)
        hidden = [*([count] if rotated else []), 3, 2]
        names = [*(["linear"] if rotated else []), activation, activation, "linear"]
        shift, divisor = rng.uniform(0, 1, count), rng.uniform(0.5, 2, count)
        sizes = itertools.pairwise([count, *hidden, 1])
        layers = [
            (name, rng.normal(size=(b, a)), rng.normal(size=b)) for name, (a, b) in zip(names, sizes, strict=True)
        ]
        lines += [f"POT {symbol} {CUTOFF}", f"SYM {count}", *functions]
        lines += [
            " ".join([name, *map(repr, map(float, row))]) for name, row in (("scale1", shift), ("scale2", divisor))
        ]
        lines.append(f"NET {len(hidden)} {' '.join(map(str, hidden))} 1")
        for number, (name, weight, bias) in enumerate(layers):
            lines.append(f"LAYER {number} {name}{' PCA' if rotated and number == 0 else ''}")
            for node, (row, offset) in enumerate(zip(weight, bias, strict=True)):
                lines += [" ".join([f"w{node}", *map(repr, map(float, row))]), f"b{node} {float(offset)!r}"]
        lines.append("")
        parts[symbol] = shift, divisor, layers
    file.write_text("\n".join(lines))
    return parts


def value_of(function: str, vectors: np.ndarray, symbols: list[str]) -> float:
    """Return a symmetry function by its formula."""
    kind, _, width, *parameters = function.split()[:5]
    neighbors, eta = function.split()[5:], float(width)
    first, second = map(float, parameters)

    def smooth(r: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * r / CUTOFF)) if r < CUTOFF else 0.0

    if kind == "2":
        lengths = [float(np.linalg.norm(v)) for v, s in zip(vectors, symbols, strict=True) if s == neighbors[0]]
        return sum(math.exp(-eta * (r - first) ** 2) * smooth(r) for r in lengths)
    total = 0.0
    for j, k in itertools.combinations(range(len(vectors)), 2):
        if sorted((symbols[j], symbols[k])) != sorted(neighbors):
            continue
        a, b, c = (float(np.linalg.norm(v)) for v in (vectors[j], vectors[k], vectors[j] - vectors[k]))
        bend = 2 ** (1 - first) * (1 + second * float(vectors[j] @ vectors[k]) / (a * b)) ** first
        third = (math.exp(-eta * c * c) * smooth(c)) if kind == "4" else 1.0
        total += bend * math.exp(-eta * (a * a + b * b)) * smooth(a) * smooth(b) * third
    return total


def by_hand(atoms: ase.Atoms, parts: dict[str, Part]) -> float:
    """Return the energy [eV]."""
    receivers, senders, vectors = neighbor_list("ijD", atoms, CUTOFF)
    energy = 0.0
    for atom, symbol in enumerate(atoms.symbols):
        own = receivers == atom
        symbols = [str(atoms.symbols[sender]) for sender in senders[own]]
        values = np.array([value_of(function, vectors[own], symbols) for function in FUNCTIONS[symbol]])
        shift, divisor, layers = parts[symbol]
        values = (values - shift) / divisor
        for name, weight, bias in layers:
            values = weight @ values + bias
            values = values if name == "linear" else ACTIVATIONS[name](values)
        energy += float(values[0])
    return energy


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_energies_are_those_of_the_formulas(tmp_path: Path, activation: str, rotated: bool) -> None:
    parts, atoms = write(tmp_path / "potential_saved", activation, rotated=rotated), quartz()
    atoms.calc = foundation.Calculator(potential_in(tmp_path / "potential_saved"))
    assert atoms.get_potential_energy() == pytest.approx(by_hand(atoms, parts), rel=1e-12)


def test_the_command_writes_a_folder_that_predicts_the_same(tmp_path: Path) -> None:
    file = tmp_path / "potential_saved_bestmodel"
    write(file)
    words = ["convert", "--from", "simple-nn", "--checkpoint", str(file), "--theory", "PBE"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    atoms, found = quartz(), []
    for potential in (potential_in(file), foundation.load(tmp_path / "out")):
        atoms.calc = foundation.Calculator(potential)
        found.append(np.append(atoms.get_forces(), atoms.get_potential_energy()))
    np.testing.assert_array_equal(*found)
    assert foundation.load(tmp_path / "out").theories == ("PBE",)


def test_units_are_those_of_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "file")
    words = ["convert", "--from", "simple-nn", "--checkpoint", str(tmp_path / "file"), "--units", "bohr-hartree"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "belongs to --from n2p2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sigmoid", "relu", "activation functions relu: hidden layers must all be one of sigmoid, tanh, swish"),
        ("LAYER 1 sigmoid", "LAYER 1 tanh", "activation functions sigmoid, tanh"),
        ("sigmoid", "linear", "without hidden layers"),
        ("LAYER 3 linear", "LAYER 3 tanh", "the energy has the activation function tanh"),
        ("2 4.5 0.2", "3 4.5 0.2", "symmetry function 3 4.5 0.2 1.0 0.0 O: only types 2, 4, 5"),
        ("2 4.5 0.2", "2 4.0 0.2", "several cutoffs"),
        ("4 4.5 0.02 1.0 1.0", "4 4.5 0.02 1.5 1.0", "need η of at least 0, ζ of 1 or at least 2"),
    ],
)
def test_what_this_program_lacks_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "potential_saved"
    write(file)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UnsupportedNetwork, match=f"potential_saved: .*{message}"):
        potential_in(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ELEM_LIST Si O", "ELEM_LIST Si Ox", "'Ox' is not the symbol"),
        ("ELEM_LIST Si O", "ELEM_LIST Si", "elements of ELEM_LIST and of the networks differ"),
        ("SYM 3", "SYM 2", "a line scale1 is expected, not 4"),
        ("scale2 ", "scale2 -", "scale2 must be positive"),
        ("w1 ", "w1 nan ", "a line w1 has 4 numbers, not 3"),
        ("LAYER 1", "LAYER 2", "LAYER 2 is where LAYER 1 should be"),
        ("NET 3 3 3 2 1", "NET 3 3 3 2", "not 3 layers and an energy"),
        ("2 4.5 0.05 0.0 0.0 O", "2 4.5 0.05 0.0 O", "need its type, four numbers"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "potential_saved"
    write(file)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(CorruptFile, match=f"potential_saved: .*{message}"):
        potential_in(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "potential_saved").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="potential_saved: not a network of SIMPLE-NN"):
        potential_in(tmp_path / "potential_saved")


def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "potential_saved"
    write(file)
    lines = file.read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.strip())
    for length in range(last):
        file.write_text("\n".join(lines[:length]))
        with pytest.raises(CorruptFile, match="potential_saved"):
            potential_in(file)
    with pytest.raises(FileNotFoundError, match="is no file; SIMPLE-NN writes potential_saved"):
        potential_in(tmp_path)
