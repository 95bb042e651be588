"""Names that would end a quotation of a shell reach a real SLURM as they are."""

from pathlib import Path

import pytest

from launch.__main__ import main
from tests.cluster.slurm import Slurm, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
NAME = "a '; touch marker; ' \"; touch marker; $(touch marker) `touch marker` # %j | &"


def test_a_name_and_a_folder_with_everything_a_shell_knows(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    options = ["--time", "1", "--signal-before", "1", "--name", NAME, "--directives", '["--comment=a\\\\ \\"b # c\\""]']
    command = ["pretrain", "--data", NAME, "--out", f"runs/{NAME}", "--fit.steps", "1", "--model.irreps", "4x0e"]
    assert main(["launch", "slurm", *options, "--", *command]) == 0
    script = tmp_path / "runs" / NAME / "job.sbatch"
    text = script.read_text()
    # not the training, whose data do not exist
    script.write_text(text[: text.index("srun ")] + "echo it ran\n")
    facts = slurm.wait_for_end(slurm.run("sbatch", "--parsable", str(script)).strip())
    assert facts["JobState"] == "COMPLETED"
    (log,) = script.parent.glob("slurm-*.log")
    assert log.read_text().splitlines()[-1] == "it ran"
    described = slurm.run("scontrol", "show", "job", facts["JobId"])
    assert f"JobName={NAME}\n" in described
    assert "Comment=a b # c" in described
    assert not list(tmp_path.rglob("marker"))
