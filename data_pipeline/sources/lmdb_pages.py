"""Check of the pages of an LMDB file before LMDB follows them.

LMDB maps a file into memory and trusts its pages: a damaged offset or page number kills the process by a signal. Here
the tree of keys is walked once, with bounds on everything that LMDB would follow. Only pages of keys are read, never
those of long values. A walk costs about a microsecond per key.

A page begins with its number (8 bytes), two bytes of padding, its flags and the ends of its free space (2 bytes each).
The offsets of its nodes follow; the nodes themselves grow from the end of the page. A node has the size of its value
(in a branch the number of a page), flags and the size of its key, then key and value.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

from data_pipeline.structure import InvalidStructure

_HEADER, _NODE, _META = struct.Struct("<QHHHH"), struct.Struct("<HHHH"), struct.Struct("<IIQQ48s48sQQ")
_DATABASE = struct.Struct("<IHHQQQQQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _IS_META = 1, 2, 8
_LONG_VALUE = 1
_NO_PAGE = 2**64 - 1
_PAGE_SIZES = frozenset(2**n for n in range(9, 17))
MAX_DEPTH = 32
"""Depth of LMDB's own stack; a tree of this depth has more keys than any file."""


class _Tree(NamedTuple):
    root: int
    depth: int
    entries: int
    pages: int
    page_size: int


def check_pages(path: Path) -> None:
    """Walk the tree of an LMDB file, so that LMDB can read it safely.

    Raises:
        InvalidStructure: the file is not LMDB, is shorter than it declares, or a page would lead LMDB astray; the
            message names file and byte.
    """
    with path.open("rb") as file:
        try:
            tree = _tree(file.fileno(), path)
            _walk(file.fileno(), tree)
        except (ValueError, struct.error) as error:
            raise InvalidStructure(
                f"{path}: cannot be read as an LMDB file ({error}). It is damaged; get it again or remove it."
            ) from error


def _tree(file: int, path: Path) -> _Tree:
    """Return the tree of the newest of the two descriptions at the beginning of the file."""
    first = _description(file, 0, None)
    second = _description(file, first[1].page_size, first[1].page_size)
    tree, size = max(first, second, key=lambda found: found[0])[1], os.fstat(file).st_size  # the first of equal ones
    if size < tree.pages * tree.page_size:
        raise InvalidStructure(
            f"{path}: truncated, it has {size:,} of {tree.pages * tree.page_size:,} bytes. Get it again or remove it."
        )
    return tree


def _description(file: int, byte: int, page_size: int | None) -> tuple[int, _Tree]:
    """Return the number of the transaction that wrote a description, and the tree that it describes."""
    page = os.pread(file, _HEADER.size + _META.size, byte)
    if len(page) < _HEADER.size + _META.size:
        raise ValueError(f"it ends at byte {byte + len(page)}, within its description")
    magic, version, _, _, free, main, last, transaction = _META.unpack_from(page, _HEADER.size)
    if not _HEADER.unpack_from(page)[2] & _IS_META or (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"no description of version {_VERSION} at byte {byte}")
    size = _DATABASE.unpack(free)[0]
    _, flags, depth, _, _, _, entries, root = _DATABASE.unpack(main)
    if size not in _PAGE_SIZES or size != (page_size or size):
        raise ValueError(f"byte {byte} says that a page has {size} bytes")
    if flags:
        raise ValueError(f"byte {byte} says that its keys are of kind {flags:#x}, not single words in order")
    return transaction, _Tree(root=root, depth=depth, entries=entries, pages=last + 1, page_size=size)


def _walk(file: int, tree: _Tree) -> None:
    """Follow every page of keys, each once, and count the keys."""
    level = [] if tree.root == _NO_PAGE else [tree.root]
    seen, keys, depth = set[int](), 0, 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"its pages are nested more than {MAX_DEPTH} deep")
        below: list[int] = []
        for number in level:
            if not 2 <= number < tree.pages or number in seen:
                raise ValueError(f"it leads to page {number} {'twice' if number in seen else 'outside the file'}")
            seen.add(number)
            found, children = _nodes(os.pread(file, tree.page_size, number * tree.page_size), number, tree)
            keys, below = keys + found, below + children if children else below
            if len(seen) + len(below) > tree.pages:
                raise ValueError(f"it leads to more than its {tree.pages} pages")
        if keys and below:
            raise ValueError("its keys lie at different depths")
        level = below
    if depth != tree.depth or keys != tree.entries:
        raise ValueError(f"it leads to {keys:,} keys at depth {depth}, but declares {tree.entries:,} at {tree.depth}")


def _nodes(page: bytes, number: int, tree: _Tree) -> tuple[int, list[int]]:
    """Return the number of keys and [] for a leaf, or 0 and the pages below for a branch."""
    byte = number * tree.page_size
    own, _, flags, lower, upper = _HEADER.unpack_from(page)
    if own != number or flags not in (_BRANCH, _LEAF):
        raise ValueError(f"byte {byte} begins a page {own} of kind {flags:#x}, not page {number} of keys")
    if not _HEADER.size <= lower <= upper <= len(page) or lower % 2:
        raise ValueError(f"the page at byte {byte} has its free space from {lower} to {upper}")
    places = struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", page, _HEADER.size)
    if len(places) < (2 if flags == _BRANCH else 1):
        raise ValueError(f"the page at byte {byte} has {len(places)} nodes")
    if any(not upper <= place <= len(page) - _NODE.size for place in places):
        raise ValueError(f"the page at byte {byte} has a node at {max(places)}, outside {upper} to {len(page)}")
    nodes = [_NODE.unpack_from(page, place) for place in places]
    if flags == _BRANCH:
        ends = [place + _NODE.size + key for place, (_, _, _, key) in zip(places, nodes, strict=True)]
    else:
        ends = [_end(page, place, byte + place, node, tree) for place, node in zip(places, nodes, strict=True)]
    if max(ends) > len(page):
        raise ValueError(f"a node of the page at byte {byte} ends at {max(ends)}, beyond the page")
    below = [low | high << 16 | kind << 32 for low, high, kind, _ in nodes]
    return (0, below) if flags == _BRANCH else (len(places), [])


def _end(page: bytes, place: int, byte: int, node: tuple[int, int, int, int], tree: _Tree) -> int:
    """Return the end of a leaf's node in its page; a long value must lie within the file."""
    low, high, kind, key = node
    size, end = low | high << 16, place + _NODE.size + key
    if kind == 0:
        return end + size
    if kind != _LONG_VALUE:
        raise ValueError(f"the node at byte {byte} is of kind {kind:#x}, not a row")
    start = int.from_bytes(page[end : end + 8], "little")
    if not 2 <= start < tree.pages or start * tree.page_size + _HEADER.size + size > tree.pages * tree.page_size:
        raise ValueError(f"the node at byte {byte} has {size:,} bytes on page {start}, not in the file")
    return end + 8
