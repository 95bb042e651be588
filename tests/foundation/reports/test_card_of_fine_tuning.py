"""What a card says of a fine-tuning: everything that was used, and nothing that was not."""

import dataclasses
from typing import Any

from data_pipeline.store.untrusted import typed
from foundation.provenance import (
    EnergyErrors,
    Interpolated,
    MovedReference,
    MovedReferences,
    Provenance,
    Residuals,
)
from foundation.reports.card_of_fine_tuning import MOVED, method_rows

SHA = "a" * 64
WRITTEN: dict[str, Any] = {
    "start": {"folder": "runs/sevennet-0", "weights_sha256": SHA, "datasets": []},
    "new_elements": {},
    "new_theories": [],
    "same_energies": True,
    "num_trained": 842440,
    "rehearsal": None,
    "fisher": None,
    "config": {
        "optim": {"optimizer": "adamw", "learning_rate": 1e-4, "schedule": "cosine", "warmup_steps": 10},
        "rate_factors": {},
        "rehearsal": None,
        "penalty": None,
        "freeze": [],
        "adapters": None,
    },
}
"""Provenance of a plain fine-tuning in a file, as far as it is looked at."""
PLAIN = typed(Provenance, WRITTEN, "provenance")
PENALTY = {"weight": 1e5, "fisher": "runs/fisher.safetensors", "power": 0.5, "normalization": "tensor", "damping": 0.1}
REHEARSAL = {
    "data": [{"path": "data/one"}, {"path": "data/two"}],
    "split": "train",
    "ratio": 2.0,
    "weight": 1.0,
    "mode": "alternate",
    "loss": None,
    "elements": ["Li", "S"],
    "fraction": 1.0,
    "method": "random",
    "labels": "start",
}


def rows(settings: dict | None = None, **facts: Any) -> dict[str, str]:
    config = WRITTEN["config"] | (settings or {})
    return dict(method_rows(typed(Provenance, WRITTEN | facts | {"config": config}, "provenance"), SHA))


def test_of_a_plain_fine_tuning_it_says_that_nothing_was_done() -> None:
    assert rows() == {
        "begins with": f"sevennet-0, weights with SHA-256 `{SHA}`",
        "learning rate": "0.0001 at most, adamw, cosine after 10 steps of warm-up",
        "against forgetting": "only the learning rate",
        "reference energies": "kept",
    }


def test_a_start_that_was_added_to_has_two_checksums() -> None:
    text = dict(method_rows(PLAIN, "b" * 64))["begins with"]
    assert SHA in text
    assert f"errors before are of it with the elements, levels and references below, `{'b' * 64}`" in text


def test_a_fisher_is_described_with_all_that_was_done_to_it() -> None:
    fisher = {
        "num_structures": 500,
        "num_above_threshold": 3,
        "loss_threshold": 0.2,
        "num_parameters": 842440,
        "num_unprotected": 1234,
        "data": [{"name": "MPtrj", "split": "train"}],
    }
    assert rows({"penalty": PENALTY}, fisher=fisher)["penalty"] == (
        "EWC, lambda 100000, diagonal Fisher of 500 structures of MPtrj (train), 3 with a loss above 0.2 left out, "
        "to the power 0.5, divided by its mean in each tensor, damping 0.1 of its mean; 1,234 of 842,440 weights have "
        "none"
    )
    assert "against forgetting" not in rows({"penalty": PENALTY}, fisher=fisher)


def test_without_a_fisher_it_is_l2_sp() -> None:
    assert rows({"penalty": {"weight": 0.5}})["penalty"] == "L2-SP, lambda 0.5: (lambda/2) Σ (θ − θ*)²"


def test_rehearsal_is_described_with_its_choice_and_labels() -> None:
    facts = {"datasets": [{"name": "MPtrj"}, {"name": "Alexandria"}]}
    assert rows({"rehearsal": REHEARSAL}, rehearsal=facts)["rehearsal"] == (
        "MPtrj; Alexandria (train), structures with Li or S; mode alternate, 2 times the target's edge budget, loss "
        "times 1, labels: the start's own predictions"
    )
    assert (
        "with its own loss"
        in rows({"rehearsal": REHEARSAL | {"loss": {"energy": {"weight": 1.0}}}}, rehearsal=facts)["rehearsal"]
    )


def test_adapters_are_described() -> None:
    adapters = {"rank": 8, "alpha": 4.0, "patterns": ["*"]}
    assert rows({"adapters": adapters}, num_trained=1234)["adapters"] == (
        "of rank 8 and alpha 4 on `*`, merged into the weights; 1,234 numbers were trained"
    )


def test_new_elements_and_theories_and_moved_references_are_reported() -> None:
    size = Residuals(mean=0.0, mae=0.1, rmse=0.2)
    rhodium = MovedReference(before=-1.0, after=-1.25, moved=-0.25)
    errors = EnergyErrors(before=size, after=size)
    references = MovedReferences(num_structures=1000, elements={"Rh": rhodium}, energy_error=errors)
    moved = {"PBE": dataclasses.asdict(references)}
    facts: dict[str, Any] = {
        "new_elements": {"Rh": "Pd"},
        "new_theories": ["SCAN"],
        "references_of_new_elements": moved,
        "references": moved,
        "same_energies": False,
    }
    found = rows(**facts)
    assert found["new elements"] == "Rh begins as Pd; at PBE by Rh −0.25 eV (from 1,000 structures)"
    assert found["new levels of theory"] == "SCAN"
    assert found["reference energies"] == (f"refitted, at PBE by Rh −0.25 eV (from 1,000 structures){MOVED}")
    assert MOVED not in rows(**facts | {"same_energies": True})["reference energies"]


def test_an_interpolation_says_what_it_lies_between() -> None:
    found = rows(interpolated=dataclasses.asdict(Interpolated(alpha=0.5, weights_sha256="c" * 64)))["interpolated"]
    assert found.startswith(f"start + 0.5 (result − start) in all weights; the result is `{'c' * 64}`.")
