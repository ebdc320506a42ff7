"""What HDF5 takes on trust: sizes in a file's structure, for which it makes room however large they are, and lengths of
texts, which it reads past their ends. Numbers of sections are those of the HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO

MAGIC = b"\x89HDF\r\n\x1a\n"
DATASPACE, LINK, DATATYPE, LAYOUT, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 0x1, 0x6, 0x3, 0x8, 0xC, 0x10, 0x11
"""Messages of object headers (IV.A.2)."""

SHARED = 0x2
VARIABLE_LENGTH = 9
"""Class of a datatype."""

MOST_OBJECTS, MOST_BLOCKS, MOST_TEXTS = 20_000, 1_000, 10_000
LARGEST_BLOCK = 2**26
"""Files with more are not looked at to the end; no header or heap is larger."""


class Fault(Exception):
    """What is wrong with a file, in words."""


def find_fault(file: BinaryIO, size: int) -> str:
    """Look through the groups of a file of `size` bytes; nothing where all that was understood is sound.

    Files with lengths of other than 64 bits, or with something before their superblock, are not looked at; nor are
    links and attributes in fractal heaps.
    """
    walk = _Walk(file, size)
    root = walk.root()
    try:
        walk.objects([] if root is None else [root])
    except Fault as fault:
        return str(fault)
    return ""


@dataclass
class _Walk:
    file: BinaryIO
    size: int
    _heaps: dict[int, dict[int, int]] = field(default_factory=dict)

    def root(self) -> int | None:
        """Address of the root group's header (II.A)."""
        head = self.read(0, 96)
        if len(head) < 96 or not head.startswith(MAGIC):
            return None
        version, sizes = head[8], head[13:15] if head[8] < 2 else head[9:11]
        if sizes != b"\x08\x08" or version > 3:
            return None
        at = {0: 64, 1: 68}.get(version, 36)
        return int.from_bytes(head[at : at + 8], "little")

    def objects(self, waiting: list[int]) -> None:
        """Look at these objects, and at all that are linked from them."""
        seen: set[int] = set()
        while waiting and len(seen) < MOST_OBJECTS:
            at = waiting.pop()
            if at in seen or at >= self.size:
                continue
            seen.add(at)
            found: dict[int, bytes] = {}
            with suppress(struct.error, IndexError):  # cut short: HDF5 itself says so
                for kind, body in self.messages(at):
                    found[kind] = body
                    if kind == SYMBOL_TABLE:
                        waiting += self.members(*struct.unpack_from("<QQ", body))
                    elif kind == LINK:
                        waiting += _linked(body)
                    elif kind == ATTRIBUTE:
                        self.check_attribute(body)
                if {DATATYPE, DATASPACE, LAYOUT} <= set(found):
                    self.check_dataset(found[DATATYPE], found[DATASPACE], found[LAYOUT])

    def messages(self, at: int) -> Iterator[tuple[int, bytes]]:
        """Kind and content of an object's messages (IV.A.1), shared ones left out."""
        head = self.read(at, 64)
        modern = head.startswith(b"OHDR")
        if modern:
            place = 6 + (16 if head[5] & 0x20 else 0) + (4 if head[5] & 0x10 else 0)
            width = 1 << (head[5] & 3)
            blocks = [(at + place + width, int.from_bytes(head[place : place + width], "little"))]
            prefix = 4 + (2 if head[5] & 0x4 else 0)
        elif head[:2] == b"\1\0":
            blocks, prefix = [(at + 16, struct.unpack_from("<I", head, 8)[0])], 8
        else:
            return
        for n, (start, length) in enumerate(blocks):  # grows on the way
            if start + length > self.size or length > LARGEST_BLOCK:
                raise Fault("an object header larger than the file")
            content, i = self.read(start, length), 0
            if modern and n:
                content, i = content[:-4], 4  # a checksum; a signature
            while i + prefix <= len(content) and len(blocks) < MOST_BLOCKS:
                kind, n_bytes, flags = struct.unpack_from("<BHB" if modern else "<HHB", content, i)
                body = content[i + prefix : i + prefix + n_bytes]
                if kind == CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", body))
                elif not flags & SHARED:
                    yield kind, body
                i += prefix + n_bytes

    def members(self, tree: int, heap: int) -> list[int]:
        """Headers of a group's members (III.A.1, III.B), whose names are in `heap` (III.D)."""
        head = self.read(heap, 32)
        if head.startswith(b"HEAP") and struct.unpack_from("<Q", head, 8)[0] > self.size:
            raise Fault("a heap of names larger than the file")
        found: list[int] = []
        nodes, seen = [tree], set[int]()
        while nodes and len(found) < MOST_OBJECTS:
            at = nodes.pop()
            if at in seen:
                continue
            seen.add(at)
            head = self.read(at, 24)
            n = int.from_bytes(head[6:8], "little")
            if head.startswith(b"TREE"):
                rest = self.read(at + 24, 8 + 16 * n)
                nodes += [struct.unpack_from("<Q", rest, 8 + 16 * k)[0] for k in range(n)]
            elif head.startswith(b"SNOD"):
                rest = self.read(at + 8, 40 * n)
                found += [struct.unpack_from("<Q", rest, 40 * k + 8)[0] for k in range(n)]
        return found

    def check_attribute(self, body: bytes) -> None:
        """Look at an attribute's texts (IV.A.2.m)."""
        version, flags, *sizes = struct.unpack_from("<BBHHH", body)
        if flags & 1:  # its datatype is elsewhere
            return
        at, parts = 9 if version == 3 else 8, []
        for n in sizes:
            parts.append(body[at : at + n])
            at += (n + 7) // 8 * 8 if version == 1 else n
        self.check_texts(parts[1], _n_elements(parts[2]), body[at:])

    def check_dataset(self, datatype: bytes, dataspace: bytes, layout: bytes) -> None:
        """Look at the texts of a dataset that is not in chunks (IV.A.2.i)."""
        if layout[0] not in (3, 4) or datatype[0] & 15 != VARIABLE_LENGTH:
            return
        if layout[1] == 0:
            self.check_texts(datatype, _n_elements(dataspace), layout[4:])
        elif layout[1] == 1:
            at, n_bytes = struct.unpack_from("<QQ", layout, 2)
            self.check_texts(datatype, _n_elements(dataspace), self.read(at, min(n_bytes, 16 * MOST_TEXTS)))

    def check_texts(self, datatype: bytes, n: int, raw: bytes) -> None:
        """Whether texts, or lists, are as long as they say (IV.A.2.d, III.E)."""
        if datatype[0] & 15 != VARIABLE_LENGTH:
            return
        if datatype[1] & 15 > 1:  # neither list nor text: HDF5 would not survive it
            raise Fault("a datatype that does not exist")
        item = struct.unpack_from("<I", datatype, 12)[0]
        for k in range(min(n, len(raw) // 16)):
            length, heap, number = struct.unpack_from("<IQI", raw, 16 * k)
            there = self.heap_objects(heap).get(number) if length else None
            if there is not None and length * item > there:
                raise Fault("a text longer than the place where it lies")

    def heap_objects(self, heap: int) -> dict[int, int]:
        """Number and length of what is in a collection of texts (III.E)."""
        if heap not in self._heaps:
            head = self.read(heap, 16)
            n_bytes = int.from_bytes(head[8:], "little") if head.startswith(b"GCOL") else 0
            content = self.read(heap, min(n_bytes, LARGEST_BLOCK))
            found, at = {}, 16
            while at + 16 <= len(content):
                number, length = struct.unpack_from("<H6xQ", content, at)
                if number == 0:  # the room that is left
                    break
                found[number] = length
                at += 16 + (length + 7) // 8 * 8
            self._heaps[heap] = found
        return self._heaps[heap]

    def read(self, at: int, n: int) -> bytes:
        """Bytes of the file; fewer at its end."""
        if at >= self.size:
            return b""
        self.file.seek(at)
        return self.file.read(min(n, self.size - at))


def _linked(body: bytes) -> list[int]:
    """Header of the object that a hard link leads to (IV.A.2.g)."""
    flags = body[1]
    at = 2
    if flags & 0x8:
        if body[at] != 0:
            return []
        at += 1
    at += (8 if flags & 0x4 else 0) + (1 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    at += width + int.from_bytes(body[at : at + width], "little")
    return [struct.unpack_from("<Q", body, at)[0]]


def _n_elements(dataspace: bytes) -> int:
    """Of a dataspace (IV.A.2.b)."""
    version, n_axes = dataspace[0], dataspace[1]
    at, n = 8 if version == 1 else 4, 1
    for axis in range(n_axes):
        n *= struct.unpack_from("<Q", dataspace, at + 8 * axis)[0]
    return n
