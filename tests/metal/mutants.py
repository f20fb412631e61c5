"""Ways to break the backend that its tests have to notice: each a small edit of a kernel or of the launch plan.
Run as a script, it says which of them the checks catch, and by what."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import checks
import emulated


@dataclass(frozen=True)
class Mutant:
    """One edit: in ``file``, the ``nth`` (from 0) occurrence of ``old`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    nth: int = 0
    kind: str = "dense"  # whose kernels have to notice


TILE_BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n      stage<T, kFormat>"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
BOUND = "{kQueryExtents, present(q.packed() || q.lengths, Role::query_extents)}"

MUTANTS = [
    Mutant("no barrier before the tile is overwritten", "forward.h", TILE_BARRIER, "stage<T, kFormat>"),
    Mutant(
        "no barrier before the tile is read",
        "forward.h",
        "threadgroup_barrier(mem_flags::mem_threadgroup);\n      const int features",
        "const int features",
    ),
    Mutant(
        "no barrier before the winners overwrite the tile",
        "forward.h",
        "threadgroup_barrier(mem_flags::mem_threadgroup);\n    if (!has_tokens) continue;",
        "if (!has_tokens) continue;",
    ),
    Mutant(
        "no barrier before a score is summed up",
        "forward.h",
        "settle_row<Reduction>(params, tensors, space, self, first_chunk, saved);\n    "
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        "settle_row<Reduction>(params, tensors, space, self, first_chunk, saved);",
    ),
    Mutant("a barrier that orders no memory", "forward.h", "mem_flags::mem_threadgroup", "mem_flags::mem_none", 2),
    Mutant(
        "a barrier that only some threads reach",
        "forward.h",
        "if (!has_tokens) continue;",
        "if (has_tokens) threadgroup_barrier(mem_flags::mem_threadgroup);\n    if (!has_tokens) continue;",
    ),
    Mutant("one feature too far", "tile.h", "if (k + i < dim)", "if (k + i <= dim)"),
    Mutant("a vector across the end of a row", "tile.h", "k + 4 <= dim", "k + 3 <= dim"),
    Mutant("one query token too far", "tile.h", "if (token < query.length)\n", "if (token <= query.length)\n"),
    Mutant(
        "one document token too far",
        "tile.h",
        "if (token < document.length)\n",
        "if (token <= document.length)\n",
    ),
    Mutant("one winner too far", "forward.h", "c < candidates", "c <= candidates"),
    Mutant(
        "offsets are trusted",
        "device.h",
        "if (from < 0 || from > to || to > side.extent || to - from > kMostTokens) return span;",
        "",
    ),
    Mutant(
        "lengths are trusted",
        "device.h",
        "if (length < 0 || length > side.extent || length > kMostTokens) return span;",
        "",
    ),
    Mutant("ids are trusted", "device.h", "if (segment < 0 || segment >= side.count) return span;", ""),
    Mutant("masked tokens win", "forward.h", "if (!space.kept[local]) continue;", ""),
    Mutant("the last of equal tokens wins", "device.h", "return a.index < b.index;", "return a.index > b.index;"),
    Mutant("NaN loses", "device.h", "if (a_nan != b_nan) return a_nan;", "if (a_nan != b_nan) return b_nan;"),
    Mutant("the kernel swaps its sides", "forward.metal", "queries [[buffer(1)]]", "queries [[buffer(2)]]"),
    Mutant(
        "the plan swaps its sides",
        "plan.cpp",
        "{kQueries, present(q.data, Role::queries)}",
        "{kQueries, present(d.data, Role::documents)}",
    ),
    Mutant("the plan swaps lengths", "plan.cpp", BOUND, BOUND.replace("Role::query", "Role::document")),
    Mutant(
        "the plan forgets the last document",
        "plan.cpp",
        "cross ? problem.documents.count : problem.pairs",
        "cross ? problem.documents.count - 1 : problem.pairs",
    ),
    Mutant(
        "the plan asks for less threadgroup memory", "plan.cpp", "= kForwardMemoryBytes", "= kForwardMemoryBytes / 2"
    ),
    Mutant("the plan promises vectors where there are none", "plan.cpp", "side.feature_stride == 1 &&", ""),
    Mutant("the plan forgets that a row is unaligned", "plan.cpp", "aligned(side.token_stride) &&", ""),
    Mutant("the plan miscounts the row groups", "plan.cpp", "= params.chunks * params.slots", "= params.chunks"),
    Mutant("a gradient without its barrier", "backward.h", "threadgroup_barrier(mem_flags::mem_threadgroup);", "", 1),
    Mutant("a gradient that trusts the winner", "backward.h", "winner >= document.length ||", ""),
    Mutant("a gradient one token too far", "backward.h", "= int32_t(token);", "= int32_t(token) + 1;"),
    Mutant("a gradient for the first token alone", "backward.h", "won |= 1u << to;", "won |= 1u;"),
    Mutant("a gradient without the norm's share", "pairs.h", "dot * inverse * inverse", "0.0f * dot"),
    Mutant(
        "the plan swaps the norms",
        "plan.cpp",
        "document_norms_{kDocumentNorms, kSpare}",
        "document_norms_{kQueryNorms, kSpare}",
    ),
    *(
        Mutant(name, file, old, new, kind="compressed")
        for name, file, old, new in (
            ("codes are trusted", "tile.h", "code < 0 || code >= residual.centroids", "code < 0"),
            ("the highest bits come first", "tile.h", ">> (bit % 8)", ">> (8 - residual.bits - bit % 8)"),
            ("a byte has no sign", "device.h", "return float(int8_t(byte));", "return float(byte);"),
            ("an eight-bit float without subnormals", "device.h", "if (exponent) value = as_type", "value = as_type"),
            ("the first of a byte's bits is its highest", "device.h", ">> (k & 7)", ">> (7 - (k & 7))"),
            ("the minimum of a neighbour", "forward.h", "document_minimum[local] * ", "document_minimum[local ^ 1] * "),
            ("scales begin with every segment", "device.h", "first_row + token, f", "first_row * 0 + token, f"),
            ("queries without their scales", "forward.h", "scale = query_factor", "scale = 1.0f; query_factor"),
            ("narrow codes are wide", "device.h", "case 1:\n      return is_signed", "case 3:\n      return is_signed"),
            ("the plan swaps weights and centroids", "plan.cpp", "0, Role::centroids)", "0, Role::bucket_weights)"),
            ("the plan forgets how long a block is", "plan.cpp", "return {factor.block,", "return {1,"),
            ("codes are trusted in the lookup", "approx.metal", "code < 0 || code >= params.centroids", "code < 0"),
            ("a token too far in the lookup", "approx.metal", "t = 0; t < span.length", "t = 0; t <= span.length"),
        )
    ),
    *(
        Mutant(name, file, old, new, nth, kind="soft")
        for name, file, old, new, nth in (
            ("shares that are not rescaled", "forward.h", "(state.greatest - other.greatest) / tau", "0.0f", 0),
            ("parts behind the last query token", "forward.h", "token < params.problem.argmax_width", "true", 0),
            ("a soft step without its barrier", "soft_backward.h", BARRIER, "", 0),
            ("rows are overwritten while they are read", "soft_backward.h", BARRIER, "", 3),
            ("rows are read while they are written", "soft_backward.h", BARRIER, "", 2),
            ("masked tokens have shares", "soft_backward.h", "&& space.other_kept[column]", "", 0),
            ("shares of another's part", "soft_backward.h", "space.own_part[row] :", "space.own_part[row ^ 1] :", 0),
            (
                "without the other side's norm",
                "soft_backward.h",
                " * space.other_norm[column];\n        dots",
                ";\n        dots",
                0,
            ),
            (
                "a soft gradient without the norm's share",
                "soft_backward.h",
                "fma(weight, product, dots[e])",
                "0.0f * dots[e]",
                0,
            ),
            (
                "the plan swaps parts and gradients",
                "plan.cpp",
                "{kParts, Role::parts}",
                "{kParts, Role::grad_scores}",
                0,
            ),
            (
                "the plan stacks soft queries",
                "plan.cpp",
                "tile, Stacking::one_chunk",
                "tile, Stacking::as_many_as_fit",
                0,
            ),
        )
    ),
]

HOST_MUTANTS = [
    Mutant("tensors start where their storage does", "encode.mm", "buffer.offset + binding.offset", "binding.offset"),
    Mutant("every part of the workspace is the first", "encode.mm", "buffer.offset + binding.offset", "buffer.offset"),
    Mutant(
        "buffers in the order of their roles",
        "encode.mm",
        "atIndex:binding.index",
        "atIndex:NSUInteger(binding.role) + 1",
    ),
    Mutant("constants at another index", "encode.mm", "atIndex:kParams", "atIndex:kQueries"),
    Mutant(
        "the grid lies on its side",
        "encode.mm",
        "dispatch.grid[0], dispatch.grid[1], 1",
        "dispatch.grid[1], dispatch.grid[0], 1",
    ),
    Mutant(
        "threads for groups",
        "encode.mm",
        "threadsPerThreadgroup:MTLSizeMake(kThreads",
        "threadsPerThreadgroup:MTLSizeMake(kThreads / 2",
    ),
    Mutant("no threadgroup memory", "encode.mm", "if (dispatch.threadgroup_bytes)", "if (!dispatch.threadgroup_bytes)"),
    Mutant("one pipeline for all kernels", "encode.mm", "pipelines_.find(name)", "pipelines_.begin()"),
    Mutant("only the first dispatch", "encode.mm", "i < all->dispatches.size()", "i < 1"),
]


def mutated(mutant: Mutant, directory: Path) -> Path:
    """A copy of the kernels with the edit in it."""
    copy = directory / "maxsim_metal"
    shutil.copytree(emulated.KERNELS, copy)
    source = copy / mutant.file
    parts = source.read_text().split(mutant.old)
    assert len(parts) > mutant.nth + 1, f"{mutant.name}: {mutant.file} no longer has {mutant.old!r}"
    head, tail = parts[: mutant.nth + 1], parts[mutant.nth + 1 :]
    source.write_text(mutant.old.join(head) + mutant.new + mutant.old.join(tail))
    return copy


TILES = ("f16", "bf16", "f32")
# What the checks run: of dense tiles, fp16 and, where the sides differ, fp32.
KERNELS = {
    "dense": (
        *("maxsim_forward_f16", "maxsim_forward_f16_argmax", "maxsim_forward_f32", "maxsim_forward_f32_argmax"),
        *("maxsim_norms", "maxsim_backward_queries", "maxsim_backward_documents"),
    ),
    "compressed": (
        "maxsim_approx",
        *(f"maxsim_residual_{tile}_argmax" for tile in TILES),
        *(f"maxsim_stored_{tile}{saved}" for tile in TILES for saved in ("", "_argmax")),
    ),
    "soft": (
        *("maxsim_norms", "maxsim_soft_backward_queries", "maxsim_soft_backward_documents"),
        *(f"maxsim_soft_{tile}_parts" for tile in ("f16", "f32")),
    ),
}
CHECKS = {"dense": checks.DENSE, "compressed": checks.COMPRESSED, "soft": checks.SOFT}


def build(flavour: emulated.Flavour, mutant: Mutant) -> Path:
    with tempfile.TemporaryDirectory() as directory:
        return emulated.build(flavour, mutated(mutant, Path(directory)), KERNELS[mutant.kind])


def complaint(target: Path, kind: str) -> str | None:
    """What the checks find wrong with a build; None if they find nothing."""
    module = emulated.load(target)
    for check in CHECKS[kind]:
        try:
            check(module, "cpu")
        except (AssertionError, RuntimeError) as error:
            return f"{check.__name__}: {' '.join(str(error).split()) or type(error).__name__}"
    return None


def complaints(flavour: emulated.Flavour, mutants: list[Mutant]) -> dict[str, str | None]:
    """By mutant, what its checks say. Builds run ahead of the checks."""
    for kind in sorted({mutant.kind for mutant in mutants}):
        found = complaint(emulated.build(flavour, only=KERNELS[kind]), kind)
        assert found is None, f"the checks fail without any edit: {found}"
    caught = {}
    with ThreadPoolExecutor(2) as pool:
        for mutant, target in zip(mutants, pool.map(lambda mutant: build(flavour, mutant), mutants), strict=True):
            caught[mutant.name] = complaint(target, mutant.kind)
            shutil.rmtree(target)  # nobody asks for it again
    return caught


if __name__ == "__main__":
    for chosen in ((emulated.OBSERVED, MUTANTS), (emulated.ENCODED, HOST_MUTANTS)):
        for name, found in complaints(*chosen).items():
            print(f"{'caught ' if found else 'MISSED '} {name}: {found}"[:160])
