"""Potentials as ASE calculators."""

import contextlib
import copy
import math
import os
import threading
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from data_pipeline.graphs.batch import to_graph
from data_pipeline.graphs.molecules import molecule_labels
from data_pipeline.graphs.verlet_list import VerletList
from data_pipeline.quoting import one_line
from data_pipeline.structure import Structure
from foundation.engine.library import CompiledPotential, System
from foundation.engine.network import Unsupported
from foundation.kernels.memory import keep_freed_memory
from foundation.last_layer import Surroundings, Uncertainty
from foundation.naming import resolve
from foundation.potential import Potential, to_structure
from foundation.recording import CudaGraphs, RecordedPotential

DTYPES = {"float64": torch.float64, "float32": torch.float32}
"""Float types of a network by name."""
Mode = Literal["precise", "md"]
"""Ways to compute: float64, or float32 with tabulated radial functions, for molecular dynamics."""
Engine = Literal["torch", "compiled", "recorded"]
"""Programs that compute: torch with the project's kernels; the potential compiled as a library of its own; or on a GPU,
torch's work as recorded CUDA graphs."""
KNOTS = 256
"""Number of knots of the radial table in molecular dynamics: forces differ by about 2e-6 eV/Å."""


class Calculator(AseCalculator):
    """An ASE calculator for energy, energies, forces and stress; ASE's units are the project's own.

    Stress needs a cell with a volume. In the mode "precise" (float64) relaxations and finite differences are smooth to
    the last digits. The mode "md" (float32, distances in float64, tabulated radial functions) is several times faster
    and accurate to about 1e-5 eV/Å. The engine "compiled" computes the same on processors, in a tenth of the memory;
    the first use of a potential compiles it, which takes seconds and a C compiler. The engine "recorded" is for small
    structures on a GPU, where launching kernels takes longer than running them. Threads may share a calculator:
    they take turns. Forked processes have their own, and compute with one thread each.

    If the potential's release has uncertainties, results have `uncertainty` of the energy [eV], `energies_uncertainty`
    of each atom's [eV], `forces_uncertainty` of the length of each force's error [eV/Å], and `outside_coverage`, the
    ways in which the structure leaves the training data, () if it does not.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 (as ASE declares it)

    def __init__(
        self,
        potential: Potential | Path | str,
        device: str = "cpu",
        dtype: torch.dtype | str | None = None,
        theory: str | None = None,
        mode: Mode | str = "precise",
        zbl: bool = False,
        engine: Engine | str = "torch",
    ) -> None:
        """Wrap a copy of a potential: later changes of the potential do not affect the calculator.

        Args:
            potential: Result of foundation.load(), or a word for it: a folder, run, SevenNet file or published name.
            device: torch's name of the device.
            dtype: Float type of the network: torch.float64, torch.float32, or its name, "float64" or "float32"; None:
                the mode's.
            theory: Level of theory to predict, one of potential.theories; required if there are several.
            mode: "precise", or "md" for molecular dynamics.
            zbl: Whether atoms much closer than a bond repel each other, whatever the network says; see Potential.repel.
            engine: "torch", "compiled" for a library without torch, or "recorded" for CUDA graphs.

        Raises:
            FileNotFoundError: the word names no potential.
            NoCompiler: the engine needs a C compiler, and none works.
            Unsupported: the engine has no code for such a potential or device.
            ValueError: the level of theory is unknown, or one of several must be named; or the mode, device, float
                type or engine cannot be used.
        """
        super().__init__()
        float_type = float_type_of(dtype, mode)
        if engine not in get_args(Engine):
            raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}, not {engine}")
        with torch.inference_mode(False):
            copied = copy.deepcopy(potential) if isinstance(potential, Potential) else resolve(potential).load()
            self.theory = copied.theory_number(theory)
            try:
                self.potential = copied.to(device).cast(float_type).eval()
            except (RuntimeError, AssertionError) as error:  # torch has no exception for a missing device
                raise ValueError(f"device {device!r} cannot be used here: {one_line(str(error))}") from error
        if zbl:
            self.potential.repel()
        self._compiled = self._recorded = None
        if engine == "compiled":
            if self.potential.device.type != "cpu":
                raise Unsupported(f"the compiled engine computes on processors, not on {device}")
            self._compiled = CompiledPotential(self.potential, self.theory, table=mode == "md")
            self._neighbors = VerletList(self.potential.cutoff)
        elif mode == "md":
            tabulate(self.potential)
        if engine == "recorded":
            if self.potential.device.type != "cuda":
                raise Unsupported(f"the recorded engine computes on NVIDIA's GPUs, not on {device}")
            self._recorded = RecordedPotential(CudaGraphs(), self.potential)
        keep_freed_memory()
        self._turn = _Turn()

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Return a property, computed if necessary; one thread at a time, since results are shared."""
        with self._turn.lock():
            return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """Return what has changed since the last calculation, to the last bit.

        ASE's own comparison, with a tolerance, takes a seventh of a small network's step, and does not see molecules.
        """
        if self.atoms is None:
            return [*all_changes]
        pairs = [(name, getattr(self.atoms, name), getattr(atoms, name)) for name in ("positions", "numbers", "pbc")]
        pairs += [
            ("cell", np.asarray(self.atoms.cell), np.asarray(atoms.cell)),
            ("molecules", molecule_labels(self.atoms.arrays), molecule_labels(atoms.arrays)),
        ]
        return [name for name, before, now in pairs if not np.array_equal(before, now)]

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Compute all properties.

        Raises:
            InvalidStructure: two atoms at the same place, or a periodic cell without volume.
            UnknownElement: an element that the potential was not trained for.
            PropertyNotImplementedError: stress is requested, but the cell encloses no volume.
            ValueError: the prediction is not finite.
        """
        super().calculate(atoms, properties, system_changes)
        assert isinstance(self.atoms, ase.Atoms)
        structure = to_structure(self.atoms)
        results = self._predicted(structure)
        if not (math.isfinite(results["energy"]) and np.isfinite(results["forces"]).all()):
            raise ValueError(
                f"the predicted energy or forces for {self.atoms.get_chemical_formula()} are not finite: the "
                "structure is far from its training data, or its weights are damaged"
            )
        if structure.volume > 0:
            results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
        elif "stress" in properties:
            raise PropertyNotImplementedError("stress needs a cell with a volume; this one has none")
        else:
            del results["stress"]
        self.results = results | {"free_energy": results["energy"]}

    def _predicted(self, structure: Structure) -> dict[str, Any]:
        """Return energy, energies, forces and the 3 x 3 stress."""
        if self._compiled is not None:
            return self._computed(structure, self._compiled)
        graph = to_graph(structure, self.potential.cutoff, theory=self.theory)
        if self._recorded is None:
            prediction = self.potential(graph.to(self.potential.device))
        else:
            prediction = self._recorded(graph)
        uncertainty = {} if prediction.uncertainty is None else _results_of(prediction.uncertainty)
        return uncertainty | {
            "energy": float(prediction.energy),
            "energies": prediction.atom_energies.cpu().numpy(),
            "forces": prediction.forces.double().cpu().numpy(),
            "stress": prediction.stress[0].double().cpu().numpy(),
        }

    def _computed(self, structure: Structure, compiled: CompiledPotential) -> dict[str, Any]:
        """Return the same of the compiled engine."""
        near, numbers = self._neighbors(structure), structure.numbers.astype(np.int64)
        system = System(numbers=numbers, row_pointers=near.row_pointers, senders=near.senders, vectors=near.vectors)
        computed = compiled.compute(system)
        stress = computed.virial / (structure.volume or 1.0)
        found = {
            "energy": computed.energy,
            "energies": computed.atom_energies,
            "forces": computed.forces,
            "stress": stress,
        }
        last_layer = self.potential.last_layer
        if last_layer is None:
            return found
        assert computed.distances is not None  # compiled with the same last layer
        once = np.flatnonzero(near.receivers <= near.senders) if last_layer.judges_pairs else np.zeros(0, np.int64)
        surroundings = Surroundings(
            numbers=numbers,
            owners=np.zeros(structure.num_atoms, np.int64),
            counts=np.array([structure.num_atoms]),
            first=near.receivers[once],
            second=near.senders[once],
            lengths=near.lengths[once],
        )
        arrays = (torch.from_numpy(each) for each in (computed.forces, stress[None]))
        return found | _results_of(
            self.potential.uncertainty(torch.from_numpy(computed.distances), surroundings, *arrays)
        )


def _results_of(uncertainty: Uncertainty) -> dict[str, Any]:
    """Return the uncertainties of one structure as results."""
    return {
        "uncertainty": float(uncertainty.energy),
        "energies_uncertainty": uncertainty.atom_energies.cpu().numpy(),
        "forces_uncertainty": uncertainty.forces.cpu().numpy(),
        "outside_coverage": uncertainty.reasons,
    }


def float_type_of(dtype: torch.dtype | str | None, mode: str) -> torch.dtype:
    """Return the float type of a mode, unless another is asked for.

    Raises:
        ValueError: there is no such type or mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be {' or '.join(get_args(Mode))}, not {mode}")
    if dtype is None:
        return torch.float32 if mode == "md" else torch.float64
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise ValueError(f"dtype must be float64 or float32, not {dtype}")
    return dtype


def tabulate(potential: Potential) -> None:
    """Tabulate the radial functions of a potential's network, if it has a radial network."""
    now = potential.network.computation
    with contextlib.suppress(ValueError):  # a network without one is fast as it is
        potential.compute_as(now if now.radial_table else replace(now, radial_table=KNOTS))


class _Turn:
    """A lock that copies, pickles and forked processes do not share."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def lock(self) -> AbstractContextManager:
        """Return the lock of this process; one held during a fork would never be released."""
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        return self._lock

    def __reduce__(self) -> tuple:
        return _Turn, ()
