"""Layout of the Rust crate: one direction of imports, and where `unsafe` is allowed."""

import re
from pathlib import Path

import pytest

RUST = Path(__file__).parents[2] / "rust"
#: For each folder, the folders that it may import. Files of the root import one another only.
MAY_IMPORT = {
    "root": set(),
    "attention": {"root"},
    "tokenizer": {"root"},
    "jpeg": {"root"},
    "image": {"root", "jpeg"},
    "resize": {"root", "image"},
    "normalize": {"root", "image", "resize"},
    "transform": {"root", "jpeg", "image", "resize", "normalize"},
    "loader": {"root", "tokenizer", "jpeg", "image", "resize", "normalize", "transform"},
}
FILES = [path for path in sorted(RUST.rglob("*.rs")) if "fuzz" not in path.parts]
MODULE_FILES = [path for path in FILES if path.name not in ("lib.rs", "fixtures.rs")]


def folder_of(path: Path) -> str:
    """`rust/jpeg/simd/avx2.rs` -> `jpeg`; `rust/error.rs` and `rust/simd/` -> `root`."""
    parts = path.relative_to(RUST).parts
    return parts[0] if len(parts) > 1 and parts[0] != "simd" else "root"


def code_of(path: Path) -> str:
    """Return the source without comments and without its unit tests."""
    source = re.split(r"#\[cfg\(test\)\]\s*(?:pub\(crate\) )?mod ", path.read_text())[0]
    return re.sub(r"//[^\n]*", "", source)


def imported_folders(code: str) -> set[str]:
    """List the folders that `crate::...` paths name."""
    modules = set(re.findall(r"\bcrate::(\w+)", code))
    for group in re.findall(r"\bcrate::\{([^}]*)\}", code):
        modules |= {name.split("::")[0].strip() for name in group.split(",")}
    return {name if name in MAY_IMPORT or name == "py" else "root" for name in modules}


def test_paths_and_groups_are_found():
    code = "use crate::{Error, try_alloc};\nuse crate::jpeg::{self, Scale};\ncrate::py::x();"
    assert imported_folders(code) == {"root", "jpeg", "py"}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_in_one_direction(folder):
    files = [path for path in MODULE_FILES if folder_of(path) == folder]
    assert files
    for path in files:
        wrong = imported_folders(code_of(path)) - MAY_IMPORT[folder] - {folder}
        assert not wrong, f"{path.relative_to(RUST)} imports {sorted(wrong)}"


def test_unsafe_code_stays_in_its_places():
    def is_allowed(path: Path) -> bool:
        relative = path.relative_to(RUST)
        return (
            relative.parts[0] == "attention"
            or "simd" in relative.parts[:-1]
            or relative.as_posix() in ("py/arrays.rs", "loader/buffer_pool.rs")
        )

    found = {path for path in FILES if re.search(r"\bunsafe\b", code_of(path))}
    assert found
    assert [str(path) for path in found if not is_allowed(path)] == []


def test_unsafe_functions_say_what_callers_guarantee():
    """Clippy asks for it in public functions only, and of `unsafe` blocks any SAFETY comment."""
    found, undocumented = 0, []
    for path in FILES:
        lines = path.read_text().splitlines()
        in_unsafe_trait = False
        for number, line in enumerate(lines):
            # The text of an unsafe trait holds for its functions.
            if re.match(r"(pub(\(\w+\))? )?(unsafe )?(trait|impl|macro_rules!)\b", line):
                in_unsafe_trait = bool(re.search(r"\bunsafe (trait|impl)\b", line))
            if not re.search(r"\bunsafe (extern \"C\" )?fn \$?\w", line) or in_unsafe_trait:
                continue
            found += 1
            above = number - 1
            while re.match(r"\s*(///|#\[)", lines[above]):
                above -= 1
            # Of a macro that defines methods of an unsafe trait, the comment in the body tells.
            documented = any("# Safety" in text for text in lines[above + 1 : number])
            if not documented and "$name($this" not in line:
                undocumented.append(f"{path.relative_to(RUST)}:{number + 1}")
    assert found > 20
    assert undocumented == []


def test_safety_comments_state_their_reason():
    comments = [
        (path, match)
        for path in FILES
        for match in re.findall(r"// SAFETY: ([^\n]*)", path.read_text())
    ]
    assert len(comments) > 100
    elsewhere = r"(see|as) above|likewise|^guaranteed by the caller\.?$"
    assert [(str(path), text) for path, text in comments if re.search(elsewhere, text)] == []
