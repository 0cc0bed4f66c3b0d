"""Gradio, without its telemetry."""

from __future__ import annotations

import importlib
import os
from typing import Any

# Read when Gradio is imported: no telemetry, and no look for a newer version.
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")

#: The package `gradio`, which is not installed where types are checked.
gr: Any = importlib.import_module("gradio")
