"""Kernels with one operator changed, run as plain Python: what a test must notice."""

import ast
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, Final

from featurestore.temporal import asof

FOLDER: Final = Path(asof.__file__).parent
PACKAGE: Final = "featurestore.temporal."
SWAPS: Final[dict[type, type]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}


class Endless(Exception):  # noqa: N818 -- it is a signal, not an error
    """A mutant ran for too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Endless` in the block after so many seconds of processor time."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Endless

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def memory_limit(more_bytes: int) -> Iterator[None]:
    """Refuse memory beyond what the process holds now and so many bytes more: for a process of its own."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass(frozen=True)
class Mutant:
    """One change of one operator."""

    function: str
    line: int
    what: str
    apply: Callable[[], None]
    undo: Callable[[], None]


def mutants(tree: ast.Module) -> Iterator[Mutant]:
    """Yield every single change of an operator in a module's functions."""
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for statement in function.body:
            for node in ast.walk(statement):
                yield from _mutants_of(function.name, node)


def _mutants_of(name: str, node: ast.AST) -> Iterator[Mutant]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            swapped = SWAPS.get(type(operator))
            if swapped is not None:
                yield _of_compare(name, node, place, operator, swapped())
    elif isinstance(node, (ast.BoolOp, ast.BinOp, ast.AugAssign)) and type(node.op) in SWAPS:
        swapped = SWAPS[type(node.op)]
        holder: Any = node
        old = node.op

        def apply(holder: Any = holder, new: Any = swapped) -> None:
            holder.op = new()

        def undo(holder: Any = holder, old: Any = old) -> None:
            holder.op = old

        yield Mutant(name, node.lineno, f"{type(old).__name__} to {swapped.__name__}", apply, undo)


def _of_compare(name: str, node: ast.Compare, place: int, old: ast.cmpop, new: Any) -> Mutant:
    def apply() -> None:
        node.ops[place] = new

    def undo() -> None:
        node.ops[place] = old

    return Mutant(name, node.lineno, f"{type(old).__name__} to {type(new).__name__}", apply, undo)


def loaded(tree: ast.Module, name: str, names: Mapping[str, Any]) -> SimpleNamespace:
    """Run a kernel module as plain Python.

    Args:
        names: put in the place of what it imports from compiled modules, and of its own where they differ.
    """
    kept = [n for n in tree.body if not (isinstance(n, ast.ImportFrom) and n.module == f"{PACKAGE}jit")]
    space: dict[str, Any] = {"kernel": lambda f: f, "inlined": lambda f: f, "__name__": name}
    exec(compile(ast.fix_missing_locations(ast.Module(kept, [])), name, "exec"), space)  # noqa: S102 -- ours
    space.update(names)
    return SimpleNamespace(**space)


def survivors(
    name: str,
    notices: Callable[[], bool],
    load: Callable[[ast.Module], None],
    same: Any,
    seconds: float = 2,
) -> list[str]:
    """Return the mutants of a kernel module that no case notices and that are not listed as the same.

    Args:
        notices: whether any case fails under the kernels that are in place.
        load: puts a module's kernels in place.
        same: (function, line's text, change) of mutants that answer the same.
        seconds: of processor time; a mutant that takes longer is noticed.
    """
    source = (FOLDER / f"{name}.py").read_text()
    lines, tree = source.splitlines(), ast.parse(source)
    load(tree)
    assert not notices(), "the unchanged kernels must pass"
    found = []
    for mutant in mutants(tree):
        mutant.apply()
        load(tree)
        mutant.undo()
        try:
            with time_limit(seconds):
                noticed = notices()
        except Endless:
            noticed = True
        text = lines[mutant.line - 1].strip()
        if not noticed and (mutant.function, text, mutant.what) not in same:
            found.append(f"{mutant.function}:{mutant.line}: {mutant.what}: {text}")
    return found
