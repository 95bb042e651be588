"""The `foundation` command: runs the verb named by its arguments, and turns errors into exit codes.

An integer returned by a verb is the exit code; otherwise the code is 0.
"""

import logging
import os
import sys
import warnings

from foundation.reports.escape import printable
from launch.parser import OFFLINE
from launch.verbs import VERBS, parse

USER_ERRORS = (ValueError, OSError)
"""Exceptions of wrong input: shown as a sentence, without a traceback."""
FORBIDDEN = "HF_HUB_OFFLINE"
"""Variable of the environment that forbids downloads (foundation/releases/cache.py)."""
MAX_SHOWN = 10_000
"""Longest message [characters]; messages quote files."""


class _Formatter(logging.Formatter):
    """Formatter of log lines in which names cannot contain terminal commands."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        return printable(super().format(record))


class _Handler(logging.StreamHandler):
    """Handler that writes to the standard error of the moment, which a line that moves takes over while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.stream = sys.stderr
        super().emit(record)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    handler = _Handler()
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Lightning 2.6 calls a torch interface that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)`", category=FutureWarning)
    # Lightning looks for srun even when told that a shell started the run
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    if OFFLINE in arguments[: arguments.index("--") if "--" in arguments else None]:
        os.environ[FORBIDDEN] = "1"  # for the processes that are started too
    try:
        verb, config = parse(arguments)
        outcome = VERBS[verb].load().run(config)
    except USER_ERRORS as error:
        if "--traceback" in arguments:
            raise
        print(f"foundation: {printable(str(error)[:MAX_SHOWN])}", file=sys.stderr)
        return 2
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        # Lightning ends a process interrupted in training in this way, after the checkpoint is written
        print("foundation: interrupted; continue with --fit.resume true", file=sys.stderr)
        return 130
    except KeyboardInterrupt as error:
        print(f"foundation: interrupted. {error}", file=sys.stderr)
        return 130
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    sys.exit(main())
