"""Layout of the Rust crate: one direction of imports, and where `unsafe` is allowed."""

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
    "masks": {"root", "image"},
    "transform": {"root", "jpeg", "image", "resize", "normalize", "masks"},
    "loader": {"root", "tokenizer", "jpeg", "image", "resize", "normalize", "masks", "transform"},
}
#: Folders of which some files import one another in circles.
CIRCULAR = {"attention", "image", "normalize", "py", "resize", "tokenizer", "transform"}
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


Module = tuple[str, ...]


def module_of(path: Path, root: Path = RUST) -> Module:
    """`rust/jpeg/block.rs` -> `("jpeg", "block")`; `rust/jpeg/mod.rs` -> `("jpeg",)`."""
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "mod" else parts


def paths_of(tree: str) -> Iterator[list[str]]:
    """`a::{b, c::{self, d}}` -> `[a, b]`, `[a, c]`, `[a, c, d]`."""
    before, is_group, group = tree.partition("{")
    if not is_group:
        yield [name for name in re.findall(r"\w+", before.split(" as ")[0]) if name != "self"]
        return
    # Commas of inner groups do not separate entries.
    depth, entries = 0, [""]
    for letter in group.rpartition("}")[0]:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            entries.append("")
        else:
            entries[-1] += letter
    for entry in filter(str.strip, entries):
        for path in paths_of(entry):
            yield re.findall(r"\w+", before) + path


def imports_of(code: str, own: Module, modules: set[Module]) -> set[Module]:
    """List the modules that the paths of a module name."""
    code = re.sub(r"pub\((in [^)]*|super|crate)\)", "", code)
    used = r"\buse\s+([^;]+);"
    paths = [path for tree in re.findall(used, code) for path in paths_of(tree)]
    code = re.sub(used, "", code)
    paths += [path.split("::") for path in re.findall(r"(?<![\w:])\w+(?:::\w+)+", code)]
    found = set()
    for first, *rest in paths:
        if first == "crate":
            full = (*rest,)
        elif first == "super":
            above = next((at for at, name in enumerate(rest) if name != "super"), len(rest))
            full = (*own[: -1 - above], *rest[above:])
        elif (*own, first) in modules:
            full = (*own, first, *rest)
        else:
            continue  # Of another crate, or a type.
        named = (full[:end] for end in range(len(full), 0, -1))
        found |= {next((module for module in named if module in modules), own)}
    return found - {own}


def circle_among(codes: dict[Module, str]) -> list[str]:
    """Find modules that import one another in a circle, the first one again at the end."""
    modules = set(codes)
    graph = {own: imports_of(code, own, modules) for own, code in codes.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["::".join(module) for module in error.args[1]]
    return []


def test_circles_are_found():
    tree = "super::{a, b::{self, C}, d::e as f}"
    assert list(paths_of(tree)) == [
        ["super", "a"],
        ["super", "b"],
        ["super", "b", "C"],
        ["super", "d", "e"],
    ]
    codes: dict[Module, str] = {
        ("x",): "mod a; mod b; use std::fmt; pub use b::C; fn f() { a::g(); }",
        ("x", "a"): "use super::b::{self, C};",
        ("x", "b"): "pub(in crate::x) struct C; fn g() { other::h(a::i); }",
    }
    assert circle_among(codes) == []
    for path in ("super::a::f()", "crate::x::a::f()", "super::super::x::f()", "use crate::x::T;"):
        assert len(set(circle_among({**codes, ("x", "b"): path}))) >= 2, path
    assert circle_among({**codes, ("x", "b", "y"): "use super::super::a;"}) == []
    inner: dict[Module, str] = {("x", "b"): "y::f()", ("x", "b", "y"): "use super::super::a;"}
    assert sorted(set(circle_among({**codes, **inner}))) == ["x::a", "x::b", "x::b::y"]


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "py"])
def test_files_of_a_folder_import_in_one_direction(folder):
    files = {module_of(path): code_of(path) for path in MODULE_FILES if folder_of(path) == folder}
    assert files
    circle = circle_among(files)
    # A folder without circles is no longer an exception.
    assert bool(circle) == (folder in CIRCULAR), " -> ".join(circle)


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
