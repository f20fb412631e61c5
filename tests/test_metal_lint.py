"""What Metal's compiler would refuse and C++ lets pass: address spaces, attributes, double, recursion, limits.
Address spaces are checked by a compiler that has them, the rest by reading the sources."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/metal"))

import emulated  # noqa: E402
import mutants  # noqa: E402
import traffic  # noqa: E402

KERNELS = ROOT / "maxsim_metal"
HEADERS = ["backward.h", "device.h", "forward.h", "params.h"]
METAL = sorted(KERNELS.glob("*.metal"))
SOURCES = {path.name: path.read_text() for path in (*METAL, *(KERNELS / name for name in HEADERS))}
CODE = {name: re.sub(r'"[^"]*"', '""', emulated.without_comments(text)) for name, text in SOURCES.items()}
BY_NAME = {kernel.name: kernel for path in METAL for kernel in emulated.kernels_of(path.read_text())}

needs_clang = pytest.mark.skipif(emulated.clang() is None, reason="neither ziglang nor clang is installed")


def complaints(sources: dict[str, str], directory: Path) -> str:
    """What a compiler with address spaces says of the kernels; empty where they are right."""
    for name, text in sources.items():
        # This compiler knows neither attribute, and takes none where Metal has them.
        text = re.sub(r'template\s*\[\[host_name\("\w+"\)\]\]\s*\[\[kernel\]\]', "template", text)
        (directory / name).write_text(text.replace("[[threadgroup(0)]]", ""))
    said = ""
    for path in METAL:
        flags = ["-x", "c++", "-std=c++17", "-fsyntax-only", "--target=arm64-apple-macos26", "-nostdinc++"]
        flags += ["-nostdlibinc", "-Wall", "-Wextra", "-Wdouble-promotion", "-Wno-unknown-attributes"]
        flags += ["-Wno-unknown-pragmas", f"-I{ROOT / 'tests/metal/spaces'}"]
        done = emulated.attempt([*emulated.clang(), *flags, directory / path.name])
        said += done.stderr
    return said


@needs_clang
def test_address_spaces(tmp_path):
    assert complaints(SOURCES, tmp_path) == ""


@needs_clang
@pytest.mark.parametrize(
    "file, right, wrong",
    [
        ("forward.h", "device const uchar* queries;", "const uchar* queries;"),
        ("forward.h", "threadgroup uchar* tile;", "device uchar* tile;"),
        ("forward.h", "threadgroup const Slot& query", "const Slot& query"),
        ("forward.h", "(threadgroup float*)memory", "(float*)memory"),
        (
            "device.h",
            "constant SideParams& side, device const uchar* extents",
            "SideParams& side, device const uchar* e",
        ),
        ("backward.h", "device uchar* gradient", "threadgroup uchar* gradient"),
        ("backward.h", "threadgroup float* sum =", "thread float* sum ="),
        ("backward.metal", "device float* norms", "device const float* norms"),
    ],
)
def test_a_wrong_address_space_is_refused(tmp_path, file, right, wrong):
    assert right in SOURCES[file]
    assert "error:" in complaints(SOURCES | {file: SOURCES[file].replace(right, wrong, 1)}, tmp_path)


@pytest.mark.parametrize("name", CODE)
def test_nothing_that_metal_lacks(name):
    code = CODE[name]
    lacking = r"\b(double|new|delete|virtual|try|throw|catch|goto|typeid|dynamic_cast|thread_local|printf|union|long)\b"
    assert not re.findall(lacking, code)
    assert "std::" not in code and not re.search(r"\[[&=]?\]\s*\(", code), "no standard library, no lambdas"
    assert not re.findall(r"(?<![\w.])(?:\d+\.\d*|\.\d+)(?:e[+-]?\d+)?(?![\dfe])", code), (
        "a literal without f is a double"
    )
    if name != "params.h":
        assert not re.findall(r"^\s*static\s+(?!assert)", code, re.MULTILINE)
        assert re.findall(r"^(?:constexpr|const) ", code, re.MULTILINE) == [], "program scope is constant's"


def test_no_recursion():
    calls: dict[str, set[str]] = {}
    for code in CODE.values():
        for found in re.finditer(r"^(?:\[\[kernel\]\] |inline )[\w:<>, ]+?[&*]? ?(\w+)\(", code, re.MULTILINE):
            body = code[found.end() : code.find("\n}", found.end())]
            calls.setdefault(found[1], set()).update(re.findall(r"(\w+)(?:<\w+>)?\(", body))
    assert {"score_item", "meet", "stage", "multiply", "document_gradient"} <= calls.keys()

    def reaches(name: str, goal: str, seen: set[str]) -> bool:
        fresh = calls.get(name, set()) - seen
        return goal in fresh or any(reaches(called, goal, seen | fresh) for called in fresh)

    assert [name for name in calls if reaches(name, name, set())] == []


def constants() -> dict[str, int]:
    """The integers that params.h names, for the host and for Metal."""
    values: dict[str, int] = {}
    found = re.findall(r"MAXSIM_CONSTANT int (\w+) = ([^;]+);", CODE["params.h"])
    found += re.findall(r"^  (k\w+) = (\d+),", CODE["params.h"], re.MULTILINE)
    for name, expression in found:
        values[name] = eval(expression, {}, values)  # sums and products of the ones before
    return values


def test_limits_of_the_hardware():
    known = constants()
    for name in ("kForwardMemoryBytes", "kBackwardMemoryBytes"):
        assert known[name] % 16 == 0 and known[name] <= 32768
    assert known["kThreads"] <= 1024 and known["kThreads"] % 32 == 0


def test_every_argument_is_bound_where_the_plan_binds_it():
    """Attributes are there, indices are unique, and an argument's name is that of its constant in params.h."""
    known = constants()
    other_names = {"grad_scores": "scores", "gradient": "gradient", "tokens": "queries", "norms": "query_norms"}
    other_names |= {"centroids": "table", "scales": "table", "bucket_weights": "second", "minima": "second"}
    assert len(BY_NAME) == sum(len(emulated.kernels_of(path.read_text())) for path in METAL)
    for kernel in BY_NAME.values():
        buffers = [argument for argument in kernel.arguments if argument.attribute == "buffer"]
        assert len({b.index for b in buffers}) == len(buffers) and all(b.index < 31 for b in buffers)
        for buffer in buffers:
            words = other_names.get(buffer.name, buffer.name).split("_")
            assert known["k" + "".join(word.capitalize() for word in words)] == buffer.index, buffer
            assert re.match(r"constant \w+&$|device [\w ]+\*$", buffer.type), buffer
        for argument in kernel.arguments:
            assert argument.attribute in {"buffer", "threadgroup", *emulated.BUILT_IN}
        memory = [argument for argument in kernel.arguments if argument.attribute == "threadgroup"]
        assert [m.index for m in memory] in ([], [0])


def test_the_plan_names_the_kernels_that_exist():
    named = set(re.findall(r'"(maxsim_\w+?)"', (KERNELS / "plan.cpp").read_text()))
    tiles = [f"{dtype}{suffix}" for dtype in ("f32", "f16", "bf16") for suffix in ("", "_argmax")]
    whole = {name for name in named if not name.endswith("_")}
    assert whole | {name + tile for name in named - whole for tile in tiles} == set(BY_NAME)


def test_exact_arithmetic_is_asked_for_before_any_function():
    """The compiler's default lets it assume that there is no NaN."""
    code = SOURCES["device.h"]
    for pragma in ("#pragma METAL fp math_mode(safe)", "#pragma METAL fp contract(off)"):
        assert 0 < code.find(pragma) < code.find("inline ")
    assert '#include "device.h"' in SOURCES["forward.h"] and '#include "device.h"' in SOURCES["backward.h"]


def test_build_toml_lists_every_file():
    sections = tomllib.loads((ROOT / "build.toml").read_text())["kernel"]
    assert {p for p in sections["maxsim_metal"]["src"] if p.startswith("maxsim_metal/")} == {
        f"maxsim_metal/{path.name}" for path in KERNELS.iterdir()
    }
    assert sections["maxsim_cpu_in_metal"]["src"] == sections["maxsim_cpu"]["src"]
    for section in ("maxsim_metal", "maxsim_cpu_in_metal"):
        assert sections[section]["backend"] == "metal"
        assert [p for p in sections[section]["src"] if not (ROOT / p).is_file()] == []


def test_the_table_of_what_is_moved_is_what_was_counted():
    results = json.loads(traffic.RESULTS.read_text())
    page = (ROOT / "docs/metal.md").read_text()
    assert "\n".join(traffic.table(results)) in page
    for name, counted in results.items():
        assert counted["documents_read"] == counted["documents_bytes"], name
        assert counted["scores_written"] == counted["scores_bytes"], name
        assert counted["argmax_written"] == counted["workspace_written"] == 0, name
    small = traffic.WORKLOADS["SmallRerank"]
    assert traffic.count(emulated.load(emulated.build(emulated.OBSERVED)), small) == results["SmallRerank"]


def test_the_page_counts_the_mutants():
    assert f"has {len(mutants.MUTANTS + mutants.HOST_MUTANTS)} small edits" in (ROOT / "docs/metal.md").read_text()
