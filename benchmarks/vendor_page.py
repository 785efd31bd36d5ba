"""Renews the chart library that the pages carry, or checks that it is what npm published.

    python -m benchmarks.vendor_page            writes instrument/show/page/vendor/ from the package (npm is needed)
    python -m benchmarks.vendor_page --check    compares instead; 1 if a file differs

Another release: change VERSION, run it, put the hashes it prints into tests/instrument/show/page/test_vendor.py, and
look at a page.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.6.32"
FILES = {
    "uPlot.iife.min.js": "package/dist/uPlot.iife.min.js",
    "uPlot.min.css": "package/dist/uPlot.min.css",
    "LICENSE": "package/LICENSE",
}
FOLDER = Path(__file__).resolve().parent.parent / "instrument" / "show" / "page" / "vendor"


def published() -> dict[str, bytes]:
    """The files as npm has them; npm checks the package against the registry's own hash."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", f"uplot@{VERSION}"], cwd=folder, check=True, capture_output=True)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            members = {name: package.extractfile(inside) for name, inside in FILES.items()}
            return {name: member.read() for name, member in members.items() if member is not None}


def main() -> int:
    """Writes or compares, and prints each file's hash."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vendor_page", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check, differing = parser.parse_args().check, 0
    for name, content in published().items():
        path = FOLDER / name
        if check:
            differing += not path.is_file() or path.read_bytes() != content
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        print(hashlib.sha256(content).hexdigest(), name)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
