"""What bytes are that should be text in UTF-8: another encoding, or a file of another kind."""

from __future__ import annotations

import codecs

# Encodings that Korean Windows and other systems save text in, in the order in which they are tried.
OTHER_ENCODINGS = ("cp949", "shift_jis", "gb18030", "cp1252")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What files begin with that are no text, whatever their name says. Some of it could be text: a byte that no text has
# follows then.
SIGNATURES = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip (.xlsx, .ods)", b"PAR1": "parquet", b"ARROW1": "arrow",
    b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\xd0\xcf\x11\xe0": "xls",
}  # fmt: skip


def other_kind(start: bytes) -> str:
    """The kind of a file that is no text, of its first 64 bytes; empty where it may be text."""
    has_control = any(byte < 9 or 14 <= byte < 32 for byte in start)
    for signature, kind in SIGNATURES.items():
        if start.startswith(signature) and (has_control or not signature.isascii()):
            return kind
    return ""


def is_half_empty(raw: bytes) -> bool:
    """Whether bytes are text of two bytes a letter: UTF-16 without its mark, which is UTF-8 of letters and NULs too."""
    return bool(utf16_order(raw)) and any(raw.replace(b"\0", b"").strip())


def utf16_order(raw: bytes) -> str:
    """Of which order, where a quarter of the bytes are NULs, most of them first or most of them second of two: a letter
    in 256 has its NUL in the other place.
    """
    even, odd = raw[::2].count(0), raw[1::2].count(0)
    if (even + odd) * 4 <= len(raw) or max(even, odd) <= 3 * min(even, odd):
        return ""
    return "utf-16be" if even > odd else "utf-16le"


def probable(raw: bytes) -> str | None:
    """The encoding that bytes which are not UTF-8 are probably in; None where it is none that is known here."""
    if is_half_empty(raw):
        return utf16_order(raw)
    for encoding in OTHER_ENCODINGS:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if all(letter.isprintable() or letter.isspace() for letter in text):
            return encoding
    return None
