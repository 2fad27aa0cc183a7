"""Torch's two formats of programs, looked through before torch opens them: what is in them that could do harm.

`torch.export.load` unpickles what an archive marks for it, evaluates its expressions as Python, looks its functions up
by any dotted name below `torch` (`torch.os.system` is one), writes its names into Python code which it runs, and loads
compiled libraries. What facelab and plain torch write has none of that, so a file that has is refused, unopened.

TorchScript runs in an interpreter of torch's own, which no Python can be called from, but which has operators that read
and write files. A file that names one of those is refused.

The archives are read here with torch's own reader: another one might see other things in a forged file.
"""

import ast
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

__all__ = ["examine_program", "examine_script"]

# What an exported program's archive may hold, by torch's names.
_MEMBERS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/model_\w+_config\.json|models/model\.json"
    r"|data/(weights|constants|sample_inputs)/model\.pt|extra/[\w.-]+|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id|alignment)|\.format_version|\.storage_alignment"
)
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]*", re.ASCII)  # names: they become part of Python code
_TEXTS = {"stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "guards_code", "torch_version"}
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict"}
_FUNCTIONS = {
    *(f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem", "pow")),
    *(f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")),
    *(f"torch.{name}" for name in ("sym_max", "sym_min", "sym_not", "sym_int", "sym_float", "sym_ite")),
}
_ALGEBRA = {
    *("Symbol", "Integer", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv"),
    *("ModularIndexing", "CeilToInt", "FloorToInt", "TruncToInt", "IntTrueDiv"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
}
_SPACES = {"aten", "prim", "prims", "quantized", "torchvision"}  # of operators in TorchScript
_FILES = {"filename", "file_name", "path", "file"}  # what an operator's argument is called that names one
_ELSEWHERE = {"load_tensor", "rpc_async", "rpc_sync", "rpc_remote"}
_FORGED = "nothing of it was opened. Export it again from its checkpoint, or get it from a source that you trust"


def examine_program(path: Path) -> None:
    """Refuses a `.pt2` that could run code while it is opened, or later.

    Raises:
        ValueError: what was found is named; or it is no such file.
    """
    reader = _reader(path, "an exported program")
    names = set(reader.get_all_records())
    strange = sorted(name for name in names | _zipped(path) if not _MEMBERS.fullmatch(name))
    if strange:
        raise ValueError(f"{path}: holds {strange[0]!r:.80}, which no exported network has; {_FORGED}")
    for name in sorted(names):
        if name.endswith(".json") and not name.startswith("extra/"):
            try:
                content = json.loads(reader.get_record(name))
                _examine_values(content)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: its {name} {_reason(error)}; {_FORGED}") from None
        elif name.endswith(".pt") and (content := reader.get_record(name)):
            try:  # as torch does itself; where this fails, it would go on without its care
                torch.load(io.BytesIO(content), weights_only=True)
            except Exception:
                raise ValueError(f"{path}: its {name} asks for more than tensors; {_FORGED}") from None


def examine_script(path: Path) -> None:
    """Refuses a TorchScript `.pt` that names operators which read or write files, or objects outside of its own.

    Raises:
        ValueError: what was found is named; or it is no such file.
    """
    reader = _reader(path, "TorchScript")
    for name in reader.get_all_records():
        if name.endswith((".py", ".pkl")):
            text = reader.get_record(name).decode("utf-8", "replace")
            classes = set(re.findall(r"torch\.classes\.(\w+)", text)) - _SPACES
            words = set(re.findall(r"\w+", text)) & _of_files() if name.endswith(".py") else set()
            spaces = set(re.findall(r"\bops\s*\.\s*(\w+)", text)) - _SPACES if name.endswith(".py") else set()
            if found := sorted(classes | words | spaces):
                raise ValueError(f"{path}: its {name} names {found[0]}, which no network needs; {_FORGED}")


def _reader(path: Path, what: str) -> Any:
    try:
        return torch._C.PyTorchFileReader(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be opened as {what} ({_first_line(error)}); export it again") from error


def _zipped(path: Path) -> set[str]:
    """The names that Python's reader sees, to which torch turns where its own finds nothing."""
    try:
        with ZipFile(path) as archive:
            return {name.partition("/")[2] or name for name in archive.namelist()}
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: is a damaged archive ({error}); export it again") from error


def _examine_values(content: Any) -> None:
    """Whatever torch evaluates, imports, looks up or writes into code."""
    for key, value in _walk(content):
        if not _PLAIN.fullmatch(key):
            raise ValueError(f"has the name {key!r:.80}")
        if key in ("target", "as_operator"):
            _examine_function(value)
        elif key == "expr_str":
            _examine_expression(value)
        elif key in ("in_spec", "out_spec"):
            _examine_tree(value)
        elif key == "use_pickle" and value:
            raise ValueError("asks for objects to be unpickled")
        elif key == "treespec_namedtuple_fields" and value:
            raise ValueError("asks for classes of Python")
        elif key == "as_string" and re.fullmatch(r"[a-z,> .-]*", str(value), re.ASCII):
            continue  # of einsum, bk,bkd->bd: a word in quotes, in which none can stand
        elif key not in _TEXTS and isinstance(value, str) and not _PLAIN.fullmatch(value):
            raise ValueError(f"has the name {value!r:.80}")
        elif key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            raise ValueError(f"asks for {value!r:.80}")


def _walk(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values at any depth; what stands in a list, under the list's key."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield name, value
            yield from _walk(value, name)
    elif isinstance(tree, list):
        for value in tree:
            if not isinstance(value, (dict, list)):
                yield key, value
            yield from _walk(value, key)


def _examine_function(name: Any) -> None:
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", str(name), re.ASCII)
    known = str(name) in _FUNCTIONS or (found and (found[1], found[2]) in _operators() and found[1] not in _of_files())
    if not known:
        raise ValueError(f"calls {name!r:.80}, which no network needs")


def _examine_expression(text: Any) -> None:
    """Nested calls of algebra on symbols and whole numbers: `Mul(Integer(2), Symbol('s0', positive=True))`."""

    def fits(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            named = isinstance(node.func, ast.Name) and node.func.id in _ALGEBRA
            flags = all(
                isinstance(word.value, ast.Constant) and type(word.value.value) is bool for word in node.keywords
            )
            return named and flags and all(map(fits, node.args))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return fits(node.operand)
        value = node.value if isinstance(node, ast.Constant) else None
        number = type(value) in (int, bool) and abs(value) < 2**63  # type: ignore[arg-type]
        return number or (isinstance(value, str) and re.fullmatch(r"[suz]\d+", value, re.ASCII) is not None)

    try:
        sound = (
            isinstance(text, str) and len(text) < 10_000 and text.isascii() and fits(ast.parse(text, mode="eval").body)
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        sound = False
    if not sound and not re.fullmatch(r"[suz]?\d+", str(text), re.ASCII):
        raise ValueError(f"has the expression {text!r:.80}")


def _examine_tree(text: Any) -> None:
    """How arguments are nested: in tuples, lists and dictionaries."""
    tree = json.loads(text) if isinstance(text, str) else text
    strange = [value for key, value in _walk(tree) if key == "type" and not (value is None or str(value) in _TREES)]
    if strange:
        raise ValueError(f"asks for arguments of type {strange[0]!r:.80}")


@cache
def _operators() -> frozenset[tuple[str, str]]:
    """Torch's own operators: name and overload."""
    schemas = torch._C._jit_get_all_schemas()
    own = (schema for schema in schemas if schema.name.startswith("aten::"))
    return frozenset((schema.name.removeprefix("aten::"), schema.overload_name or "default") for schema in own)


@cache
def _of_files() -> frozenset[str]:
    """Operators, of whatever namespace, that are given a file's name or reach other machines."""
    schemas = torch._C._jit_get_all_schemas()
    found = {
        schema.name
        for schema in schemas
        if any(one.name in _FILES and str(one.type) in ("str", "Optional[str]") for one in schema.arguments)
    }
    return frozenset(name.partition("::")[2] for name in found) | _ELSEWHERE


def _reason(error: Exception) -> str:
    return "cannot be read" if isinstance(error, (json.JSONDecodeError, RecursionError)) else str(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
