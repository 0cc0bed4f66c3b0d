"""Where the tests of the page run: with the extra `web`, playwright and a Chromium."""

import importlib.util

if not all(map(importlib.util.find_spec, ("gradio", "playwright"))):
    collect_ignore_glob = ["test_*.py"]
