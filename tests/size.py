"""Prints how large the package is, package by package, and fails where it is larger or more tangled than agreed.

Lines that hold a token are counted: docstrings, comments and blank lines cost nothing. `size.py circles` checks nothing
but the imports.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "trt_cls"
MAX_TOKEN_LINES = 21_450
MAX_MODULES = 204
MAX_MODULE = 400
"""Lines of a module, of any kind."""
MAX_FUNCTION = 60
"""Lines of a function, decorators left out."""
NO_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


class Module(NamedTuple):
    name: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The sub-package; "" for a module of the package itself."""
        return self.name.split(".")[1] if self.name.count(".") > 1 else ""

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())


def modules() -> list[Module]:
    """All modules of the package."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found.append(Module(name, path.read_text(), ast.parse(path.read_text())))
    return found


def token_lines(module: Module) -> int:
    """Lines that hold a token, docstrings left out."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in NO_TOKENS:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def imports(module: Module, names: frozenset[str]) -> set[str]:
    """The modules among `names` that a module imports, anywhere in its code; imports for types alone left out."""
    found: set[str] = set()
    for node in _run(module.tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = {f"{node.module}.{alias.name}", f"{node.module}.{alias.name}.__init__"} & names
                found.update(inner or {node.module, f"{node.module}.__init__"})
    return (found & names) - {module.name}


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` that are run: not those of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from _run(child)


def circle(graph: Mapping[str, set[str]]) -> str:
    """One import circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " → ".join(reversed(error.args[1]))
    return ""


def long_functions(module: Module) -> Iterator[str]:
    """The functions above the limit, with their lengths."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION:
                yield f"{module.name}.{node.name} ({lines} lines)"


def faults(found: list[Module], *, circles_alone: bool = False) -> list[str]:
    """What is larger or more tangled than agreed, a line each."""
    names = frozenset(module.name for module in found)
    ring = circle({module.name: imports(module, names) for module in found})
    lines = [f"import circle: {ring}"] if ring else []
    if circles_alone:
        return lines
    total = sum(map(token_lines, found))
    if total > MAX_TOKEN_LINES:
        lines.append(f"{total} token lines; expected at most {MAX_TOKEN_LINES}")
    if len(found) > MAX_MODULES:
        lines.append(f"{len(found)} modules; expected at most {MAX_MODULES}")
    lines += [
        f"{module.name} has {module.lines} lines; expected at most {MAX_MODULE}"
        for module in found
        if module.lines > MAX_MODULE
    ]
    lines += [f"{name}; expected at most {MAX_FUNCTION}" for module in found for name in long_functions(module)]
    return lines


def print_sizes(found: list[Module]) -> None:
    packages: dict[str, list[Module]] = {}
    for module in found:
        packages.setdefault(module.package, []).append(module)
    for package, members in [*sorted(packages.items()), ("in all", found)]:
        longest = max(members, key=lambda module: module.lines)
        print(
            f"{package or PACKAGE:14} {len(members):3} modules {sum(map(token_lines, members)):6} token lines, "
            f"median module {statistics.median(module.lines for module in members):5g} lines, "
            f"longest {longest.lines:3} ({longest.name.rpartition('.')[2]})"
        )


def main() -> int:
    found = modules()
    circles_alone = sys.argv[1:] == ["circles"]
    if not circles_alone:
        print_sizes(found)
    wrong = faults(found, circles_alone=circles_alone)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
