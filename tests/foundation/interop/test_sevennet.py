"""SevenNet's published models: sevenn's own numbers, in both directions; and files that are refused."""

import functools
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, fcc111, molecule
from e3nn import o3

from data_pipeline.structure import Structure
from foundation.interop.calculator import Calculator, to_structure
from foundation.interop.published import PUBLISHED, find_published
from foundation.interop.sevennet import (
    UnsupportedSevenNet,
    from_sevennet,
    our_weights,
    read_checkpoint,
    to_sevennet,
)
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.surgery.theories import keep_theory
from tests.foundation.interop.sevenn_peer import PEER_NAMES, Sevenn, differences, gradients, predict, squares

CASES = [
    ("sevennet-0", None),
    pytest.param("sevennet-0-22may2024", None, marks=pytest.mark.long),
    pytest.param("sevennet-l3i5", None, marks=pytest.mark.long),
    ("sevennet-mf-0", "PBE"),
    pytest.param("sevennet-mf-0", "R2SCAN", marks=pytest.mark.long),
]
SHORT = ("sevennet-0", "sevennet-mf-0")
"""Published models that every run of the tests reads; the others are of the same kinds, and take longer."""
SMALL = EquivariantConfig(
    irreps="8x0e+4x1o+2x2e", num_blocks=3, radial_sizes=(8, 8), readout_channels=4, cutoff_function="polynomial"
)
ELEMENTS = (1, 6, 8, 29)


@functools.cache
def peer(name: str) -> Sevenn:
    """sevenn's own model, which takes seconds to build."""
    return Sevenn(PEER_NAMES[name])


@functools.cache
def ours(name: str) -> Potential:
    """The converted model; tests cast it as they need it."""
    return from_sevennet(find_published(name))


@pytest.fixture(scope="module")
def structures(real_data: Path) -> list[Structure]:
    """A few crystals, two molecules and a slab."""
    frames = ase.io.read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", "::50")
    slab = fcc111("Cu", (1, 1, 3), vacuum=6)
    add_adsorbate(slab, "O", 1.4)
    slab.rattle(0.05, seed=0)
    small = [atoms for atoms in frames if len(atoms) <= 20][:4]
    return [to_structure(atoms) for atoms in (*small, molecule("H2O"), molecule("CH3CH2OH"), slab)]


@pytest.fixture
def molecules() -> list[Structure]:
    copper = ase.Atoms("CuO", positions=[[0, 0, 0], [1.7, 0.2, 0]], cell=[3.6, 3.7, 3.9], pbc=True)
    return [to_structure(atoms) for atoms in (molecule("CH3CH2OH"), copper)]


def untrained(config: EquivariantConfig, theories: Sequence[str] = ("PBE",)) -> Potential:
    torch.manual_seed(0)
    potential = Potential(EquivariantNetwork(config, ELEMENTS, 9.0, len(theories)), ELEMENTS, tuple(theories)).eval()
    references = torch.randn(len(theories), len(ELEMENTS), dtype=torch.float64)
    potential.get_buffer("reference_energies").copy_(references.float())
    potential.get_buffer("scale").fill_(1.5)
    return potential


def written(path: Path, edit: Callable[[dict], object] = dict, config: EquivariantConfig = SMALL) -> Path:
    """Write a small checkpoint of sevenn, edited."""
    to_sevennet(untrained(config), path)
    values = read_checkpoint(path)
    edit(values)
    torch.save(values, path)
    return path


def same_weights(one: Potential, other: Potential) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("name", "theory"), CASES)
def test_energies_forces_and_stresses_are_sevenns(name: str, theory: str | None, structures: list[Structure]) -> None:
    volumes, number = [s.volume for s in structures], ours(name).theory_number(theory)
    results = {}
    for dtype in (torch.float32, torch.float64):
        mine = [predict(ours(name).cast(dtype), [s], number) for s in structures]
        results[dtype] = (mine, [peer(name).predict([s], dtype, theory) for s in structures])
    assert max(differences(*results[torch.float64], volumes).values()) < 1e-10
    rounding = differences(results[torch.float32][1], results[torch.float64][1], volumes)
    for quantity, difference in differences(*results[torch.float32], volumes).items():
        # in float32 both differ from the truth by rounding, of the size of that of sevenn
        assert difference < max(1e-6, 2 * rounding[quantity]), quantity


def test_a_batch_gives_what_its_structures_give(structures: list[Structure]) -> None:
    potential = ours("sevennet-0").cast(torch.float64)
    together = predict(potential, structures)
    alone = [predict(potential, [s]) for s in structures]
    assert max(differences([together], alone, [s.volume for s in structures]).values()) < 1e-12


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gradients_of_the_parameters_are_sevenns(structures: list[Structure], dtype: torch.dtype, bar: float) -> None:
    potential = from_sevennet(find_published("sevennet-0")).cast(dtype).train()
    other, few = peer("sevennet-0"), structures[:2]
    squares(predict(potential, few), few).backward()
    other.model.zero_grad()
    squares(other.predict(few, dtype, training=True), few).backward()
    expected = our_weights(gradients(other), potential.network, (0, 13))
    for name, parameter in potential.network.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max()
        assert difference < bar, name


def test_the_parameters_are_as_many_as_published() -> None:
    counts = {name: sum(p.numel() for p in ours(name).parameters()) for name in ("sevennet-0", "sevennet-l3i5")}
    assert counts == {"sevennet-0": 842_440, "sevennet-l3i5": 1_171_144}


# of sevenn's own unit tests (tests/unit_tests/test_pretrained.py), which round to about 1e-6
@pytest.mark.parametrize(
    ("name", "theory", "salt", "water", "force"),
    [
        ("sevennet-0", None, -3.779199, -12.782808303833, (12.666697, 0.04726403, 0.04775861)),
        ("sevennet-0-22may2024", None, -3.4140868, -12.8083639, None),
        ("sevennet-l3i5", None, -3.611131191253, -12.700481414794, (13.430887, 0.08655541, 0.08754013)),
        ("sevennet-mf-0", "R2SCAN", -11.607587814331, -14.172412872314, None),
    ],
)
def test_the_published_reference_values_are_met(
    name: str, theory: str | None, salt: float, water: float, force: tuple | None
) -> None:
    cell = [[1, 2.815, 2.815], [2.815, 0, 2.815], [2.815, 2.815, 0]]
    crystal = ase.Atoms("NaCl", cell=cell, pbc=True, positions=[[0, 0, 0], [2.815, 0, 0]])
    gas = ase.Atoms("OHH", positions=[[0, 0.2, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
    crystal.calc = gas.calc = Calculator(ours(name), theory=theory)
    assert crystal.get_potential_energy() == pytest.approx(salt, abs=5e-6)
    if force:
        np.testing.assert_allclose(crystal.get_forces()[0], force, atol=2e-5)
    if name == "sevennet-0":
        # ASE's order and sign; sevenn's test has minus this in the order xx yy zz xy yz zx
        stress = [-0.6439122, -0.03643947, -0.03643981, 0.00599139, 0.04544507, 0.04543639]
        np.testing.assert_allclose(crystal.get_stress(), stress, atol=2e-6)
    assert gas.get_potential_energy() == pytest.approx(water, abs=5e-6)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in PUBLISHED]
)
def test_a_round_trip_keeps_every_bit_and_sevenns_numbers(
    name: str, tmp_path: Path, structures: list[Structure]
) -> None:
    potential = ours(name).cast(torch.float32)
    to_sevennet(potential, tmp_path / "again.pth")
    again = from_sevennet(tmp_path / "again.pth", None if len(potential.theories) > 1 else "PBE")
    assert same_weights(again, potential)
    assert again.network.config == potential.network.config
    assert (again.elements, again.theories) == (potential.elements, potential.theories)
    theory = potential.theories[-1] if len(potential.theories) > 1 else None
    few = [structures[0], structures[4]]
    before = [peer(name).predict([s], torch.float32, theory) for s in few]
    after = [Sevenn(tmp_path / "again.pth").predict([s], torch.float32, theory) for s in few]
    # in float32 the peer itself varies by some 1e-6 from one compilation to the next
    assert max(differences(after, before, [s.volume for s in few]).values()) < 1e-5


@pytest.mark.parametrize(
    ("changes", "theories"),
    [
        ({}, ("PBE",)),
        ({"irreps": "4x0o+8x0e+4x1o+4x1e+2x2o+2x2e"}, ("PBE",)),
        ({"irreps": "8x0e+2x2e", "cutoff_function": "xplor", "unit_harmonics": False}, ("PBE",)),
        ({"irreps": "8x0e+4x1e", "max_degree": 1, "normalization": "sqrt"}, ("PBE",)),
        ({}, ("PBE", "SCAN", "HSE")),
        ({"theory_biases": False}, ("PBE", "SCAN")),
    ],
    ids=["parity", "both-parities", "no-vectors", "degree-1", "biases", "references-only"],
)
def test_sevenn_gives_the_numbers_of_a_potential_of_ours(
    changes: dict, theories: tuple[str, ...], tmp_path: Path, molecules: list[Structure]
) -> None:
    potential = untrained(EquivariantConfig(**{**vars(SMALL), **changes}), theories)
    to_sevennet(potential, tmp_path / "ours.pth")
    other = Sevenn(tmp_path / "ours.pth")
    for number, theory in enumerate(theories):
        named = theory if len(theories) > 1 else None
        mine = predict(potential.cast(torch.float64), molecules, number)
        found = differences([mine], [other.predict(molecules, torch.float64, named)], [s.volume for s in molecules])
        assert max(found.values()) < 1e-10
    assert same_weights(from_sevennet(tmp_path / "ours.pth"), potential.cast(torch.float32))


def test_one_level_of_theory_of_several_is_a_model_of_sevenns(tmp_path: Path, molecules: list[Structure]) -> None:
    potential = untrained(SMALL, ("PBE", "SCAN", "HSE"))
    to_sevennet(keep_theory(potential, "SCAN"), tmp_path / "one.pth")
    theirs = Sevenn(tmp_path / "one.pth").predict(molecules, torch.float32, "SCAN")
    found = differences([predict(potential, molecules, 1)], [theirs], [s.volume for s in molecules])
    assert max(found.values()) < 1e-5


def test_a_readout_that_sevenn_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSevenNet, match=r"readout_channels: 5; sevenn's readout has half of the 8 even"):
        to_sevennet(untrained(EquivariantConfig(**{**vars(SMALL), "readout_channels": 5})), tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_harmonics_of_the_vector_itself_are_recognised() -> None:
    units = {name: ours(name).network.config.unit_harmonics for name in PUBLISHED}
    assert units == {name: name != "sevennet-0-22may2024" for name in PUBLISHED}


@pytest.mark.parametrize(("version", "unit"), [("0.9.1", False), ("0.10.0", True)])
def test_without_a_word_on_harmonics_the_version_decides(tmp_path: Path, version: str, unit: bool) -> None:
    def forget(values: dict) -> None:
        values["config"].pop("_normalize_sph")
        values["config"]["version"] = version

    assert from_sevennet(written(tmp_path / "x.pth", forget)).network.config.unit_harmonics is unit


def reorder(values: dict, config: EquivariantConfig) -> None:
    """Put the columns and the Wigner 3j symbols of a checkpoint into the order of sevenn before 0.11."""
    state = values["model_state_dict"]
    layers = [o3.Irreps(text) for text in values["config"]["irreps_manual"]]
    sign = -1 if config.parity else 1
    for number in range(config.num_blocks):
        last = number == config.num_blocks - 1
        prefix = f"{number}_convolution.convolution._compiled_main_left_right._w3j_"
        found = []
        for i, (channels, irrep) in enumerate(layers[number]):
            for degree in range(config.max_degree + 1):
                for output in irrep * o3.Irrep(degree, sign**degree):
                    if output.l <= layers[number + 1].lmax and not (last and output.p == -1):
                        found.append((output, i, degree, channels, (irrep.l, degree, output.l)))
        new = sorted(found, key=lambda path: path[0])
        starts = dict(zip(new, np.cumsum([0, *(path[3] for path in new)]), strict=False))
        columns = np.concatenate([np.arange(starts[path], starts[path] + path[3]) for path in found])
        name = f"{number}_convolution.weight_nn.layer{len(config.radial_sizes)}.weight"
        state[name] = state[name][:, columns]
        for path in found:
            if min(path[4]) > 0:
                symbol = prefix + "_".join(map(str, path[4]))
                state[symbol] = state.pop(symbol)
    values["config"]["version"] = "0.10.4"


@pytest.mark.parametrize("changes", [{}, {"irreps": "8x0e+4x1e", "max_degree": 1}], ids=["degree-2", "degree-1"])
def test_both_orders_of_the_paths_give_the_same_potential(
    changes: dict, tmp_path: Path, molecules: list[Structure]
) -> None:
    config = EquivariantConfig(**{**vars(SMALL), **changes})
    new = written(tmp_path / "new.pth", config=config)
    old = written(tmp_path / "old.pth", lambda values: reorder(values, config), config)
    name = "1_convolution.weight_nn.layer2.weight"
    assert not torch.equal(*(read_checkpoint(path)["model_state_dict"][name] for path in (new, old)))
    assert same_weights(from_sevennet(old), from_sevennet(new))
    theirs = Sevenn(old).predict(molecules, torch.float64)
    mine = predict(from_sevennet(old).cast(torch.float64), molecules)
    assert max(differences([mine], [theirs], [s.volume for s in molecules]).values()) < 1e-10


def test_the_order_is_told_by_the_symbols_rather_than_by_the_version(tmp_path: Path) -> None:
    def disguise(values: dict) -> None:
        reorder(values, SMALL)
        values["config"]["version"] = "0.12.0"

    assert same_weights(
        from_sevennet(written(tmp_path / "old.pth", disguise)), from_sevennet(written(tmp_path / "new.pth"))
    )


def test_the_sign_of_a_wigner_symbol_goes_into_the_weights(tmp_path: Path) -> None:
    def flip(values: dict) -> None:
        state = values["model_state_dict"]
        state["1_convolution.convolution._compiled_main_left_right._w3j_1_2_1"] *= -1

    plain, flipped = from_sevennet(written(tmp_path / "a.pth")), from_sevennet(written(tmp_path / "b.pth", flip))
    name = "network.blocks.1.radial.layer2.weight"
    ratio = flipped.state_dict()[name] / plain.state_dict()[name]
    paths = plain.network.blocks[1].convolution.paths
    expected = []
    for path in paths.paths:
        degrees = (paths.irreps_in[path.input].ir.l, path.harmonic, path.output.l)
        expected += [-1.0 if degrees == (1, 2, 1) else 1.0] * path.channels
    assert ratio[0].tolist() == expected
    assert -1.0 in expected


def test_the_names_of_sevenn_before_0_10_are_understood(tmp_path: Path) -> None:
    old_names = {
        "edge_embedding": "EdgeEmbedding",
        "reduce_input_to_hidden": "reducing nn input to hidden",
        "reduce_hidden_to_energy": "reducing nn hidden to energy",
        "rescale_atomic_energy": "rescale atomic energy",
    }

    def rename(values: dict) -> None:
        renamed = {}
        for name, value in values["model_state_dict"].items():
            module, rest = name.split(".", 1)
            spaced = module.replace("_", " ") if module[0].isdigit() else module
            renamed[f"{old_names.get(module, spaced)}.{rest.replace('denominator', 'denumerator')}"] = value
        values["model_state_dict"] = renamed

    old = written(tmp_path / "old.pth", rename)
    assert "0 self connection intro.linear.weight" in read_checkpoint(old)["model_state_dict"]
    assert same_weights(from_sevennet(old), from_sevennet(written(tmp_path / "new.pth")))


def test_a_file_that_names_no_theory_is_given_one(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth")
    assert from_sevennet(path).theories == ("unknown",)
    assert from_sevennet(path, "SCAN").theories == ("SCAN",)
    with pytest.raises(ValueError, match=r"names its own levels of theory \(R2SCAN, PBE\); leave out SCAN"):
        from_sevennet(find_published("sevennet-mf-0"), "SCAN")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("self_connection_type", "nequip"),
        ("self_connection_type", ["linear", "nequip", "linear"]),
        ("readout_as_fcn", True),
        ("interaction_type", "mace"),
        ("use_bias_in_linear", True),
        ("act_radial", "ssp"),
        ("act_scalar", {"e": "silu", "o": "abs"}),
        ("act_gate", {"e": "tanh", "o": "tanh"}),
        ("use_modal_node_embedding", True),
        ("use_modal_wise_scale", True),
        ("lmax_edge", 1),
        ("lmax_node", 1),
        ("irreps_manual", ["8x0e", "8x0e+4x1o+2x2e", "8x0e+4x1o", "8x0e"]),
        ("irreps_manual", ["8x0e", "4x1o+8x0e+2x2e", "4x1o+8x0e+2x2e", "8x0e"]),
        ("irreps_manual", False),
        ("is_parity", False),
        ("use_flash_tp", True),
        ("cuequivariance_config", {"use": True}),
        ("radial_basis_name", "gaussian"),
        ("cutoff_function_name", "cosine"),
    ],
)
def test_an_option_without_a_network_is_named_and_refused(tmp_path: Path, option: str, value: object) -> None:
    def change(values: dict) -> None:
        group = {"radial_basis_name": "radial_basis", "cutoff_function_name": "cutoff_function"}.get(option)
        (values["config"][group] if group else values["config"])[option] = value

    with pytest.raises(UnsupportedSevenNet, match=rf"x\.pth: this program has no network for .*{option}|is_parity"):
        from_sevennet(written(tmp_path / "x.pth", change))


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values["model_state_dict"].pop("1_self_interaction_1.linear.weight"),
        lambda values: values["model_state_dict"].pop("rescale_atomic_energy.shift"),
        lambda values: values["config"].pop("_type_map"),
        lambda values: values["config"].pop("cutoff_function"),
        lambda values: values["config"].update(version=None),
        lambda values: values["config"].update(num_convolution_layer="three"),
        lambda values: values["config"].update(weight_nn_hidden_neurons=[8, 9]),
        lambda values: values["model_state_dict"].pop("1_convolution.convolution._compiled_main_left_right._w3j_1_1_2"),
    ],
    ids=["weight", "shift", "elements", "cutoff", "version", "layers", "sizes", "symbol"],
)
def test_weights_that_do_not_fit_the_configuration_are_an_error(tmp_path: Path, edit: Callable) -> None:
    with pytest.raises(ValueError, match=r"x\.pth: its weights are not those of its configuration"):
        from_sevennet(written(tmp_path / "x.pth", edit))


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("place", ["whole", "config", "weights", "legacy", "bare pickle"])
def test_a_pickle_that_would_run_something_is_refused_unopened(tmp_path: Path, place: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "trap.pth"
    values = read_checkpoint(written(path))
    values["config" if place == "config" else "model_state_dict"]["trap"] = Trap(trace)
    if place == "bare pickle":
        path.write_bytes(pickle.dumps({"config": {}, "model_state_dict": Trap(trace)}, protocol=2))
    else:
        torch.save(Trap(trace) if place == "whole" else values, path, _use_new_zipfile_serialization=place != "legacy")
    with pytest.raises(ValueError, match=r"trap\.pth: refused, it wants to run .*Nothing in it was run"):
        from_sevennet(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists()  # the trap works


def zipped(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a checkpoint at all"),
        lambda path: path.write_bytes(bytes(range(256)) * 40),
        lambda path: zipped(path, b"nothing"),
        lambda path: zipped(path, pickle.dumps({"config": {}})),
        lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)),
    ],
    ids=["start only", "end missing", "empty", "text", "bytes", "zip", "zip of a pickle", "TorchScript"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = written(tmp_path / "x.pth")
    damage(path)
    with pytest.raises(ValueError, match=r"x\.pth: (refused|not a checkpoint)"):
        from_sevennet(path)


@pytest.mark.parametrize("values", [{"config": {}}, [1, 2], torch.ones(3)], ids=["no weights", "list", "tensor"])
def test_another_programs_file_is_told_apart(tmp_path: Path, values: object) -> None:
    torch.save(values, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: not a checkpoint of SevenNet"):
        from_sevennet(tmp_path / "x.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such file"):
        from_sevennet(tmp_path / "gone.pth")


def test_sevenn_itself_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    path = find_published("sevennet-0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(from_sevennet(path).elements) == 89
    with pytest.raises(FileNotFoundError, match="pip install sevenn"):
        find_published("sevennet-0")
