"""docs/architecture.md walks one training step: it names every file that the step enters, and few have to be opened."""

import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from data_pipeline.building.build import build
from foundation.pretrain import pretrain
from foundation.training.module import TrainingModule
from launch.verbs import parse
from tests.conftest import REPOSITORY

CLOSED = ("foundation/training/fault_tolerance/", "foundation/training/monitoring/")
"""Rooms that a reader of the walk leaves closed, with all that is called from inside them."""
MAX_OPENED = 24
PACKAGES = "|".join(("data_pipeline", "foundation", "launch"))


class Visits:
    """Files of the project that a stretch of a run enters, each with the number of lines of its longest function."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        name = place(frame)
        if event == "call" and name and not self._from_a_closed_room(frame):
            inside = {line for _, _, line in frame.f_code.co_lines() if line and line > frame.f_code.co_firstlineno}
            self.lines[name] = max(self.lines.get(name, 0), len(inside))

    @staticmethod
    def _from_a_closed_room(frame: FrameType | None) -> bool:
        while frame is not None:
            if place(frame).startswith(CLOSED):
                return True
            frame = frame.f_back
        return False


def place(frame: FrameType) -> str:
    """Return the path of a frame's file inside the repository, empty if it is not in one of the packages."""
    found = re.fullmatch(rf"{re.escape(str(REPOSITORY))}/((?:{PACKAGES})/.*)", frame.f_code.co_filename)
    return found[1] if found else ""


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Visits:
    """From the beginning of the third training step of the quickstart to the beginning of the fourth."""
    out, visits = tmp_path_factory.mktemp("step"), Visits()
    words = ["quickstart", "--config", str(REPOSITORY / "configs" / "quickstart.yaml")]
    words += ["--build.source.num_frames", "400", "--pretrain.fit.steps", "4", "--pretrain.fit.log_every", "4"]
    words += ["--build.out", f"{out}/data", "--pretrain.data", f"{out}/data", "--pretrain.out", f"{out}/run"]
    _, config = parse(words)
    build(config.build)
    take_step: Callable[..., None] = TrainingModule.training_step

    def step(self: TrainingModule, parts: Any, number: int) -> None:
        sys.setprofile(visits if number == 2 else None)
        take_step(self, parts, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", step)
        try:
            pretrain(config.pretrain)
        finally:
            sys.setprofile(None)
    return visits


def test_the_walk_names_every_file_that_a_step_enters_and_no_other(visits: Visits) -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    walk = page.split("## One training step")[1].split("\n## ")[0]
    named = set(re.findall(rf"`((?:{PACKAGES})/[\w/]+\.py)`", walk))
    assert visits.lines.keys() - named == set()
    assert named - visits.lines.keys() == set()


def test_few_files_have_to_be_opened_to_follow_a_step(visits: Visits) -> None:
    # of a file of which single lines run, the walk says what they do
    opened = [name for name, lines in visits.lines.items() if lines > 1]
    assert "foundation/training/module.py" in opened
    assert len(opened) <= MAX_OPENED, sorted(opened)
    assert len(visits.lines) <= MAX_OPENED + 6, sorted(visits.lines)
