"""The second architecture goes the whole way from the command line, with nothing outside its own file knowing of it."""

import json
from pathlib import Path

import pytest
import torch

import foundation
from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.models import EquivariantConfig, SymmetryFunctionsConfig
from foundation.potential import new_potential
from foundation.testing import check_laws
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.optim import OptimConfig, make_optimizer
from launch.__main__ import main, parse
from tests.conftest import REPOSITORY

FIT = """--fit.steps 3 --fit.lanes 1 --fit.edge_budget 2000 --machine.num_workers 0 --machine.accelerator cpu
    --fit.validate_every 3 --fit.log_every 1""".split()
FACTS = ("name", "description", "authors", "licence", "intended_use", "limitations", "citation")
CARD = [word for name in FACTS for word in (f"--card.{name}", "a fact")]
MODEL = """model:
  radial_functions: [[0.05, 0.0], [0.5, 2.5]]
  angular_functions: [[0.01, 1, 1], [0.01, 2, -1]]
  hidden_sizes: [6, 4]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "run.yaml"
    file.write_text(MODEL)
    return file


@pytest.fixture(scope="module")
def run(emt_manifest: Manifest, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that was evaluated and exported."""
    out = tmp_path_factory.mktemp("second") / "run"
    words = ["--data", str(emt_manifest.root), "--out", str(out), "--model.cutoff", "5.0"]
    assert main(["pretrain", "--config", str(config), *words, *FIT, *CARD]) == 0
    assert main(["evaluate", "--model", str(out), "--data", str(emt_manifest.root)]) == 0
    assert main(["export", "--run", str(out), "--out", str(out / "release")]) == 0
    return out


def test_a_release_names_its_architecture_and_obeys_the_laws(run: Path) -> None:
    content = json.loads((run / "release" / "config.json").read_text())
    assert (content["schema_version"], content["architecture"]) == (3, "symmetry_functions")
    card = (run / "release" / "README.md").read_text()
    assert "Behler-Parrinello network, 2 radial and 2 angular symmetry functions" in card
    assert "hidden layers of 6 and 4" in card
    found = check_laws(foundation.load(run / "release"))
    assert set(found) >= {"rotation", "mirror", "forces", "stress", "locality"}


def test_it_learns_a_batch(emt_manifest: Manifest, config: Path) -> None:
    _, settings = parse(
        ["pretrain", "--config", str(config), "--data", "d", "--out", "o", "--model.cutoff", "5", "--fit.steps", "1"]
    )
    torch.manual_seed(0)
    potential = new_potential(settings.model, {"EMT": emt_manifest.split("train").statistics}).train()
    frames = Frames(emt_manifest, "train")
    batch = collate([frames[number] for number in range(8)], 5.0)
    steps, losses = make_optimizer(OptimConfig(learning_rate=0.02), potential, len(potential.elements)), []
    for _ in range(60):
        steps.zero_grad()
        losses.append(loss(LossConfig(), potential(batch), batch, label_counts(batch)))
        losses[-1].backward()
        steps.step()
    assert float(losses[-1].detach()) < 0.5 * float(losses[0].detach())


@pytest.mark.parametrize(
    "options", [["--freeze", '["block 0"]'], ["--freeze", '["blocks:1"]'], ["--adapters.rank", "2"]]
)
def test_it_is_fine_tuned_with_a_penalty_frozen_stages_or_adapters(
    run: Path, emt_manifest: Manifest, tmp_path: Path, options: list[str]
) -> None:
    if "--freeze" in options:
        fisher = ["fisher", "--model", str(run), "--data", str(emt_manifest.root), "--max_structures", "5"]
        assert main([*fisher, "--out", str(tmp_path / "fisher")]) == 0
        options = [*options, "--penalty.fisher", str(tmp_path / "fisher"), "--penalty.weight", "1.0"]
        options += ["--rate_factors.readout", "0.5"]
    words = ["--start", str(run), "--data", str(emt_manifest.root), "--out", str(tmp_path / "tuned")]
    assert main(["finetune", *words, *FIT, *options, "--optim.learning_rate", "0.01"]) == 0
    before, after = (foundation.load(folder).state_dict() for folder in (run, tmp_path / "tuned"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "network.layers.2.weight" in changed
    assert ("network.layers.0.weight" in changed) == ("--adapters.rank" in options)


def test_a_release_is_loaded_bit_for_bit(run: Path, emt_manifest: Manifest) -> None:
    batch = collate([Frames(emt_manifest, "train")[0]], 5.0)
    one, two = (foundation.load(folder)(batch) for folder in (run, run / "release"))
    assert torch.equal(one.forces, two.forces)
    features = foundation.load(run).atom_features(batch)
    assert features.shape == (len(batch.numbers), 4)


def test_sevennet_has_no_such_network(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--to", "sevennet", "--model", str(run), "--out", str(tmp_path / "x.pth")]) == 2
    assert "the potential's architecture is symmetry_functions; sevenn has equivariant networks only" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_a_start_of_another_architecture_is_refused(
    run: Path, emt_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(emt_manifest.root), "--out", str(tmp_path / "run"), "--start", str(run), *FIT]
    assert main(["pretrain", *words, "--model.irreps", "4x0e"]) == 2
    assert "it is symmetry_functions there and equivariant here" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--fit.radial_table 64", "--fit.recompute true"])
def test_what_it_cannot_compute_is_refused_by_the_option(
    emt_manifest: Manifest, config: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(emt_manifest.root), "--out", str(tmp_path / "run"), "--model.cutoff", "5.0", *FIT]
    assert main(["pretrain", "--config", str(config), *words, *option.split()]) == 2
    said = capsys.readouterr().err
    assert f"{option.split()[0].removeprefix('--fit.')} {option.split()[1].title()}".lower() in said.lower()
    assert "is not possible: " in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "kind", "more"),
    [
        ("configs/pretrain/small.yaml", EquivariantConfig, ["--model.cutoff_onset", "4"]),
        ("configs/pretrain/symmetry-functions.yaml", SymmetryFunctionsConfig, []),
    ],
)
@pytest.mark.parametrize("options", [["--model.cutoff", "4.5"], ["--model.cutoff=4.5"]])
def test_a_dotted_option_changes_the_architecture_that_the_file_states(
    file: str, kind: type, more: list[str], options: list[str]
) -> None:
    _, before = parse(["pretrain", "--config", str(REPOSITORY / file)])
    _, after = parse(["pretrain", "--config", str(REPOSITORY / file), *options, *more])
    assert type(before.model) is type(after.model) is kind
    assert after.model.cutoff == 4.5
    assert before.model.cutoff != 4.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model.hidden_size 3", "unknown option --model.hidden_size (did you mean --model.hidden_sizes?)"),
        ("--model.num_blocks 3", "unknown option 'model.num_blocks'"),
        ("--model.irreps 4x0e", "model: irreps and radial_functions belong to different kinds of model"),
        ("--model.cutoff null", "model.cutoff: a value is needed, not null"),
        ("--model.cutoff far", "model.cutoff: a number is needed"),
    ],
)
def test_what_is_wrong_is_said_by_its_dotted_name(
    config: Path, options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--config", str(config), "--data", "d", "--out", "o", "--fit.steps", "1"]
    assert main([*words, *options.split()]) == 2
    assert said in capsys.readouterr().err
    assert main([*words[:1], *words[3:], "--model.cutoff", "5"]) == 2
    assert "the kind of model is missing; give one of the options irreps, radial_functions" in capsys.readouterr().err
