"""The browser of the other pages."""

from __future__ import annotations

from ...show.conftest import chromium, opened

__all__ = ["chromium", "opened"]
