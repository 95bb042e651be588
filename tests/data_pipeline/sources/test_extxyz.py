"""Extended XYZ: what ASE's parser passes over without a word is refused, by the name that is wrong."""

import contextlib
import gzip
import logging
import re
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sources import AseFiles
from data_pipeline.sources.extxyz import entries_of
from data_pipeline.structure import InvalidStructure, Structure

HEAD = 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T" Properties=species:S:1:pos:R:3:forces:R:3 energy=-7.5'
ROWS = ("Cu 0 0 0 1 2 3", "Cu 2 2 0 -1 -2 -3")


@pytest.fixture
def one(tmp_path: Path):
    """Read a file of one frame, with replacements in its comment line and other rows."""

    def read(*changes: tuple[str, str], rows: tuple[str, ...] = ROWS, more: str = "", **options: object) -> Structure:
        head = HEAD
        for old, new in changes:
            assert old in head
            head = head.replace(old, new)
        path = tmp_path / "frame.xyz"
        path.write_text("\n".join([str(len(rows)), f"{head} {more}", *rows, ""]))
        (structure,) = AseFiles(files=(str(path),), **options)
        return structure

    return read


def refused(one, match: str, *changes: tuple[str, str], **options: object) -> None:
    with pytest.raises(InvalidStructure, match=rf"frame\.xyz, frame 0: .*{match}"):
        one(*changes, **options)


@pytest.mark.parametrize("name", ["force", "Forces", "REF_forces", "dft_force", "F", "gradient", "forcesDFT"])
def test_forces_under_another_name_are_refused_by_it(one, name: str) -> None:
    refused(one, f"no forces would be read, but the entry '{name}'", ("forces", name))
    assert not one(("forces", name), ignored_entries=(name,)).has_forces


def test_forces_in_the_comment_line_or_as_three_columns_are_no_secret_either(one) -> None:
    bare = (":forces:R:3", "")
    refused(one, "entry 'forces'", bare, rows=("Cu 0 0 0", "Cu 2 2 0"), more='forces="1 2 3 -1 -2 -3"')
    refused(one, "entry 'fx'.*all components in one", (":forces:R:3", ":fx:R:1:fy:R:1:fz:R:1"))


@pytest.mark.parametrize(
    ("name", "values", "option"),
    [
        ("virial", "6 0 0 0 12 0 0 0 -6", "virials_key virial"),
        ("virials", "6 12 -6 0 0 0", "virials_key virials"),
        ("REF_virial", "6 12 -6 0 0 0", "virials_key REF_virial"),
        ("REF_stress", "1 2 3 4 5 6", "stress_key REF_stress"),
        ("Stress", "1 0 0 0 1 0 0 0 1", "stress_key Stress"),
        ("dft_stress", "1 2 3 4 5 6", "stress_key dft_stress"),
        ("stress_xx", "0.5", "all components in one"),
    ],
)
def test_a_stress_under_another_name_is_refused_by_it(one, name: str, values: str, option: str) -> None:
    refused(one, f"no stress would be read, but the entry '{name}'.*{option}", more=f'{name}="{values}"')
    assert not one(more=f'{name}="{values}"', ignored_entries=(name,)).has_stress


@pytest.mark.parametrize("name", ["E_tot", "REF_energy", "dft_energy", "energies", "Energy", "TotEnergy", "E"])
def test_a_second_energy_that_differs_is_a_warning(one, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert one(more=f"{name}=-9.25").energy == -7.5
    (record,) = caplog.records
    assert f"frame.xyz, frame 0: the entry '{name}' also looks like energy" in record.getMessage()
    assert f"--source.energy_key {name}" in record.getMessage()


@pytest.mark.parametrize(
    "entry",
    [
        "free_energy=-7.6",
        "REF_energy=-7.5",
        "energy_per_atom=-3.75",
        "energy_unit=eV",
        "formation_energy=0.2",
        "max_force=3.7",
        "stress_weight=1.0",
        "config_type=forces",
    ],
)
def test_what_is_no_label_or_says_the_same_is_no_warning(one, entry: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        one(more=entry)
    assert not caplog.records


def test_other_forces_beside_those_that_are_read_are_a_warning_unless_only_the_unit_differs(
    one, caplog: pytest.LogCaptureFixture
) -> None:
    columns = ("forces:R:3", "forces:R:3:REF_forces:R:3")
    with caplog.at_level(logging.WARNING):
        one(columns, rows=("Cu 0 0 0 1 2 3 10 20 30", "Cu 2 2 0 -1 -2 -3 -10 -20 -30"))
        assert not caplog.records
        one(columns, rows=("Cu 0 0 0 1 2 3 3 2 1", "Cu 2 2 0 -1 -2 -3 -3 -2 -1"))
    assert "'REF_forces' also looks like forces" in caplog.text
    caplog.clear()
    one(columns, rows=("Cu 0 0 0 1 2 3 3 2 1", "Cu 2 2 0 -1 -2 -3 -3 -2 -1"), forces_key="REF_forces")
    assert not caplog.records


@pytest.mark.parametrize(
    ("entry", "right"),
    [
        ('lattice="4 0 0 0 4 0 0 0 4"', "Lattice"),
        ('LATTICE="4 0 0 0 4 0 0 0 4"', "Lattice"),
        ('cell="4 0 0 0 4 0 0 0 4"', "Lattice"),
        ('unit_cell="4 4 4"', "Lattice"),
        ('box="4 4 4 90 90 90"', "Lattice"),
    ],
)
def test_a_cell_under_another_name_is_refused_by_it(one, entry: str, right: str) -> None:
    bare = ('Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T" ', "")
    refused(one, rf"{entry.partition('=')[0]}.* call it '{right}'", bare, more=entry)


@pytest.mark.parametrize("entry", ['PBC="T T F"', 'Pbc="F F F"', "periodic=F"])
def test_a_periodicity_under_another_name_is_refused_by_it(one, entry: str) -> None:
    refused(one, f"{entry.partition('=')[0]}.* call it 'pbc'", ('pbc="T T T" ', ""), more=entry)


def test_a_name_that_repeats_the_cell_that_is_read_is_no_matter(one) -> None:
    assert one(more='cell="4 0 0 0 4 0 0 0 4" unit_cell=conventional PBC="T T T"').pbc.all()


@pytest.mark.parametrize("value", ["FFF", '"p p f"', '"[T, T, F]"', '"T T"', '"1 1 2"', "3", '"t t f"', '"0.5 1 1"'])
def test_a_periodicity_that_ase_takes_for_true_is_refused(one, value: str) -> None:
    refused(one, "pbc is", ('"T T T"', value))


@pytest.mark.parametrize(
    ("value", "pbc"),
    [
        ('"T T F"', [1, 1, 0]),
        ('"F F F"', [0, 0, 0]),
        ("F", [0, 0, 0]),
        ('"1 0 1"', [1, 0, 1]),
        ("[T, T, F]", [1, 1, 0]),
        ('"True False True"', [1, 0, 1]),
    ],
)
def test_the_spellings_of_the_format_are_read(one, value: str, pbc: list[int]) -> None:
    assert one(('"T T T"', value)).pbc.tolist() == pbc


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (("Cu 0 0 0 0.7 1 2 3", "Cu 2 2 0 0.7 -1 -2 -3"), "the rows have 8 columns and Properties declare 7"),
        (("Cu 0 0 0 1 2 3", "Cu 2 2 0 -1 -2 -3 9"), "the rows have 7.5 columns"),
        (("Cu 0 0 0 1 2 3 9", "Cu 2 2 0 -1 -2"), "cannot be read"),
        (("Cu 0 0 0 1 2 3", "Cu 2 2 0 -1 -2"), "cannot be read"),
    ],
)
def test_rows_of_another_width_are_refused(one, rows: tuple[str, ...], match: str) -> None:
    refused(one, match, rows=rows)


@pytest.mark.parametrize(
    ("properties", "match"),
    [
        ("properties=species:S:1:pos:R:3:forces:R:3", "'properties'.* call it 'Properties'"),
        ("Properties=species:S:1:pos:R:3:forces:R:3:forces:R:3", "cannot be read"),
        ("Properties=species:S:1:pos:R:3:positions:R:3", "the column 'pos' twice"),
        ("Properties=species:S:1:pos:R:3", "7 columns and Properties declare 4"),
        ("Properties=species:S:1:pos:R:3:forces:L:3", "the column 'forces' as forces:L"),
    ],
)
def test_columns_that_are_declared_wrong_are_refused(one, properties: str, match: str) -> None:
    refused(one, match, ("Properties=species:S:1:pos:R:3:forces:R:3", properties))


def test_atomic_numbers_are_declared_as_whole_numbers(one) -> None:
    rows = ("29.6 0 0 0 1 2 3", "29 2 2 0 -1 -2 -3")
    refused(one, "the column 'Z' as Z:R, not as whole numbers", ("species:S:1", "Z:R:1"), rows=rows)


def test_species_and_numbers_that_contradict_each_other_are_refused(one) -> None:
    columns = ("forces:R:3", "forces:R:3:Z:I:1")
    assert one(columns, rows=("Cu 0 0 0 1 2 3 29", "Cu 2 2 0 -1 -2 -3 29")).numbers.tolist() == [29, 29]
    refused(one, "'Cu' and atomic number 28", columns, rows=("Cu 0 0 0 1 2 3 29", "Cu 2 2 0 -1 -2 -3 28"))


@pytest.mark.parametrize("more", ["energy=-8.5", "energy = -8.5 flag", "flag 'energy'=-8.5", 'pbc="T T F"'])
def test_a_name_that_stands_twice_is_refused(one, more: str) -> None:
    refused(one, "occurs twice", more=more)


def test_quoted_equal_signs_and_bare_names_are_no_repetitions(one) -> None:
    assert one(more="note=\"a=1 a=2\" other={a=1} flag third='energy=3'").energy == -7.5


@pytest.mark.parametrize("value", ["T", "true", '"T T"', "none"])
def test_an_energy_that_is_no_number_is_refused(one, value: str) -> None:
    refused(one, "energy", ("energy=-7.5", f"energy={value}"))


def test_a_stress_that_is_not_symmetric_is_refused_under_every_name(one) -> None:
    for name in ("stress", "REF_stress", "virial"):
        option = {"stress": {}, "REF_stress": {"stress_key": name}, "virial": {"virials_key": name}}[name]
        refused(one, "not symmetric", more=f'{name}="1 2 3 4 5 6 7 8 9"', **option)
        assert one(more=f'{name}="1 2 3 2 5 6 3 6 9"', **option).has_stress


def test_a_stress_without_a_volume_is_no_label_if_it_says_nothing_and_refused_otherwise(one) -> None:
    slab, molecule = ('"T T T"', '"T T F"'), ('Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"', 'pbc="F F F"')
    for change in (slab, molecule):
        for value in ("0 0 0 0 0 0 0 0 0", "nan nan nan nan nan nan nan nan nan"):
            assert not one(change, more=f'stress="{value}"').has_stress
            assert not one(change, more=f'REF_virial="{value}"', virials_key="REF_virial").has_stress
    refused(one, "no volume", molecule, more='stress="1 0 0 0 1 0 0 0 1"')
    refused(one, "three lattice vectors", molecule, more='virial="1 0 0 0 1 0 0 0 1"', virials_key="virial")


@pytest.mark.parametrize(
    "entry", ["charge=1", "total_charge=-1", "Charge=0.5", "spin=2", "spin_multiplicity=3", "multiplicity=2"]
)
def test_a_charged_frame_is_refused_by_name_unless_kept(one, entry: str) -> None:
    refused(one, rf"by {entry.partition('=')[0]}\).*--source.charged keep", more=entry)
    assert one(more=entry, charged="keep").energy == -7.5


@pytest.mark.parametrize("entry", ["charge=0", "spin=1", "spin=0", "charge=0.0", "multiplicity=1"])
def test_a_neutral_frame_without_spin_is_read(one, entry: str) -> None:
    np.testing.assert_array_equal(one(more=entry).forces, [[1, 2, 3], [-1, -2, -3]])


def test_the_energies_there_are_stand_in_the_message(one) -> None:
    for more, match in (
        ("free_energy=-7.5", r"'free_energy' \(-7.5\)"),
        ("E_tot=-7.5 free_energy=-7.6", r"'free_energy' \(-7.6\), 'E_tot' \(-7.5\)"),
        ("note=x", r"no energies, but \['note'\]"),
    ):
        refused(one, f"energy_key.*: the frame has {match}", (" energy=-7.5", ""), more=more)


def test_a_number_of_atoms_beyond_belief_is_refused_at_once(tmp_path: Path) -> None:
    for header in ("9" * 30, "9" * 5000, "999999999999"):
        (tmp_path / "frame.xyz").write_text(f"{header}\nenergy=1\n")
        with pytest.raises(InvalidStructure, match=r"frame\.xyz, frame 0: "):
            list(AseFiles(files=(str(tmp_path / "frame.xyz"),)))


@pytest.mark.parametrize(
    "comment", ["foo=" + "{" * 100_000, "[{" * 40_000, '"' + "x" * 100_000, "a" + " " * 100_000 + "b =", "John's frame"]
)
def test_what_is_not_closed_is_refused_at_once(comment: str) -> None:
    start = time.process_time()
    with contextlib.suppress(InvalidStructure):
        entries_of(comment)
    assert time.process_time() - start < 1
    if "=" not in comment[-1]:
        with pytest.raises(InvalidStructure, match="is not closed"):
            entries_of(comment)


def test_an_endless_line_and_a_number_of_atoms_beyond_belief_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xyz.gz"
    for begins in (b"", b"1\n", b"1\npbc=T\n"):
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(begins)
            file.write(bytes(2**23))
        with pytest.raises(InvalidStructure, match=r"bomb\.xyz\.gz: has a line of more than 4,194,304 characters"):
            list(AseFiles(files=(str(path),)))
    with gzip.open(tmp_path / "OUTCAR.gz", "wb", compresslevel=1) as file:
        file.write(bytes(2**23))
    with pytest.raises(InvalidStructure, match=r"OUTCAR\.gz: has a line of more than 4,194,304 characters"):
        list(AseFiles(files=(str(tmp_path / "OUTCAR.gz"),)))
    for text in ("99999999\n" + 1000 * "\n", "9" * 5000 + "\n"):
        path = tmp_path / "many.xyz"
        path.write_text(text)
        with pytest.raises(
            InvalidStructure, match=r"many\.xyz, frame 0: begins with .* not with a number of atoms up to"
        ):
            list(AseFiles(files=(str(path),)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("energy_unit=Hartree", "energy_unit is 'Hartree', but numbers are read as eV"),
        ("units=kcal/mol", "units is 'kcal/mol'"),
        ("length_unit=bohr", "length_unit is 'bohr'"),
        ("tot_charge=1", "has charge 1"),
        ("charge=1+", "has charge 1"),
        ("charge=1-", "has charge -1"),
        ("Qtot=1", "has charge 1"),
        ("mult=2", "spin multiplicity 2"),
    ],
)
def test_what_says_that_a_frame_means_something_else_is_refused(one, more: str, message: str) -> None:
    with pytest.raises(InvalidStructure, match=re.escape(message)):
        one(more=more)


@pytest.mark.parametrize(
    "more", ["energy_unit=eV", "units=metal", "stress_unit=GPa", "unit_cell=primitive", "charge=0"]
)
def test_what_says_what_is_read_is_no_obstacle(one, more: str) -> None:
    assert one(more=more).energy == -7.5


@pytest.mark.parametrize("cell", ["a=4 b=4 c=4 alpha=90 beta=90 gamma=90", "ax=4 bx=0 cx=0", "lx=4 ly=4 lz=4"])
def test_a_cell_in_other_words_is_refused(one, cell: str) -> None:
    with pytest.raises(InvalidStructure, match=r"the cell has the names .*which are not read; call it 'Lattice'"):
        one(('Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"', cell))


def test_numbers_with_underscores_are_none(one) -> None:
    with pytest.raises(InvalidStructure, match="'2_0' is not a number"):
        one(rows=("Cu 0 0 0 1 2 3", "Cu 2_0 2 0 -1 -2 -3"))
    with pytest.raises(InvalidStructure, match="energy"):
        one(("energy=-7.5", "energy=-7_5"))
