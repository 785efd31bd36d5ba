"""The library that pages carry is the one that was published, and a page forbids everything that is not in it."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from lora_train.instrument.show.page import FOLDER, document

# Of uplot 1.6.32; python -m benchmarks.vendor_page prints them.
PUBLISHED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_library_is_the_published_one(name):
    assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == PUBLISHED[name]


def test_nothing_else_is_carried():
    assert {path.name for path in (FOLDER / "vendor").iterdir()} == set(PUBLISHED)


def test_the_policy_names_every_script_and_no_other_source():
    page = document("</title><b>", {"x": "</script>"}, ["compare.js"])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#x27;", "'")
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 6
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    fed = document("x", {}, ["compare.js"], live="new EventSource('x')")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', fed)
    assert "connect-src &#x27;self&#x27;;" in policy
    assert base64.b64encode(hashlib.sha256(b"new EventSource('x')").digest()).decode() in policy
    assert "<title>&lt;/title&gt;&lt;b&gt;</title>" in page
