"""Recorded tensors and numbers of the published code, read by tests of every folder.

A missing file is a failure, never a skip: everything that these names point at is committed.
"""

from pathlib import Path

GOLDEN = Path(__file__).parent
#: Cases of the coarse model (micro, tiny, tinyhot), optimizer groups, and data operations (extras).
COARSE = GOLDEN / "coarse"
#: Cases of the detector (tiny v2, v2 sharp, v3), its units, geometry, texts and parameter groups.
FINE = GOLDEN / "fine"
#: Cases of METER with either image encoder.
METER = GOLDEN / "meter"
#: Cases of X-Decoder (micro, tiny), the backbone of Focal-L's form, texts and post-processing.
XDECODER = GOLDEN / "xdecoder"
#: Names, shapes and types of the tensors of the published base checkpoints.
KEYS = GOLDEN / "keys"
