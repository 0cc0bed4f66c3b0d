"""Tile size tables: which line is used, and errors for invalid tables."""

from __future__ import annotations

import json

import pytest
import torch

from fiber.kernels.runtime import tiles
from fiber.kernels.runtime.tiles import tile

GPU = torch.device("cuda")
SIZES = {"rows": 32, "piece": 64, "num_warps": 8, "num_stages": 3}
LINE = {
    "kernel": "window_forward",
    "architecture": "sm_90",
    "triton": "3.9",
    "window": 12,
    "head_width": 32,
    "dtype": "bfloat16",
    "tile": SIZES,
}


@pytest.fixture
def users(tmp_path, monkeypatch):
    """Mock a GPU, and return the path of the user's table."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiles, "architecture", lambda d: "sm_90" if d.type == "cuda" else "none")
    monkeypatch.setattr(tiles, "triton_minor", lambda: "3.9")
    for cached in (tiles._lookup, tiles.users_lines):
        cached.cache_clear()
    table = tmp_path / "fiber" / "tiles.json"
    table.parent.mkdir()
    yield table
    for cached in (tiles._lookup, tiles.users_lines):
        cached.cache_clear()


def sizes(window=12, device=GPU, dtype=torch.bfloat16):
    return tile("window_forward", window=window, head_width=32, dtype=dtype, device=device)


def test_package_table_is_the_default(users):
    assert sizes() == sizes(device=torch.device("cpu"))
    assert tiles.describe_tables(GPU).startswith("the package's table; `fiber tune`")


def test_matching_line_of_the_users_table_takes_precedence(users):
    users.write_text(tiles.written([LINE]))
    assert sizes() == SIZES
    for other in (sizes(window=7), sizes(dtype=torch.float16), sizes(device=torch.device("meta"))):
        assert other != SIZES
    assert (
        tiles.describe_tables(GPU)
        == f"{users} (matching entries: 1); the package's table for all other calls"
    )


def test_lines_for_a_different_gpu_or_triton_are_ignored(users):
    others = [LINE | {"architecture": "sm_80"}, LINE | {"triton": "3.7"}]
    users.write_text(tiles.written(others))
    assert sizes() != SIZES
    assert "none of the 2 entries" in tiles.describe_tables(GPU)


def test_tried_sizes_override_every_table(users):
    users.write_text(tiles.written([LINE]))
    tried = SIZES | {"rows": 16}
    with tiles.trying({"window_forward": tried}):
        assert sizes() == tried
    with tiles.trying({}):
        assert sizes() not in (SIZES, tried)
    assert sizes() == SIZES


BROKEN = {
    "no JSON": ("[\n  {]\n", "line 2"),
    "no list": ("{}", "line 1: expected a JSON list"),
    "no object": ("[\n\n 3]", "line 3: expected an object, got 3"),
    "unknown key": ('[{"kernel": "sum_parts",\n"windows": 12}]', "line 1: unknown key 'windows'"),
    "type": ([LINE | {"window": "12"}], "line 2: window: expected int, got '12'"),
    "no chip": (
        [{k: v for k, v in LINE.items() if k != "architecture"}],
        "line 2: missing key 'architecture'",
    ),
    "kernel": ([LINE | {"kernel": "windows"}], "line 2: unknown kernel 'windows'"),
    "names": ([LINE | {"tile": {"rows": 16}}], "line 2: tile: expected keys"),
    "odd": ([LINE | {"tile": SIZES | {"rows": 24}}], "line 2: rows: expected a power of two"),
    "true": (
        [LINE | {"tile": SIZES | {"num_warps": True}}],
        "line 2: num_warps: expected a power of two, got True",
    ),
    "zero": (
        [LINE | {"tile": SIZES | {"num_warps": 0}}],
        "line 2: num_warps: expected a power of two, got 0",
    ),
}


@pytest.mark.parametrize(("content", "expected"), BROKEN.values(), ids=BROKEN)
def test_invalid_table_error_names_the_line(users, content, expected):
    text = content if isinstance(content, str) else tiles.written(content)
    users.write_text(text)
    for read in (sizes, lambda: tiles.describe_tables(GPU)):
        with pytest.raises(ValueError) as error:
            read()
        assert f"{users}, {expected}" in str(error.value)
        assert "fiber tune" in str(error.value)


def test_package_table_is_valid():
    for line in tiles.packaged_lines():
        assert tiles._fault({"architecture": "sm_90", "triton": "3.9"} | line) is None


def test_merged_replaces_lines_for_the_same_calls():
    other = LINE | {"architecture": "sm_80"}
    new = LINE | {"tile": SIZES | {"rows": 16}}
    lines = tiles.merged([LINE, other], [new])
    assert lines == [other, new]
    assert json.loads(tiles.written(lines)) == lines
