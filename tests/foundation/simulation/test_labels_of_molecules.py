"""Labels of molecules go through predictions, relaxations and dynamics, and through a restart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import collate
from foundation import checkpoint
from foundation.interop.calculator import Calculator, to_structure
from foundation.interop.lines import SUFFIX
from foundation.md import MdConfig, md
from foundation.potential import Potential
from foundation.predict import PredictConfig, predict
from foundation.relax import RelaxConfig, relax
from foundation.simulation.campaign import PARTS, RESULTS
from tests.small_networks import OF_MOLECULES, box_of_molecules

ELEMENTS = (8, 13, 29)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = OF_MOLECULES["grains"]
    potential = Potential(config.network(ELEMENTS), ELEMENTS, ("EMT",))
    potential.standardize([collate([to_structure(box_of_molecules(seed)) for seed in range(4)], config.cutoff)])
    folder = tmp_path_factory.mktemp("grains") / "potential"
    checkpoint.save(potential.eval(), folder, {})
    return folder


VERBS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "predict": (PredictConfig, predict),
    "relax": (lambda **options: RelaxConfig(max_steps=2, **options), relax),
    "md": (lambda **options: MdConfig(steps=4, every=2, temperature=50.0, **options), md),
}


@pytest.mark.parametrize("verb", VERBS)
def test_labels_of_molecules_are_in_the_results(verb: str, model: Path, tmp_path: Path) -> None:
    given = [box_of_molecules(7), box_of_molecules(8)]
    given[1].arrays["molecule"] = 3 * given[1].arrays["molecule"] + 2
    ase.io.write(tmp_path / "given.extxyz", given, format="extxyz")
    configure, run = VERBS[verb]
    out = tmp_path / "out"
    run(configure(model=model, data=tmp_path / "given.extxyz", out=out))
    before = (out / RESULTS).read_bytes()
    for file in [out / RESULTS, *out.glob("trajectories/*.extxyz")]:
        for atoms in ase.io.read(file, index=":"):
            number = atoms.info["number"] if file.name == RESULTS else int(file.stem)
            assert np.array_equal(atoms.arrays["molecule"], given[number].arrays["molecule"])
            energy = atoms.get_potential_energy()
            atoms.calc = Calculator(model)
            assert atoms.get_potential_energy() == pytest.approx(
                energy, abs=1e-3
            )  # the file has eight digits, and an untrained network is steep
    (out / RESULTS).unlink()
    for part in (out / PARTS).glob(f"*{SUFFIX}"):  # as if it had been killed after the first structure
        part.write_text("".join(part.read_text().splitlines(keepends=True)[:1]))
    run(configure(model=model, data=tmp_path / "given.extxyz", out=out))
    assert (out / RESULTS).read_bytes() == before
