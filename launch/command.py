"""The command after `--` of a launcher, checked before anything is written or started.

A wrong option found now costs a second; found by the job it costs a night in the queue.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foundation.run_folder import occupied

Parse = Callable[[list[str]], tuple[str, Any]]
"""Type of the command line's parser: arguments to the verb and its config."""
VERBS_THAT_TRAIN = ("pretrain", "finetune")
VERBS_THAT_SHARE = ("predict", "relax", "md", "discovery")
"""Verbs whose work the tasks of a job array share by --part; one that was stopped goes on when it is started again."""
RESUME = ("--fit.resume", "auto")
"""Option by which the first start begins, and every further one continues from the newest checkpoint."""
SCRIPT, LOGS = "job.sbatch", "slurm-*.log"
"""Files of a launcher in a run folder before the run exists."""
SHOWN = 60
"""Longest part of a refused value in an error [characters]."""


def refuse_unprintable(name: str, value: str) -> None:
    """Refuse a value with a character invisible to a reader of the script, above all a line break.

    Raises:
        ValueError: it has one; the message names option and character.
    """
    for place, character in enumerate(value):
        if not character.isprintable():
            shown = value if len(value) <= SHOWN else value[:SHOWN] + "..."
            raise ValueError(
                f"{name} has a character that cannot be printed, {character!r} at place {place + 1}: {shown!r}; "
                "leave it out"
            )


def check(
    words: Sequence[str], parse: Parse, machine: dict[str, object], *, shared: bool = False
) -> tuple[Any, list[str]]:
    """Return the config of a command, and the options that the launcher adds to it.

    Args:
        words: The command.
        parse: Parser of the command line.
        machine: Options that the launcher sets.
        shared: Whether commands whose work is shared by --part can be launched as well.

    Raises:
        ValueError: no command, not one that trains or is shared by --part, an option that the launcher sets, a word or
            a run folder with a character that cannot be printed, or the config is refused.
        FileExistsError: the run folder exists and the command does not resume it.
    """
    if not words:
        raise ValueError("no command: put it after --, for example `-- pretrain --config configs/pretrain/X.yaml`")
    _refuse_unprintable_words(words)
    if shared and words[0] in VERBS_THAT_SHARE:
        return parse([*words])[1], []
    if words[0] not in VERBS_THAT_TRAIN:
        raise ValueError(f"`{words[0]}` does not train, so it cannot be launched; run it directly")
    for option in machine:
        names = [word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")]
        if any(option == f"--{name}" or option.endswith(f".{name}") for name in names):  # also without its section
            raise ValueError(f"{option} in the command: leave it out, the launcher sets it")
    added = [str(word) for setting in machine.items() for word in setting]
    _, config = parse([*words, *added])
    if config.overwrite:
        raise ValueError("--overwrite in the command: a job may start more than once; remove the old run yourself")
    if getattr(config, "sweep", None) and config.machine.world_size > 1:
        raise ValueError("--sweep in the command: a sweep starts its own processes, so launch it as one process")
    if config.fit.resume:
        return config, added
    refuse_unprintable("out of the command", str(config.out))
    _refuse_existing(config.out)
    return config, [*added, *RESUME]


def _refuse_unprintable_words(words: Sequence[str]) -> None:
    option = "the command"
    for word in words:
        option = f"{word.partition('=')[0]} in the command" if word.startswith("--") else option
        refuse_unprintable(option, word)


def _refuse_existing(out: Path) -> None:
    if not occupied(out):
        return
    if (out / "run.json").is_file():
        raise FileExistsError(
            f"{out} already holds a run; continue it with --fit.resume auto in the command, or choose another --out"
        )
    if any(path.name != SCRIPT and not path.match(LOGS) for path in out.iterdir()):
        raise FileExistsError(f"{out} already exists and is not a run; choose another --out in the command")
