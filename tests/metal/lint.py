"""Rules of Metal's shading language that C++ would let pass, read off the sources. Address spaces have a compiler of
their own, in tests/test_metal_lint.py. A rule is a function from the sources, by file name, to what it complains of."""

from __future__ import annotations

import re
from collections.abc import Iterator

import emulated

Sources = dict[str, str]

LACKING = r"\b(?:double|new|delete|virtual|try|throw|catch|goto|typeid|dynamic_cast|thread_local|printf|union|long)\b"
DOUBLE_LITERAL = r"(?<![\w.])(?:\d+\.\d*|\.\d+)(?:e[+-]?\d+)?(?![\dfe])"
MOST_THREADGROUP_BYTES = 32768
SIZES = {"int64_t": 8, "int32_t": 4, "float": 4, "Element": 4, "Meeting": 4}


def code_of(sources: Sources) -> Sources:
    """Without comments, and with empty strings."""
    return {name: re.sub(r'"[^"]*"', '""', emulated.without_comments(text)) for name, text in sources.items()}


def matching(code: str, start: int, brackets: str) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for i in range(start, len(code)):
        depth += (code[i] == brackets[0]) - (code[i] == brackets[1])
        if depth == 0:
            return i
    raise AssertionError(f"{brackets} do not match: {code[start : start + 40]!r}")


def functions(code: str) -> Iterator[tuple[str, str]]:
    """Names and bodies of the functions and kernels that a file defines."""
    for found in re.finditer(r"^ *(?:static )?(?:inline|void)\b[^;{}()=]*?\b(\w+)\(", code, re.MULTILINE):
        end = matching(code, found.end() - 1, "()") + 1
        if code[end:].lstrip().startswith("{"):
            begin = code.index("{", end)
            yield found[1], code[begin : matching(code, begin, "{}")]


def lacking(sources: Sources) -> list[str]:
    """What the language does not have: double and its literals, exceptions, the standard library, lambdas."""
    said = []
    for name, code in code_of(sources).items():
        said += [f"{name}: {word}" for word in re.findall(LACKING, code)]
        said += [f"{name}: {literal} is a double" for literal in re.findall(DOUBLE_LITERAL, code)]
        if "std::" in code or re.search(r"\[[&=]?\]\s*\(", code):
            said.append(f"{name}: the standard library, or a lambda")
        if name != "params.h":  # the host reads it too
            said += [f"{name}: static" for _ in re.findall(r"^static\s+(?!assert)", code, re.MULTILINE)]
            said += [
                f"{name}: a program's variable without constant" for _ in re.findall(r"^const(?:expr)? ", code, re.M)
            ]
    return said


def recursion(sources: Sources) -> list[str]:
    calls: dict[str, set[str]] = {}
    for code in code_of(sources).values():
        for name, body in functions(code):
            calls.setdefault(name, set()).update(re.findall(r"\b(\w+)(?:<[\w:, ]+>)?\(", body))

    def reaches(name: str, goal: str, seen: set[str]) -> bool:
        fresh = calls.get(name, set()) - seen
        return goal in fresh or any(reaches(called, goal, seen | fresh) for called in fresh)

    return [name for name in calls if reaches(name, name, set())]


def constants(sources: Sources) -> dict[str, int]:
    """The integers that params.h names, for the host and for Metal."""
    values: dict[str, int] = {}
    code = code_of(sources)["params.h"]
    found = re.findall(r"MAXSIM_CONSTANT int (\w+) = ([^;]+);", code)
    found += re.findall(r"^  (k\w+) = (\d+),", code, re.MULTILINE)
    for name, expression in found:
        values[name] = eval(expression, {}, values)  # sums and products of the ones before
    return values


def limits(sources: Sources) -> list[str]:
    """Threadgroup memory and threads, and rows of a tile that vectors of 16 bytes can lie in."""
    known, said = constants(sources), []
    for name, value in known.items():
        if name.endswith("MemoryBytes") and value > MOST_THREADGROUP_BYTES:
            said.append(f"{name}: more than {MOST_THREADGROUP_BYTES} bytes of threadgroup memory")
        if name.endswith("MemoryBytes") and value % 16:
            said.append(f"{name}: threadgroup memory comes in units of 16 bytes")
        if (name.endswith("PitchBytes") and value % 16) or (name.endswith("Pitch") and value * 4 % 16):
            said.append(f"{name}: rows of a tile begin at a multiple of 16 bytes")
    if known["kThreads"] > 1024 or known["kThreads"] % 32:
        said.append("kThreads: whole simdgroups, up to 1024 threads")
    return said


def alignment(sources: Sources) -> list[str]:
    """Constants have no gaps that the host's compiler and Metal's might fill differently."""
    sizes, said = dict(SIZES), []
    for found in re.finditer(r"^struct (\w+) \{\n(.*?)^\};", code_of(sources)["params.h"], re.MULTILINE | re.DOTALL):
        offset = 0
        for kind, name in re.findall(r"^\s+(\w+) (\w+);", found[2], re.MULTILINE):
            if offset % min(sizes[kind], 8):
                said.append(f"{found[1]}.{name} is at {offset}, a gap behind the member before")
            offset += sizes[kind]
        if offset % 8:
            said.append(f"{found[1]} ends at {offset}, which is not a multiple of 8")
        sizes[found[1]] = offset
    return said


def attributes(sources: Sources) -> list[str]:
    """Every parameter of a kernel has one that Metal knows, buffers are bound once, and no kernel asks for more threads
    than its pipeline was made for."""
    said = []
    for file, text in sources.items():
        if not file.endswith(".metal"):
            continue
        code = emulated.without_comments(text)
        definitions = re.findall(r"^void (maxsim_\w+)\(", code, re.MULTILINE)
        attributed = re.findall(
            r"\[\[kernel, max_total_threads_per_threadgroup\(kThreads\)\]\]\s*void (maxsim_\w+)\(", code
        )
        said += [f"{name}: no attribute makes it a kernel" for name in definitions if name not in attributed]
        try:
            found = emulated.kernels_of(text)
        except AssertionError as error:
            said.append(str(error))
            continue
        for kernel in found:
            known = {"buffer", "threadgroup", *emulated.BUILT_IN}
            said += [f"{kernel.name}: {a.attribute}" for a in kernel.arguments if a.attribute not in known]
            indices = [a.index for a in kernel.arguments if a.attribute == "buffer"]
            if len(set(indices)) != len(indices) or any(index > 30 for index in indices):
                said.append(f"{kernel.name}: buffers are bound once each, at 0 to 30")
            memory = [a.index for a in kernel.arguments if a.attribute == "threadgroup"]
            if memory not in ([], [0]):
                said.append(f"{kernel.name}: threadgroup memory is argument 0")
            for a in kernel.arguments:
                if a.attribute == "buffer" and not re.match(r"constant \w+&$|device [\w ]+\*$", a.type):
                    said.append(f"{kernel.name}: {a.name} is in no address space that a buffer can be in")
    return said


def exactness(sources: Sources) -> list[str]:
    """Exact arithmetic is asked for before any function: the compiler's default may assume that there is no NaN."""
    code, said = sources["device.h"], []
    for pragma in ("#pragma METAL fp math_mode(safe)", "#pragma METAL fp contract(off)"):
        if not 0 < code.find(pragma) < code.find("inline "):
            said.append(f"device.h: {pragma} is not before the first function")
    for name, code in code_of(sources).items():
        computes = name.endswith(".h") and name != "device.h" and any(functions(code))
        if computes and '#include "device.h"' not in sources[name]:
            said.append(f"{name}: computes without device.h")
    return said


RULES = (lacking, recursion, limits, alignment, attributes, exactness)
