"""Looking through tar files that others wrote: where each member's bytes are, without extracting anything.

Python's tarfile takes damage for the end of the file and trusts sizes; here damage is named, and nothing large is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..bad import BadVideo

BLOCK = 512
LONGEST_EXTENSION = 1 << 20  # bytes of a member's long name or PAX records
FILES, FOLDER, EXTENSIONS = (b"0", b"\0", b"7"), b"5", (b"x", b"g", b"L", b"K")


@dataclass(frozen=True)
class Member:
    """A regular file of a tar file: its name (forward slashes, no leading ``./``), where its bytes start,
    and how many.
    """

    name: str
    offset: int
    size: int


def members(shard: str, read: Callable[[int, int], bytes], length: int) -> Iterator[Member | BadVideo]:
    """Regular files in order, and what is wrong: links, devices and unsafe names are left out; at damage it ends.

    Args:
        shard: name of the tar file in messages.
        read: (offset, size) -> bytes, fewer at the end.
        length: bytes of the tar file.
    """
    place = 0
    extended: dict[str, str] = {}
    while True:
        header = read(place, BLOCK)
        if len(header) < BLOCK:
            yield BadVideo(shard, f"ends early, at byte {length}, without the mark of a tar file's end", "truncated")
            return
        if not header.strip(b"\0"):
            return
        try:
            kind, name, size = _parse(header)
            size = int(extended.get("size", size))
            if size < 0 or kind in EXTENSIONS and size > LONGEST_EXTENSION:
                raise ValueError(f"a size of {size} bytes")
        except ValueError as error:
            compressed = "; compressed? tar files must not be" if place == 0 else ""
            yield BadVideo(shard, f"damaged at byte {place}: {error}{compressed}", "corrupt_tar")
            return
        data, place = place + BLOCK, place + BLOCK + -(-size // BLOCK) * BLOCK
        name = extended.get("path", name)
        if data + size > length:
            yield BadVideo(
                f"{shard}[{name}]", f"ends early: {max(0, length - data)} of {size} bytes are there", "truncated"
            )
            return
        if kind in EXTENSIONS:
            try:
                extended.update(_extension(kind, read(data, size)))
            except ValueError as error:
                yield BadVideo(shard, f"damaged at byte {data}: {error}", "corrupt_tar")
                return
            continue
        extended = {}
        if (fault := _fault(kind, name)) is not None:
            shown = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in name)
            yield BadVideo(f"{shard}[{shown}]", fault, "unsafe_name")
        elif kind != FOLDER and not name.endswith("/"):
            yield Member("/".join(part for part in name.split("/") if part not in ("", ".")), data, size)


def _parse(header: bytes) -> tuple[bytes, str, int]:
    """(type, name, size); ValueError when the block is no header."""
    # Spaces stand in for the checksum while it is computed.
    if _number(header[148:156]) != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise ValueError("no header, or a wrong checksum")
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return header[156:157], _text(name), _number(header[124:136])


def _number(field: bytes) -> int:
    """Octal digits, or base 256 as GNU tar writes large sizes."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise ValueError(f"a number that is none: {field!r}")
    return int(digits or b"0", 8)


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    """Name and size of the next member, from a GNU long name or PAX records (``25 path=...\\n``)."""
    if kind == b"L":
        return {"path": _text(data.split(b"\0")[0])}
    found: dict[str, str] = {}
    place = 0
    while kind == b"x" and place < len(data) and data[place]:
        count = data[place : place + 10].split(b" ")[0]
        end = place + (int(count) if count.isdigit() else 0)
        name, separator, value = data[place + len(count) + 1 : end - 1].partition(b"=")
        if len(count) > 9 or not place + len(count) < end <= len(data) or not separator:
            raise ValueError("broken PAX records")
        if name in (b"path", b"size"):
            found[name.decode()] = _text(value)
        place = end
    return found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _fault(kind: bytes, name: str) -> str | None:
    if kind not in (*FILES, FOLDER):
        return "a link, a device or another special member"
    portable = name.replace("\\", "/")
    if portable.startswith("/") or ".." in portable.split("/") or portable[1:3] == ":/":
        return "a name that leads out of the folder"
    return "control characters in its name" if any(ord(letter) < 32 or ord(letter) == 127 for letter in name) else None
