"""Writes the pages that are not as the code gives them, and names them."""

from __future__ import annotations

from . import DOCS, pages


def main() -> None:
    for name, text in pages().items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
