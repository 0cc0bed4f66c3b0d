"""Our JPEG decoder against libjpeg-turbo's, value by value, with the encoders that are here.

`python -m tests.jpeg_corpus` compares many more files, and counts them.
"""

import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fiber import DecodeError, _core
from tests.jpeg_corpus import alter
from tests.jpeg_corpus.compare import (
    DAMAGES,
    by_pillow,
    by_simplejpeg,
    differences,
    instructions,
)
from tests.jpeg_corpus.encoders import available
from tests.jpeg_corpus.encoders import by_pillow as encode
from tests.jpeg_corpus.pictures import generated
from tests.jpeg_corpus.plans import REFUSED, File, files
from tests.peer_versions import needs

ENCODERS, _ = available()
SETS = instructions()


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_values_are_those_of_libjpeg_turbo(encoder):
    photos = [generated(seed) for seed in range(2)]
    counts = Counter()
    for file in files({encoder: ENCODERS[encoder]}, photos, most=4):
        if file.features & DAMAGES:
            continue
        found = list(differences(file, SETS, "simplejpeg" in ENCODERS))
        assert not found, (file.name, found)
        counts.update(file.features)
    assert counts.total() > 20


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_damaged_files_are_filled_as_by_libjpeg_turbo(encoder):
    pytest.importorskip("simplejpeg", reason="simplejpeg, which gives what is filled in, is absent")
    photos = [generated(seed) for seed in range(2)]
    tried = 0
    for file in files({encoder: ENCODERS[encoder]}, photos, most=4):
        if file.features & DAMAGES:
            tried += 1
            found = list(differences(file, SETS, True))
            assert not found, (file.name, found)
    if not tried:
        pytest.skip(f"the plan damages no file of {encoder}")


@pytest.mark.parametrize("feature", sorted(REFUSED))
def test_the_corpus_tells_what_is_not_refused_as_unsupported(feature):
    data = encode(generated(0, 16, 16))
    refused = alter.arithmetic(data) if feature == "arithmetic" else alter.of_12_bits(data)
    for content, said in ((data, "decoded"), (refused[:20], "refused as corrupt"), (refused, "")):
        found = list(differences(File("", "", frozenset({feature}), content), SETS, False))
        assert len(found) == (len(SETS) + 1 if said else 0)
        assert all(said in text for text in found)


def test_the_corpus_has_every_orientation_and_what_is_refused():
    photos = [generated(seed) for seed in range(2)]
    counts = Counter()
    for file in files({"Pillow": encode}, photos):
        counts.update(file.features)
    wanted = [f"orientation {number}" for number in range(1, 9)] + sorted(REFUSED)
    assert all(counts[name] >= 20 for name in wanted), counts


def test_all_sets_of_instructions_were_tried():
    assert SETS[0] == "scalar"
    assert "'mmx'; expected 'scalar'" in refusal(b"", instructions="mmx", error=ValueError)


def refusal(data: bytes, error: type[Exception] = DecodeError, **options) -> str:
    with pytest.raises(error) as caught:
        _core.decode_jpeg(data, **options)
    return str(caught.value)


def with_frame(data: bytes, at: int, value: bytes) -> bytes:
    """Change bytes of the frame header, counted from its marker."""
    start = next(start for marker, start, _ in alter.segments(data) if marker in (0xC0, 0xC2))
    return data[: start + at] + value + data[start + at + len(value) :]


@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        (0xC3, "lossless"),
        (0xC5, "hierarchical"),
        (0xC9, "arithmetic"),
        (0xCA, "arithmetic"),
        (0xCB, "arithmetic"),
    ],
)
def test_other_processes_are_unsupported(marker, reason):
    data = with_frame(encode(generated(0, 16, 16)), 1, bytes([marker]))
    text = refusal(data)
    assert "unsupported" in text and reason in text and f"FF {marker:02X}" in text
    with pytest.raises(DecodeError, match="unsupported"):
        _core.decode_image(data)


def test_other_depths_components_and_samplings_are_unsupported():
    data = encode(generated(0, 16, 16))
    assert "unsupported: 12 bits per sample; expected 8" in refusal(with_frame(data, 4, b"\x0c"))
    # Three to two: neither divides the other.
    assert "unsupported: sampling" in refusal(with_frame(data, 11, b"\x31\x00\x02\x21"))
    assert "sampling factors 0 x 1" in refusal(with_frame(data, 11, b"\x01"))
    bare = alter.without(data, 0xC0)
    two = b"\xff\xc0" + struct.pack(">HBHHB", 14, 8, 16, 16, 2) + b"\x01\x11\x00\x02\x11\x00"
    assert "unsupported: 2 components; expected 1, 3 or 4" in refusal(bare[:2] + two + bare[2:])


def test_limits_are_told_from_the_header():
    data = with_frame(encode(generated(0, 16, 16)), 5, b"\xff\xff\xff\xff")
    assert _core.read_jpeg_header(data) == (65535, 65535, 1)
    assert "65535 x 65535 pixels; expected at most" in refusal(data)
    assert "16 x 16 pixels; expected at most 255" in refusal(
        encode(generated(0, 16, 16)), max_pixels=255
    )


def test_scans_without_end_are_refused():
    data = encode(generated(0, 16, 16), progressive=True)
    start = next(start for marker, start, _ in alter.segments(data) if marker == 0xDA)
    end = data.index(b"\xff", alter.data_start(data))
    many = data[:end] + data[start:end] * 500 + b"\xff\xd9"
    assert "more than 500 scans" in refusal(many)
    few = data[:end] + data[start:end] * 3 + b"\xff\xd9"
    assert np.asarray(_core.decode_jpeg(few)[0]).shape == (16, 16, 3)


@needs("pillow", "13", "its libjpeg-turbo decoded scans out of order differently")
@pytest.mark.parametrize("instructions", SETS)
def test_progressive_scans_out_of_order_give_the_same_pixels_and_are_named(instructions):
    """Scans that come twice write over coefficients that are known; those left out are guessed."""
    start, scans = alter.scans(encode(generated(1, 70, 90), progressive=True, quality=90))
    assert len(scans) == 10

    def reason_of(*chosen: bytes) -> str:
        data = b"".join([start, *chosen, b"\xff\xd9"])
        picture, reason = _core.decode_jpeg(data, instructions=instructions)
        assert np.array_equal(np.asarray(picture), by_pillow(data))
        assert (reason is None) == (by_simplejpeg(data) is not None), reason
        return reason or ""

    assert reason_of(*scans) == ""
    named = set()
    for number, scan in enumerate(scans):
        reason_of(*scans[:number], scan, *scans[number:])
        if number > 0:
            assert reason_of(*scans[:number]) == ""
        if "scans out of order" in reason_of(*scans[:number], *scans[number + 1 :], scan):
            named.add(number)
    # The upper bits of 1 and 4 are refined by 5, 8 and 9; without them these go on from nothing.
    assert {1, 4, 5} <= named
    # Coefficients before any DC.
    assert "scans out of order" in reason_of(*scans[1:5], scans[0])


@pytest.mark.parametrize("instructions", SETS)
def test_progressive_scans_of_other_bands_and_bits_give_the_same_pixels(instructions):
    """Codes that a scan was not made for lead past its band, and values out of 16 bits."""
    start, scans = alter.scans(encode(generated(1, 70, 90), progressive=True, quality=90))
    first = [number for number, scan in enumerate(scans) if alter.band(scan) == (1, 5, 0, 2)]
    again = [number for number, scan in enumerate(scans) if alter.band(scan)[2] > 0]
    assert first and len(again) > 3
    changed = [
        # Known coefficients become zero, and so are not refined.
        [*scans[: max(first) + 1], alter.with_band(scans[first[0]], 1, 5, 0, 13), *scans[5:]],
        *(
            [*scans[:number], alter.with_band(scan, 1, end, *alter.band(scan)[2:])]
            for number, scan in enumerate(scans)
            for end in (1, 2, 9, 30, 62)
            if number in again and alter.band(scan)[0] > 0
        ),
    ]
    for chosen in changed:
        data = b"".join([start, *chosen, b"\xff\xd9"])
        picture, _ = _core.decode_jpeg(data, instructions=instructions)
        assert np.array_equal(np.asarray(picture), by_pillow(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_filled_in_says_why(progressive):
    data = encode(generated(0, 64, 64), progressive=progressive)
    whole, reason = _core.decode_jpeg(data)
    assert reason is None
    cut, reason = _core.decode_jpeg(data[:-100])
    assert reason == "JPEG: the data ends before the last block, the end marker is missing"
    assert not np.array_equal(np.asarray(cut), np.asarray(whole))
    assert np.array_equal(np.asarray(cut)[:8], np.asarray(whole)[:8]) or progressive
    _, reason = _core.decode_jpeg(data[:-2])
    assert reason == "JPEG: the end marker is missing"
    with pytest.raises(DecodeError, match="the data ends before the last block"):
        _core.decode_image(data[: len(data) // 2])


def test_data_that_belong_to_no_block_are_named_unless_zero():
    data = encode(generated(0, 40, 40))
    assert _core.decode_jpeg(data[:-2] + b"\0\0\0" + data[-2:])[1] is None
    assert _core.decode_jpeg(data[:-2] + b"\1\2\3" + data[-2:])[1] == ("JPEG: extra data")


def test_restart_markers_out_of_order_are_named():
    data = encode(generated(0, 64, 64), restart_marker_blocks=2)
    assert _core.decode_jpeg(data)[1] is None
    first = data.index(b"\xff\xd0", alter.data_start(data))
    wrong = data[: first + 1] + b"\xd4" + data[first + 2 :]
    assert "restart markers out of order" in (_core.decode_jpeg(wrong)[1] or "")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_and_not_applied(orientation, order):
    data = encode(generated(0, 9, 20))
    turned = alter.with_orientation(data, orientation, order)
    assert _core.read_jpeg_header(turned) == (9, 20, orientation)
    first, second = (np.asarray(_core.decode_jpeg(each)[0]) for each in (data, turned))
    assert np.array_equal(first, second)


def test_malformed_orientation_is_none():
    data = encode(generated(0, 9, 20))
    for orientation in (0, 9, 65535):
        assert _core.read_jpeg_header(alter.with_orientation(data, orientation, "<"))[2] == 1
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(generated(0, 9, 20), exif=exif)
    start, end = next((s, e) for marker, s, e in alter.segments(whole) if marker == 0xE1)
    for _ in range(300):
        changed = bytearray(whole)
        for at in rng.integers(start + 4, end, 3):
            changed[at] = rng.integers(0, 256)
        height, width, orientation = _core.read_jpeg_header(bytes(changed))
        assert (height, width) == (9, 20) and 1 <= orientation <= 8


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_rows_up_to_a_stop(options, divisor):
    data = encode(generated(1, 70, 90), **options)
    whole = np.asarray(_core.decode_jpeg(data, divisor=divisor)[0])
    assert np.array_equal(whole, by_pillow(data, divisor))
    for stop in (0, 1, 5, 8, whole.shape[0] - 1, whole.shape[0], 1000):
        part, reason = _core.decode_jpeg(data, divisor=divisor, stop_row=stop)
        assert reason is None and np.array_equal(np.asarray(part), whole[:stop])
    assert "divisor: 3; expected 1, 2, 4 or 8" in refusal(data, ValueError, divisor=3)


def test_tables_of_the_picture_before_are_not_used():
    """Tables are kept by content: pictures with other ones in turn come out right."""
    pictures = [
        encode(
            generated(seed, 33, 47), optimize=seed % 2 == 1, progressive=seed % 3 == 2, quality=q
        )
        for seed in range(6)
        for q in (30, 95)
    ]
    for data in pictures * 2:
        assert np.array_equal(np.asarray(_core.decode_jpeg(data)[0]), by_pillow(data))


@pytest.mark.slow
def test_the_command_counts_and_finds_no_difference():
    command = [sys.executable, "-m", "tests.jpeg_corpus", "--files", "300", "--each", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "0 with differences" in ran.stdout, ran.stdout[-2000:] + ran.stderr
