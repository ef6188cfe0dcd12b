#!/usr/bin/env python3
"""Checks who may use whom: `#include` lines, CMake link lines and file names of the whole tree.

usage: check_includes.py [ROOT]
Prints one line per violation (file:line: rule; remedy) and exits 1 if there is any.

A link graph alone does not stop an #include of another folder's header, so this check does. The
rules are the tables below; change them only together with a decision in docs/decisions/.
"""

import os
import re
import sys

# What each folder may use besides itself, bottom up. None: anything.
MAY_USE = {
    "common": [],
    "kernels": ["common"],
    "fabric": ["common"],
    "proto": ["common"],
    "checkpoint": ["common"],
    "planner": ["common"],
    "http": ["common"],
    "model": ["common", "kernels", "checkpoint"],
    "experts": ["common", "kernels", "checkpoint"],
    "router": "common kernels fabric proto checkpoint planner http model experts".split(),
    "worker": "common kernels fabric proto checkpoint experts http".split(),
    "coordinator": "common proto checkpoint planner http".split(),
    "cli": None,
    "tests": None,
    "bench": None,
}

ASIO = r"^boost/asio(/|\.hpp)"
BEAST = r"^boost/beast(/|\.hpp)"
PROTOBUF = r"^google/protobuf/|\.pb\.h$"
CUDA = r"^(cuda|cublas|nccl|cub/|thrust/|cooperative_groups)"
MPI = r"^mpi(-ext)?\.h$"
UCX = r"^(ucp|ucs|uct)/"
IO = (
    r"^(fstream|filesystem|iostream|cstdio|stdio\.h|unistd\.h|fcntl\.h|dirent\.h|netdb\.h"
    r"|sys/(stat|mman|socket|file|uio|epoll|eventfd)\.h|netinet/.*|arpa/.*"
    r"|boost/(filesystem|process)(/.*|\.hpp)|common/file\.h)$"
)

# (where the rule holds, what may not be included there, where it may, why, what to do); paths are
# prefixes. Everything that is not named here is free.
FORBIDDEN = [
    ("common/", ASIO, [], "common is free of Asio", "use it in http/ or above"),
    ("planner/", IO, [], "planner is free of I/O", "let the caller read, and pass values in"),
    ("planner/", ASIO, [], "planner is free of I/O", "let the caller wait, and pass values in"),
    (
        "",
        BEAST,
        ["http/", "tests/http/"],
        "Beast is only for http/ (a file that includes it takes half a minute to compile)",
        "use http/server.h or http/client.h",
    ),
    (
        "",
        PROTOBUF,
        ["proto/", "tests/proto/"],
        "protobuf is only for proto/",
        "use the types and converters of proto/",
    ),
    (
        "",
        CUDA,
        ["kernels/cuda/", "fabric/nccl/", "tests/", "bench/"],
        "CUDA code is in libraries of its own",
        "move it to kernels/cuda/ or fabric/nccl/",
    ),
    ("", MPI, ["fabric/mpi/", "tests/", "bench/"], "MPI is only for its lane", "use fabric/lane.h"),
    ("", UCX, ["fabric/ucx/", "tests/", "bench/"], "UCX is only for its lane", "use fabric/lane.h"),
]

SOURCE = (".h", ".cc", ".cu", ".cuh")
FOREIGN = (".hpp", ".hh", ".hxx", ".cpp", ".cxx", ".c", ".C", ".c++", ".inl", ".ipp")
SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\.[a-z]+")
INCLUDE = re.compile(r"\s*#\s*include(?:_next)?\s*(?:([\"<])([^\">]+)[\">]|(\S.*))")


def folder_of(path):
    """The first folder of a path, if the rules know it."""
    first = path.split("/")[0]
    return first if first in MAY_USE else None


def allowed_names(folder):
    names = ["itself", *MAY_USE[folder]]
    return ", ".join(names)


def refused(folder, other):
    """Whether `folder` may not use `other` (a folder's name)."""
    return MAY_USE[folder] is not None and other != folder and other not in MAY_USE[folder]


def without_comments(text):
    """The text with comments blanked; lines keep their numbers. String literals are left alone."""

    def blank(match):
        found = match.group(0)
        return found if found[0] in "\"'" else re.sub(r"[^\n]", " ", found)

    pattern = r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?(?:\*/|\Z)'
    return re.sub(pattern, blank, text, flags=re.S)


def check_include(path, root, name, quoted):
    """Violations of one include line, without their place."""
    folder = folder_of(path)
    target = folder_of(name) if "/" in name else None
    if quoted and (target is None or ".." in name.split("/")):
        yield (
            f'"{name}" is not a path from the repository\'s root; '
            "write the folder too, and <...> for headers that are not ours"
        )
        return
    # <router/engine.h> reaches our file as well as "router/engine.h" does.
    ours = target and (quoted or os.path.exists(os.path.join(root, name)))
    if ours and not quoted:
        yield f'<{name}> is a header of ours; write "{name}"'
    if ours and refused(folder, target):
        yield (
            f"{folder}/ may not use {target}/ (it may use {allowed_names(folder)}); "
            "move what both need into a folder below, or pass it in"
        )
    for where, pattern, allowed, why, remedy in FORBIDDEN:
        if path.startswith(where) and re.search(pattern, name):
            if not path.startswith(tuple(allowed)):
                yield f"{name} is not allowed here: {why}; {remedy}"


def check_source(path, root, text):
    code = without_comments(text)
    for number, line in enumerate(code.split("\n"), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        bracket, name, other = match.groups()
        if other:
            yield number, f"#include {other.strip()} cannot be checked; name the file in quotes"
            continue
        for message in check_include(path, root, name, bracket == '"'):
            yield number, message


def cmake_commands(text):
    """(line number, command, arguments) of a CMake file; nested parentheses stay in the arguments."""
    text = re.sub(r"#[^\n]*", lambda m: " " * len(m.group(0)), text)
    position = 0
    while match := re.compile(r"(\w+)\s*\(").search(text, position):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        arguments = text[match.end() : end - 1]
        yield text.count("\n", 0, match.end()) + 1, match.group(1).lower(), arguments
        position = end


def library_folder(token):
    """The folder of a library target such as moiety_kernels or moiety_kernels_cuda."""
    if not token.startswith("moiety_"):
        return None
    return folder_of(token[len("moiety_") :].replace("_", "/"))


def check_cmake(path, text):
    """Link lines of a folder's CMakeLists.txt; test and bench programs may link anything."""
    folder = folder_of(path)
    for number, command, arguments in cmake_commands(text):
        tokens = arguments.split()
        if command not in ("moiety_library", "moiety_program", "target_link_libraries"):
            continue
        if not tokens or tokens[0].endswith(("_test", "_bench")):
            continue
        for token in tokens[1:]:
            target = library_folder(token)
            if target and refused(folder, target):
                at = number + arguments[: arguments.index(token)].count("\n")
                yield at, (
                    f"{folder}/ may not link {token} (it may use {allowed_names(folder)}); "
                    "move what both need into a folder below, or pass it in"
                )


def check_name(path):
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1]
    if extension in FOREIGN:
        yield 1, f"extension {extension} is not used here; name it .h or .cc (.cuh, .cu for CUDA)"
    elif extension in SOURCE + (".proto", ".py") and not SNAKE_CASE.fullmatch(name):
        yield 1, "file names are snake_case; rename it"


def files_of(root):
    for folder in MAY_USE:
        for where, folders, names in os.walk(os.path.join(root, folder)):
            folders[:] = sorted(f for f in folders if f not in ("__pycache__", "fixtures"))
            for name in sorted(names):
                yield os.path.relpath(os.path.join(where, name), root).replace(os.sep, "/")


def check(root):
    """(violations as printable lines, number of files looked at)."""
    violations, looked_at = [], 0
    for path in files_of(root):
        is_source, is_cmake = path.endswith(SOURCE), path.endswith("CMakeLists.txt")
        found = list(check_name(path))
        if is_source or is_cmake:
            looked_at += 1
            with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
                text = f.read()
            found += check_source(path, root, text) if is_source else check_cmake(path, text)
        violations += [f"{path}:{number}: {message}" for number, message in found]
    return violations, looked_at


def main(argv):
    root = argv[1] if len(argv) > 1 else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    violations, looked_at = check(root)
    for line in violations:
        print(line)
    if looked_at == 0:
        print(f"{root}: no source file found; give the repository's root")
        return 1
    print(f"{looked_at} files checked, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
