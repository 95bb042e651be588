"""Structures of files or data sets, in order, without their labels; a frame that is refused keeps its place."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.loading.datasets import Frames
from data_pipeline.plain_files import is_dataset
from data_pipeline.plain_files.finding import find_files
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import open_manifest
from data_pipeline.structure import InvalidStructure, Structure

ANY_FORMAT = "other"
"""Kind of a file whose format ASE finds out."""
READ_ELSEWHERE = ("aselmdb", "mace", "deepmd")
"""Kinds of files that ASE does not read."""
DIGEST = "sha256"


class Inputs:
    """Files or data sets that were found, but not yet read."""

    def __init__(self, words: Sequence[Path]) -> None:
        """Find the files that words mean.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file is of a format that has to be built into a data set first.
        """
        self._datasets = [path for path in words if is_dataset(path)]
        self._files = find_files([str(path) for path in words if not is_dataset(path)]).files
        for file in self._files:
            if file.kind in READ_ELSEWHERE:
                raise ValueError(
                    f"{file.path}: ASE does not read this format; make a data set of it, `foundation build --data "
                    f"{file.path} --out FOLDER`, and give the folder"
                )

    def fingerprint(self) -> str:
        """Return a checksum of the content."""
        digest = hashlib.sha256()
        for path in self._datasets:
            digest.update(open_manifest(path).fingerprint.encode())
        for file in self._files:
            with file.path.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, DIGEST).digest() + file.slice.encode())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Structure | InvalidStructure]:
        """Yield every structure, or the reason why it is refused.

        Raises:
            InvalidStructure: a file cannot be read further.
        """
        for path in self._datasets:
            manifest = open_manifest(path)
            for split in manifest.splits:
                yield from Frames(manifest, split)
        for kind in dict.fromkeys(file.kind for file in self._files):
            files = [file for file in self._files if file.kind == kind]
            source = AseFiles(
                files=tuple(str(file.path) for file in files),
                format=None if kind == ANY_FORMAT else kind,
                slices=tuple(file.slice for file in files),
                labels="none",
                charged="keep",
            )
            for part in source.parts():
                yield from part.read()
