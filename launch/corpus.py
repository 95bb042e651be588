"""`foundation build --corpus NAME`: a public corpus by name, in place of a source and a provenance."""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.building.build import LAUNCHERS
from data_pipeline.corpora.catalogue import CORPORA, corpus_build, fetch, find_corpus
from data_pipeline.store import lock

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HELP = """--corpus NAME stands for the source and the provenance of a public corpus; --download fetches its files first,
resuming an earlier call, into --folder (by default runs/corpora/NAME). Known: """ + ", ".join(CORPORA)


def expand_corpus(arguments: list[str]) -> list[str]:
    """Return the arguments after `build` with a corpus's name replaced by its options.

    Raises:
        ValueError: no such corpus, it cannot be downloaded, or several processes would download it.
        FileNotFoundError: its files are not in the folder.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--corpus")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--download", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    if known.corpus is None:
        return arguments
    folder = known.folder or Path("runs/corpora") / known.corpus
    if known.download:
        if any(name in os.environ for name in LAUNCHERS):
            raise ValueError("only one process may download: use --download once without mpirun, then build under it")
        corpus = find_corpus(known.corpus)
        with lock.hold(lock.inside(folder), folder):
            fetch(corpus, folder)
    source, provenance = corpus_build(known.corpus, folder)
    # before the other options, so that these can override it
    return [f"--source={_told(source)}", f"--provenance={_told(provenance)}", *rest]


def _told(config: "DataclassInstance") -> str:
    """Return the options of a config that differ from its defaults, as JSON."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    return json.dumps({name: value for name, value in values.items() if value != defaults[name]})
