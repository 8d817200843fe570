"""What a pt2 archive may say before PyTorch reads it.

``torch.export.load`` hands texts of the archive to Python: sizes go through ``sympy.sympify`` and
guards are compiled, so a crafted ``models/*.json`` runs code on load without any pickle in it. The
check here lets only arithmetic on sizes through, plain names, and operators that compute.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

from forward_inf_mlflow.errors import ModelError, UnsafeModelError

_NAME = re.compile(r"[\w.+:\-]*")
_WORD = re.compile(r"\w*")
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_\w+|_operator\.\w+|math\.\w+"
)
_FORBIDDEN_OPERATOR = re.compile(r"torch\.ops\.aten\.from_file\..*|_operator\.\w*(call|attr)\w*")
#: Free text that PyTorch keeps for people, and literals that it quotes itself.
_FREE_TEXT = frozenset({"stack_trace", "nn_module_stack", "torch_fn", "from_node", "custom"})
_LITERALS = frozenset({"as_string", "as_strings"})
_SPECS = frozenset({"in_spec", "out_spec"})
_EXPRESSIONS = frozenset({"expr_str", "guards_code"})

_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Min|Max|Abs|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge"
    r"|Equality|Unequality|(Strict)?(Less|Greater)Than|(Floor|Clean|Ceil|IntTrue|FloatTrue)Div"
    r"|PythonMod|ModularIndexing|Where|ToFloat|(Trunc|Ceil|Floor|Round)ToInt|PowByNatural|FloatPow"
)
_SYMBOL = re.compile(r"[suz]+f?[0-9]+|L|math")
_METHODS = frozenset({"size", "stride", "storage_offset", "isnan"})
_GRAMMAR = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Call, ast.keyword),
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.Load, ast.operator, ast.unaryop),
    *(ast.boolop, ast.cmpop),
)


def check_archive(path: Path) -> None:
    """Refuse a pt2 archive whose texts would do anything but describe a computation.

    Pickles in the archive are not looked at: MLflow refuses those itself.

    Raises:
        UnsafeModelError: A text in the archive is none that ``torch.export.save`` writes.
        ModelError: The file is not an archive.
    """
    try:
        _require_one_directory(path)
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.filename.lower().endswith(".json"):
                    _check(json.loads(archive.read(record).decode("utf-8")), key="")
    except (OSError, zipfile.BadZipFile, ValueError, RecursionError) as error:
        raise ModelError(f"model.pt2 is damaged ({type(error).__name__}): log it again.") from error


def _require_one_directory(path: Path) -> None:
    """Refuse an archive of which two readers could see different contents.

    Python corrects the place of the central directory where bytes were put before it, PyTorch's
    reader takes it as it is written. They agree if the directory ends where its end record begins
    and nothing follows that.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 22))
        end = file.read()
        if len(end) != 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
            raise zipfile.BadZipFile("it does not end with its directory")
        length, offset = struct.unpack("<II", end[12:20])
        begins = size - 22
        file.seek(max(0, size - 22 - 20))
        locator = file.read(20)
        if locator[:4] == b"PK\x06\x07":
            (begins,) = struct.unpack("<Q", locator[8:16])
            file.seek(begins)
            record = file.read(56)
            if record[:4] != b"PK\x06\x06" or begins + 56 != size - 22 - 20:
                raise zipfile.BadZipFile("its directory is not where it says")
            length, offset = struct.unpack("<QQ", record[40:56])
    if offset + length != begins:
        raise zipfile.BadZipFile("its directory is not where it says")


def _check(value: Any, *, key: str) -> None:
    """Walk one JSON value; ``key`` is the name of the nearest mapping entry that holds it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _require(_NAME.fullmatch(name) is not None, name)
            _check(inner, key=name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key=key)
    elif isinstance(value, str):
        # By its own name only: a tensor may bear any name, and what lies below it is no free text.
        if key in _FREE_TEXT or key in _LITERALS:
            return
        if key in _EXPRESSIONS:
            _require(_is_arithmetic(value), value)
        elif key in _SPECS:
            _check(json.loads(value), key="")
        elif key == "target":
            known = _OPERATOR.fullmatch(value) and not _FORBIDDEN_OPERATOR.fullmatch(value)
            _require(bool(known) or value == "", value)
        elif key == "context":
            context = json.loads(value)
            _require(not _holds_mapping(context), value)  # those name a class to import
            _check(context, key="")
        else:
            _require(_NAME.fullmatch(value) is not None, value)


def _holds_mapping(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and any(_holds_mapping(inner) for inner in value)
    )


def _require(allowed: bool, text: str) -> None:
    if not allowed:
        raise UnsafeModelError(
            f"model.pt2 holds {text[:60]!r}, which could run code on loading: log the model with "
            "plain PyTorch operators, or permit it with --allow-pickle if you trust who made it."
        )


def _is_arithmetic(text: str) -> bool:
    """Say whether ``text`` only computes with sizes, as in ``L['x'].size()[0] >= 2``."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except SyntaxError:
        return False
    return all(isinstance(node, _GRAMMAR) and _is_harmless(node) for node in nodes)


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.LShift | ast.Pow):
        return False  # 9**9**9 would never end; sympy writes powers as calls
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and "Pow" in node.func.id:
            power = node.args[1] if len(node.args) == 2 else None
            if isinstance(power, ast.Call) and len(power.args) == 1:  # Integer(2)
                power = power.args[0]
            if not isinstance(power, ast.Constant) or not isinstance(power.value, int):
                return False
            return -8 <= power.value <= 8
        return isinstance(node.func, ast.Name | ast.Attribute)
    if isinstance(node, ast.Name):
        return bool(_FUNCTION.fullmatch(node.id) or _SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS or node.attr == "inf"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _WORD.fullmatch(node.value) is not None
    return True
