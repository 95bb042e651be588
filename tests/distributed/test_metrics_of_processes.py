"""One process and two, started as a user starts them, log the same numbers."""

import pytest

from data_pipeline.store.manifest import Manifest
from foundation.training.monitoring.metrics_file import read_rows
from tests.distributed.test_processes import pretrain

EXACT = ("seen/frames", "seen/atoms", "seen/edges", "speed/budget_fill", "train/learning_rate")
pytestmark = pytest.mark.long
ROUNDED = ("train/loss", "train/loss_energy", "train/loss_forces", "train/loss_stress", "train/energy_mae")


@pytest.fixture(scope="module")
def rows(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict]]:
    out = tmp_path_factory.mktemp("processes")
    pretrain(emt_manifest.root, out / "one", 1)
    pretrain(emt_manifest.root, out / "two", 2)
    return read_rows(out / "one" / "logs"), read_rows(out / "two" / "logs")


def test_one_process_and_two_log_the_same_sums(rows: tuple[list[dict], list[dict]]) -> None:
    one, two = rows
    assert [(row["kind"], row["step"]) for row in one] == [(row["kind"], row["step"]) for row in two]
    for ours, theirs in zip(one, two, strict=True):
        if ours["kind"] == "train":
            assert [ours[name] for name in EXACT] == [theirs[name] for name in EXACT]
            for name in (*ROUNDED, "train/force_mae", "train/stress_mae", "train/gradient_norm"):
                # float32: the sum over processes rounds the gradient differently
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_one_process_and_two_validate_the_same_frames(rows: tuple[list[dict], list[dict]]) -> None:
    one, two = ([row for row in found if row["kind"] == "validation"][-1] for found in rows)
    assert one["val/frames"] == two["val/frames"] > 0
    assert one["val/force_mae"] == pytest.approx(two["val/force_mae"], rel=1e-3)
    assert one["val/by_element"].keys() == two["val/by_element"].keys()
    for symbol, errors in one["val/by_element"].items():
        theirs = two["val/by_element"][symbol]
        assert (errors["atoms"], errors["frames"]) == (theirs["atoms"], theirs["frames"])
        assert errors["force_mae"] == pytest.approx(theirs["force_mae"], rel=1e-3)


def test_the_imbalance_of_two_processes_shows(rows: tuple[list[dict], list[dict]]) -> None:
    one, two = ([row for row in found if row["kind"] == "train"] for found in rows)
    assert {row["speed/imbalance_edges"] for row in one} == {1.0}
    assert all(1.0 <= row["speed/imbalance_edges"] <= row["speed/imbalance_seconds"] + 1.0 for row in two)
    assert any(row["speed/imbalance_edges"] > 1.0 for row in two)
    assert rows[1][0]["processes"] == 2
