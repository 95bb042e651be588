"""`python -m tests.fuzz`: damage inputs for as long as one likes, and count what came of it."""

import argparse
import importlib
import json
import pkgutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

import tests.fuzz
from tests.fuzz.harness import Outcome, Target, run


def targets() -> dict[str, Target]:
    """Return the targets of all files targets_*.py by name."""
    names = [module.name for module in pkgutil.iter_modules(tests.fuzz.__path__)]
    modules = [importlib.import_module(f"tests.fuzz.{name}") for name in names if name.startswith("targets_")]
    return {target.name: target for module in modules for target in module.TARGETS}


def main() -> int:
    """Run the cases that the command line asks for; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--target", choices=sorted(targets()), help="one kind of file; all by default")
    parser.add_argument("--cases", type=int, default=100, help="cases of each target")
    parser.add_argument("--case", type=int, help="one case of one target again, by its number")
    parser.add_argument("--seconds", type=float, help="go on with the next seed until this time is over")
    parser.add_argument("--keep", type=Path, help="folder for the inputs; a temporary one by default")
    parser.add_argument("--report", type=Path, help="file to write all outcomes to, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no threads: a fork has only the one that called it
    chosen = {name: target for name, target in targets().items() if arguments.target in (None, name)}
    numbers = range(arguments.cases) if arguments.case is None else range(arguments.case, arguments.case + 1)
    outcomes: list[Outcome] = []
    start, seed = time.monotonic(), arguments.seed
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = arguments.keep or Path(temporary)
        while True:
            for target in chosen.values():
                outcomes += run(target, folder / f"seed-{seed}", seed=seed, cases=numbers)
            seed += 1
            if arguments.seconds is None or time.monotonic() - start > arguments.seconds:
                break
    if arguments.report:
        arguments.report.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return summary(outcomes)


def summary(outcomes: list[Outcome]) -> int:
    """Print the counts of each target and every failure; return 1 if there is one."""
    print(f"{'target':24} {'cases':>6} {'right':>6} {'refused':>8} {'failed':>7} {'most CPU s':>11}")
    for name in sorted({outcome.target for outcome in outcomes}):
        own = [outcome for outcome in outcomes if outcome.target == name]
        counts, slowest = Counter(outcome.verdict for outcome in own), max(outcome.cpu_seconds for outcome in own)
        row = f"{counts['right']:6} {counts['refused']:8} {counts['failed']:7} {slowest:11.2f}"
        print(f"{name:24} {len(own):6} {row}")
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    for outcome in failed:
        again = f"--target {outcome.target} --seed {outcome.seed} --case {outcome.case}"
        print(f"\n{again}\n  {outcome.change}\n  {outcome.detail}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
