"""The command behind `--` of a launcher: what may stand there, checked before anything is written or started.

A wrong option found now costs a second; found by the job it costs a night in the queue.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foundation.run_folder import occupied

Parse = Callable[[list[str]], tuple[str, Any]]
"""The command line's own parser: arguments to the verb and its config."""
VERBS_THAT_TRAIN = ("pretrain", "finetune")
RESUME = ("--fit.resume", "auto")
"""A first start begins, every further one continues from the newest checkpoint."""
SCRIPT, LOGS = "job.sbatch", "slurm-*.log"
"""Files that a launcher leaves in a run folder before there is a run."""
SHOWN = 60
"""Characters of a refused value that its error shows."""


def refuse_unprintable(name: str, value: str) -> None:
    """Refuse a value with a character that a person who reads a script would not see, a line break above all.

    Raises:
        ValueError: naming the option and the character.
    """
    for place, character in enumerate(value):
        if not character.isprintable():
            shown = value if len(value) <= SHOWN else value[:SHOWN] + "..."
            raise ValueError(
                f"{name} has a character that cannot be printed, {character!r} at place {place + 1}: {shown!r}; "
                "leave it out"
            )


def check(words: Sequence[str], parse: Parse, machine: dict[str, object]) -> tuple[Any, list[str]]:
    """Return the config that a command amounts to, and the options that the launcher adds to it.

    Raises:
        ValueError: no command, not one that trains, an option that the launcher sets, a word or a run folder with a
            character that cannot be printed, or what the config refuses.
        FileExistsError: the run folder is there and the command does not say to continue it.
    """
    if not words:
        raise ValueError("no command: put it behind --, for example `-- pretrain --config configs/pretrain/X.yaml`")
    if words[0] not in VERBS_THAT_TRAIN:
        raise ValueError(f"`{words[0]}` does not train, so there is nothing to launch; run it directly")
    option = "the command"
    for word in words:
        option = f"{word.partition('=')[0]} in the command" if word.startswith("--") else option
        refuse_unprintable(option, word)
    for option in machine:
        if any(word.partition("=")[0].replace("-", "_") == option.replace("-", "_") for word in words):
            raise ValueError(f"{option} in the command: leave it out, the launcher sets it")
    added = [str(word) for setting in machine.items() for word in setting]
    _, config = parse([*words, *added])
    if config.overwrite:
        raise ValueError("--overwrite in the command: a job may start more than once; remove the old run yourself")
    if getattr(config, "sweep", None) and config.machine.world_size > 1:
        raise ValueError("--sweep in the command: a sweep starts processes of its own, so launch it as one process")
    if config.fit.resume:
        return config, added
    refuse_unprintable("out of the command", str(config.out))
    _refuse_existing(config.out)
    return config, [*added, *RESUME]


def _refuse_existing(out: Path) -> None:
    if not occupied(out):
        return
    if (out / "run.json").is_file():
        raise FileExistsError(
            f"{out} already holds a run; continue it with --fit.resume auto in the command, or choose another --out"
        )
    if any(path.name != SCRIPT and not path.match(LOGS) for path in out.iterdir()):
        raise FileExistsError(f"{out} already exists and is no run; choose another --out in the command")
