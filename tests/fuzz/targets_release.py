"""Files that people download: a release, a checkpoint of SevenNet, a Fisher, a measurement of held-out errors."""

import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from data_pipeline.store.untrusted import CorruptFile
from data_pipeline.structure import Structure
from foundation import checkpoint
from foundation.evaluation import held_out
from foundation.evaluation.frame_errors import FrameErrors
from foundation.evaluation.quantities import QUANTITIES, by_atoms, terms_of
from foundation.finetuning import fisher, fisher_by_term
from foundation.golden import GoldenMismatch, golden_record, verify_golden
from foundation.interop.sevennet import UnsupportedSevenNet, from_sevennet, to_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.training.loss import LossConfig
from tests.fuzz.harness import Mutation, Target
from tests.fuzz.mutations import (
    damaged_bytes,
    damaged_files,
    damaged_json,
    damaged_safetensors,
    damaged_text,
    nasty_values,
)
from tests.fuzz.pickles import any_opcode, changed, replace_stream, stream_of

CONFIG = EquivariantConfig(
    irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(4,), readout_channels=2, cutoff_function="polynomial"
)
DATASET = {"name": "x", "num_frames": 7, "theory": "PBE", "repeat": 1.0}


def potential() -> Potential:
    """Return a small untrained potential."""
    torch.manual_seed(0)
    return Potential(EquivariantNetwork(CONFIG, (1, 8, 29), 4.0), (1, 8, 29), ("PBE",)).eval()


def facts(read: Potential) -> tuple:
    """Return what a potential is."""
    state = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in read.state_dict().items()}
    return repr(read.network.config), read.elements, read.theories, state


def make_release(folder: Path) -> None:
    """Write a release of a potential with the golden predictions of a molecule."""
    model, target = potential(), folder / "release"
    provenance = {"method": "pretraining", "datasets": [DATASET], "config": {"card": {"name": "x"}}, "start": {}}
    checkpoint.save(model, target, provenance)
    oxide = Structure.checked(
        numbers=[29, 8], positions=[[0, 0, 0], [0, 0, 1.8]], cell=np.eye(3) * 9, pbc=[True, False, True], energy=0.0
    )
    (target / checkpoint.GOLDEN).write_text(json.dumps([golden_record(model, oxide, "PBE")]))
    (target / checkpoint.CARD).write_text("# A card\n")
    checkpoint.write_checksums(target)


def read_release(folder: Path) -> tuple:
    """Return the potential of a release after the check of its golden predictions."""
    verify_golden(folder / "release")
    return facts(checkpoint.load(folder / "release"))


def seal(folder: Path) -> None:
    """Make every checksum right again, as somebody with bad intentions would."""
    checkpoint.write_checksums(folder / "release")


def seal_weights(folder: Path) -> None:
    """Make every checksum right again after a change of the weights."""
    config = folder / "release" / checkpoint.CONFIG
    digest = hashlib.sha256((folder / "release" / checkpoint.WEIGHTS).read_bytes()).hexdigest()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": digest}))
    seal(folder)


def number_of_weights(folder: Path, chance: random.Random) -> str:
    """Change a number of the weights, and make the checksums right again."""
    path = folder / "release" / checkpoint.WEIGHTS
    state = safetensors.torch.load_file(path)
    name = chance.choice(sorted(state))
    value = chance.choice([float("nan"), float("inf"), 0.0, -1.0, 1e38])
    state[name].view(-1)[chance.randrange(state[name].numel())] = value
    safetensors.torch.save_file(state, path)
    seal_weights(folder)
    return f"{name} has {value}"


def make_pth(folder: Path) -> None:
    """Write a checkpoint of SevenNet."""
    to_sevennet(potential(), folder / "x.pth")


def read_pth(folder: Path) -> tuple:
    """Return the potential of a checkpoint of SevenNet."""
    return facts(from_sevennet(folder / "x.pth"))


def opcodes(folder: Path, chance: random.Random) -> str:
    """Change a few opcodes of the pickle."""
    stream, said = changed(stream_of(folder / "x.pth"), chance)
    replace_stream(folder / "x.pth", stream)
    return said


def generated(folder: Path, chance: random.Random) -> str:
    """Write a pickle of random opcodes."""
    stream = b"\x80\x02" + b"".join(any_opcode(chance) for _ in range(chance.randrange(60))) + b"."
    replace_stream(folder / "x.pth", stream)
    return repr(stream[:60])


def setting(folder: Path, chance: random.Random) -> str:
    """Change an option, or a weight, as torch would save it."""
    path = folder / "x.pth"
    values = torch.load(path, weights_only=False)  # our own file
    group = values[chance.choice(["config", "config", "config", "model_state_dict"])]
    name = chance.choice(sorted(group))
    # torch itself cannot save the last one, which is 900 deep
    nasty = nasty_values()[:-1]
    group[name] = chance.choice([*nasty, torch.ones(3), torch.full((2,), float("nan")), torch.arange(4), np.ones(2)])
    torch.save(values, path)
    return f"{name} is {str(group[name])[:60]!r}"


def make_fisher(folder: Path) -> None:
    """Write a Fisher."""
    model = potential()
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    fisher.save(
        fisher.Fisher(
            values={name: tensor.double().square() for name, tensor in named.items()},
            theta_star=named,
            num_structures=3,
            num_above_threshold=0,
            num_unknown=0,
            loss_threshold=None,
            loss=LossConfig(),
            data=({"name": "x", "split": "train", "fingerprint": "f"},),
            structures=torch.arange(3),
            weights_sha256=checkpoint.weights_sha256(model),
        ),
        folder / "fisher.safetensors",
    )


def read_fisher(folder: Path) -> tuple:
    """Return the content of a Fisher."""
    found = fisher.read(folder / "fisher.safetensors")
    found.most_of_trace()
    tensors = [found.values, found.theta_star, {"": found.structures}]
    kept = [{name: (str(t.dtype), t.tolist()) for name, t in each.items()} for each in tensors]
    return kept, [repr(getattr(found, name)) for name in (*fisher.FACT_NAMES, "loss")]


def make_fisher_by_term(folder: Path) -> None:
    """Write a Fisher by term."""
    model = potential()
    values = {
        term: {name: tensor.detach().square().to(torch.bfloat16) for name, tensor in model.named_parameters()}
        for term in ("energy", "forces", "stress")
    }
    facts = fisher_by_term.FisherFacts(
        num_structures=3,
        weights_sha256=checkpoint.weights_sha256(model),
        data=({"name": "x", "split": "train", "fingerprint": "f"},),
    )
    fisher_by_term.save(
        fisher_by_term.FisherByTerm(values=values, structures=torch.arange(3), facts=facts),
        folder / "fisher.safetensors",
    )


def read_fisher_by_term(folder: Path) -> tuple:
    """Return the content of a Fisher by term."""
    found = fisher_by_term.read(folder / "fisher.safetensors", potential())
    kept = {term: {name: t.tolist() for name, t in named.items()} for term, named in found.values.items()}
    return kept, found.structures.tolist(), repr(found.facts)


def make_measurement(folder: Path) -> None:
    """Write a measurement of two frames."""
    frames = FrameErrors(
        ids=("a", "b"),
        num_atoms=np.ones(2),
        elements=("Cu",),
        sums={term.name: np.ones(2) for term in terms_of(QUANTITIES)},
        of_elements={term.name: np.ones((2, 1)) for term in terms_of(by_atoms())},
    )
    errors = held_out.SetErrors(
        name="x", role="target", split="test", fingerprint="f", theory="PBE", num_skipped=0, errors=frames
    )
    measurement = held_out.Measurement(weights_sha256="0" * 64, sets={"x": errors})
    held_out.save(measurement, folder / "before.safetensors")


def read_measurement(folder: Path) -> tuple:
    """Return the content of a measurement."""
    measured = held_out.read(folder / "before.safetensors")
    return [repr((vars(errors), vars(errors.errors))) for errors in measured.sets.values()], measured.weights_sha256


def seal_fisher(folder: Path) -> None:
    """Make the checksum of a Fisher right again, as far as there is one."""
    path = folder / "fisher.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + length])
        kept = header["__metadata__"]
        kept[fisher.CHECKSUM] = fisher.checksum(kept[fisher.FACTS], tensors)
        text = json.dumps(header).encode()
    except Exception:  # what cannot be sealed stays as it is
        return
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def fact(name: str, seal: Callable[[Path], None] | None = None) -> Callable[[Path, random.Random], str]:
    """Return a change of a value among the facts in the header of a file."""

    def edit(folder: Path, chance: random.Random) -> str:
        path = folder / name
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        values = json.loads(header["__metadata__"]["facts"])
        inner: Any = values
        while isinstance(inner, dict | list) and inner:
            group, key = inner, chance.choice(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = group[key]
            if chance.random() < 0.3:
                break
        group[key] = chance.choice(nasty_values())
        header["__metadata__"]["facts"] = json.dumps(values)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        if seal is not None:
            seal(folder)
        return f"{key} is {str(group[key])[:60]!r}"

    return edit


TARGETS = (
    Target(
        name="release",
        make=make_release,
        read=read_release,
        mutations={
            **damaged_bytes("*.*", expects="same"),
            **damaged_bytes("SHA256SUMS", expects="same"),
            **damaged_text("SHA256SUMS", expects="same"),
            **damaged_files("*.*", expects="refused"),
            **damaged_files("SHA256SUMS", expects="refused"),
            **damaged_json("config.json", seal=seal),
            **{f"{name} again": edit for name, edit in damaged_json("config.json", seal=seal).items()},
            **damaged_json("golden.json", seal=seal),
            **damaged_safetensors("model.safetensors", seal=seal_weights),
            "number of the weights": Mutation(edit=number_of_weights),
        },
        refusals=(checkpoint.CorruptCheckpoint, GoldenMismatch, FileNotFoundError),
    ),
    Target(
        name="sevennet",
        make=make_pth,
        read=read_pth,
        mutations={
            **damaged_bytes("*.pth"),
            **damaged_files("*.pth", expects="refused"),
            "opcodes": Mutation(edit=opcodes),
            "opcodes again": Mutation(edit=opcodes),
            "opcodes once more": Mutation(edit=opcodes),
            "random opcodes": Mutation(edit=generated, expects="refused"),
            "setting": Mutation(edit=setting),
            "setting again": Mutation(edit=setting),
        },
        refusals=(checkpoint.CorruptCheckpoint, UnsupportedSevenNet, FileNotFoundError),
    ),
    Target(
        name="fisher",
        make=make_fisher,
        read=read_fisher,
        mutations={
            **damaged_bytes("*.safetensors", expects="same"),
            **damaged_files("*.safetensors", expects="refused"),
            **damaged_safetensors("*.safetensors", seal=seal_fisher),
            "fact": Mutation(edit=fact("fisher.safetensors", seal_fisher)),
        },
        refusals=(fisher.CorruptFisher, FileNotFoundError),
    ),
    Target(
        name="fisher by term",
        make=make_fisher_by_term,
        read=read_fisher_by_term,
        mutations={
            **damaged_bytes("*.safetensors", expects="same"),
            **damaged_files("*.safetensors", expects="refused"),
            **damaged_safetensors("*.safetensors", seal=seal_fisher),
            "fact": Mutation(edit=fact("fisher.safetensors", seal_fisher)),
        },
        refusals=(fisher.CorruptFisher, FileNotFoundError),
    ),
    Target(
        name="measurement",
        make=make_measurement,
        read=read_measurement,
        mutations={
            **damaged_bytes("*.safetensors"),
            **damaged_files("*.safetensors", expects="refused"),
            **damaged_safetensors("*.safetensors"),
            "fact": Mutation(edit=fact("before.safetensors")),
        },
        refusals=(CorruptFile, FileNotFoundError),
    ),
)
