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
import lint  # noqa: E402
import mutants  # noqa: E402
import traffic  # noqa: E402

KERNELS = ROOT / "maxsim_metal"
METAL = sorted(KERNELS.glob("*.metal"))
HEADERS = sorted(set().union(*map(emulated.included, METAL)))
SOURCES = {path.name: path.read_text() for path in (*METAL, *HEADERS)}
BY_NAME = {kernel.name: kernel for path in METAL for kernel in emulated.kernels_of(path.read_text())}

needs_clang = pytest.mark.skipif(emulated.clang() is None, reason="neither ziglang nor clang is installed")


def complaints(sources: dict[str, str], directory: Path) -> str:
    """What a compiler with address spaces says of the kernels; empty where they are right."""
    for name, text in sources.items():
        # This compiler knows none of these attributes, and takes none where Metal has them.
        text = re.sub(r'template\s*\[\[host_name\("\w+"\)\]\]\s*\[\[kernel\]\]', "template", text)
        text = re.sub(r"\[\[kernel, [^\]]*\]\]", "", text)
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
        ("tile.h", "device const uchar* queries;", "const uchar* queries;"),
        ("tile.h", "threadgroup uchar* tile;", "device uchar* tile;"),
        ("forward.h", "threadgroup const Slot& query", "const Slot& query"),
        ("places.h", "(threadgroup float*)memory", "(float*)memory"),
        ("forward.h", "device typename Reduction::Saved* saved", "typename Reduction::Saved* saved"),
        ("soft_backward.h", "threadgroup float* tile,", "device float* tile,"),
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


@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
def test_rules(rule):
    assert rule(SOURCES) == []


@pytest.mark.parametrize(
    "rule, file, right, wrong",
    [
        (lint.lacking, "device.h", "return wide ?", "double twice = 2; return wide ?"),
        (
            lint.lacking,
            "device.h",
            "inline float inverse_norm(float square) {",
            "inline float inverse_norm(float) { try {",
        ),
        (lint.lacking, "device.h", "float(mantissa) * 0.001953125f", "float(mantissa) * 0.001953125"),
        (lint.lacking, "tile.h", "constant constexpr int kRowBytes", "constexpr int kRowBytes"),
        (lint.lacking, "forward.h", "max(longest", "std::max(longest"),
        (lint.recursion, "device.h", "return a / b;", "return quotient(b, a);"),
        (lint.recursion, "device.h", "{ return isfinite(sum.high)", "{ return isfinite(add(sum, rounded(sum)).high)"),
        (
            lint.recursion,
            "forward.h",
            "settle_row<Reduction>(params, tensors",
            "score_item<T, kFormat, Reduction>(tensors",
        ),
        (lint.limits, "params.h", "kForwardMemoryBytes = 16128", "kForwardMemoryBytes = 32784"),
        (lint.limits, "params.h", "kBackwardMemoryBytes = 19200", "kBackwardMemoryBytes = 19204"),
        (lint.limits, "params.h", "kTilePitchBytes = 80", "kTilePitchBytes = 72"),
        (lint.limits, "params.h", "kSoftPitch = 36", "kSoftPitch = 33"),
        (lint.limits, "params.h", "kSimdgroups = 4", "kSimdgroups = 64"),
        (lint.alignment, "params.h", "  int64_t dim;", "  int32_t dim;"),
        (lint.alignment, "params.h", "  int32_t exists;\n  int32_t padding;", "  int32_t exists;"),
        (lint.attributes, "forward.metal", "uint lane [[thread_index_in_simdgroup]]", "uint lane"),
        (lint.attributes, "forward.metal", "[[thread_index_in_simdgroup]]", "[[thread_index]]"),
        (lint.attributes, "forward.metal", "documents [[buffer(2)]]", "documents [[buffer(1)]]"),
        (lint.attributes, "forward.metal", "[[threadgroup(0)]]", "[[threadgroup(1)]]"),
        (lint.attributes, "backward.metal", "device float* norms", "float* norms"),
        (
            lint.attributes,
            "approx.metal",
            "[[kernel, max_total_threads_per_threadgroup(kThreads)]]\nvoid maxsim_approx",
            "void maxsim_approx",
        ),
        (lint.exactness, "device.h", "#pragma METAL fp math_mode(safe)", ""),
        (lint.exactness, "forward.h", '#include "device.h"\n', ""),
    ],
)
def test_what_breaks_a_rule_is_found(rule, file, right, wrong):
    assert right in SOURCES[file]
    assert rule(SOURCES | {file: SOURCES[file].replace(right, wrong, 1)})


def test_the_rules_see_every_function():
    seen = {name for code in lint.code_of(SOURCES).values() for name, _ in lint.functions(code)}
    assert {
        "score_item",
        "meet",
        "stage",
        "multiply",
        "document_gradient",
        "share_out",
        "maxsim_approx",
        "take",
    } <= seen
    assert sum(len(emulated.kernels_of(path.read_text())) for path in METAL) == len(BY_NAME)


def test_every_argument_is_bound_where_the_plan_binds_it():
    """An argument's name is that of its constant in params.h."""
    known = lint.constants(SOURCES)
    other_names = {"grad_scores": "scores", "tokens": "queries", "norms": "query_norms"}
    for kernel in BY_NAME.values():
        for buffer in (argument for argument in kernel.arguments if argument.attribute == "buffer"):
            words = other_names.get(buffer.name, buffer.name).split("_")
            assert known["k" + "".join(word.capitalize() for word in words)] == buffer.index, buffer


def test_the_plan_names_the_kernels_that_exist():
    named = set(re.findall(r'"(maxsim_\w+?)"', (KERNELS / "plan.cpp").read_text()))
    for family in [name for name in named if name.endswith("_")]:
        saved = "_parts" if family == "maxsim_soft_" else "_argmax"
        named.remove(family)
        named |= {f"{family}{tile}{suffix}" for tile in ("f32", "f16", "bf16") for suffix in ("", saved)}
    assert named == set(BY_NAME)


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
