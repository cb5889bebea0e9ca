"""Small mistakes put into the code on purpose, to see whether a test notices: `python tests/mutations.py -h`.

A mutation replaces one expression or statement. Every mutant is tried in a child process, forked once the heavy
libraries are imported; there the mutated text takes the place of the file's own when it is imported, and nothing is
written. Tests which start a process of their own see the code as it is.
"""

import argparse
import ast
import copy
import importlib
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip
_NAMES = {"max": "min", "min": "max", "any": "all", "all": "any", "zeros_like": "ones_like", "ones_like": "zeros_like"}


@dataclass(frozen=True)
class Mutation:
    """A part of a file, and what takes its place."""

    file: Path
    line: int
    start: int  # offsets into the text
    stop: int
    before: str
    after: str

    def source(self) -> str:
        """The whole mutated text."""
        text = self.file.read_text(encoding="utf-8")
        return text[: self.start] + self.after + text[self.stop :]

    def __str__(self) -> str:
        file = self.file.relative_to(ROOT) if self.file.is_relative_to(ROOT) else self.file
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{file}:{self.line}: {before}  ->  {after}"


def mutations(file: Path) -> list[Mutation]:
    """All mutations of a file, in its order; only those which still are Python and read differently."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    unchanged, starts = ast.dump(tree), [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:  # columns count bytes
        start = starts[line - 1]
        return start + len(text[start : starts[line]].encode()[:column].decode())

    found = []
    for node in _mutable(tree):
        start, stop = offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)
        for new in _variants(node):
            after = ast.unparse(new)
            after = f"({after})" if isinstance(new, ast.expr) and not isinstance(new, ast.Constant) else after
            mutation = Mutation(file, node.lineno, start, stop, text[start:stop], after)
            try:
                if ast.dump(ast.parse(mutation.source())) != unchanged:
                    found.append(mutation)
            except SyntaxError:
                continue
    return found


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """Expressions and statements that do something: no annotations, no docstrings, no messages, no logging."""
    if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)) or _is_message(node):
        return
    if isinstance(node, (ast.expr, ast.stmt)):
        yield node
    if isinstance(node, ast.Raise):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment", "keywords" if _is_class(node) else ""):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _mutable(child)


def _is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def _is_message(node: ast.AST) -> bool:
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    if isinstance(value, ast.Constant):
        return True
    return isinstance(value, ast.Call) and ast.unparse(value.func).startswith("log.")


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SWAPS:
        yield _with(node, ops=[_SWAPS[type(node.ops[0])]()])
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _SWAPS:
        yield _with(node, op=_SWAPS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if name in _NAMES:
            other = copy.deepcopy(node)
            setattr(other.func, "attr" if isinstance(node.func, ast.Attribute) else "id", _NAMES[name])
            yield other
        if (
            len(node.args) > 1
            and name not in ("min", "max")
            and not any(isinstance(arg, ast.Starred) for arg in node.args[:2])
        ):
            yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
        for i in range(len(node.keywords)):
            yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    elif isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        for i, part in enumerate(node.generators):
            if part.ifs:
                bare = [*node.generators]
                bare[i] = _with(part, ifs=[])
                yield _with(node, generators=bare)
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)):
        yield ast.Pass()


def _with(node: ast.AST, **changes: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in changes.items():
        setattr(new, name, value)
    return new


# --------------------------------------------------------------------------------------------- running


def _import_mutated(mutation: Mutation) -> None:
    """From now on imports of the file get the mutated text."""
    loader = importlib.machinery.SourceFileLoader
    original, code = loader.get_code, compile(mutation.source(), str(mutation.file), "exec")

    def get_code(self: importlib.machinery.SourceFileLoader, fullname: str) -> object:
        if Path(self.get_filename(fullname)) == mutation.file:
            return code
        return original(self, fullname)

    loader.get_code = get_code  # type: ignore[method-assign]


def run_tests(arguments: Sequence[str], mutation: Mutation | None, *, limit: float | None, log: Path) -> int | None:
    """pytest's exit code in a forked process of its own, None if it ran longer than `limit` seconds."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 70
        try:
            import pytest

            if mutation is not None:
                _import_mutated(mutation)
            code = int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments]))
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = None if limit is None else time.monotonic() + limit
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _warm(names: Sequence[str], comfyui: str | None) -> None:
    """What every child would import anew; the code under test itself stays out."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if comfyui is not None:
        sys.path.remove(str(ROOT))  # the pack would shadow ComfyUI's `nodes`
        sys.path.insert(0, str(importlib.import_module("support.comfyui").tree(comfyui)))
        sys.argv = sys.argv[:1]
        importlib.import_module("comfy.cli_args").args.cpu = True
        names = [*names, "comfy.model_management", "comfy.sd", "comfy.samplers", "nodes"]
    for name in names:
        importlib.import_module(name)


def main() -> int:
    """Tries a sample of mutations and says which of them no test noticed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="files to put mistakes into")
    parser.add_argument(
        "--tests", nargs="+", required=True, help="what pytest is given; files named like the mutated one come first"
    )
    parser.add_argument("--count", type=int, default=30, help="how many mutations are tried")
    parser.add_argument("--seed", type=int, default=0, help="which ones: the same seed, the same sample")
    parser.add_argument("--only", type=int, nargs="*", help="only these numbers of the sample")
    parser.add_argument("--limit", type=float, help="seconds for one mutant; default: what the tests take without any")
    warm = ["torch", "transformers", "diffusers"]
    parser.add_argument("--warm", nargs="*", default=warm, help="what is imported once, before the first fork")
    parser.add_argument("--comfyui", help="a version: the tests run in that ComfyUI")
    parser.add_argument("--logs", type=Path, required=True, help="folder for what pytest says about each")
    options = parser.parse_args()

    every = [mutation for file in options.files for mutation in mutations(file.resolve())]
    sample = random.Random(options.seed).sample(every, min(options.count, len(every)))
    sample.sort(key=lambda mutation: (mutation.file, mutation.start))
    options.logs.mkdir(parents=True, exist_ok=True)
    say = sys.stdout.write
    say(f"{len(every)} mutations, {len(sample)} of them are tried\n")
    _warm(options.warm, options.comfyui)
    version = ["--comfyui", options.comfyui] if options.comfyui else []
    limit = options.limit
    if limit is None:
        start = time.monotonic()
        if run_tests([*options.tests, *version], None, limit=None, log=options.logs / "unchanged.log") != 0:
            say(f"the tests fail without any mutation: {options.logs / 'unchanged.log'}\n")
            return 1
        limit = 10 + 3 * (time.monotonic() - start)
        say(f"at most {limit:.0f} s each\n")
    left = 0
    for number, mutation in enumerate(sample):
        if options.only is not None and number not in options.only:
            continue
        start = time.monotonic()
        tests = sorted(options.tests, key=lambda test: mutation.file.stem not in test)
        code = run_tests([*tests, *version], mutation, limit=limit, log=options.logs / f"{number:03}.log")
        fate = {0: "SURVIVED", None: "killed (time)"}.get(code, "killed")
        left += code == 0
        say(f"{number:03} {fate} {time.monotonic() - start:.0f} s  {mutation}\n")
        sys.stdout.flush()
    say(f"{left} survived\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
