"""The pickle inside a torch file as plain data: no class is looked up and nothing is called.

A pickle is a program for a small stack machine. This one knows what torch writes, and puts down where a tensor's data
lie in place of making the tensor. So its cost is that of its opcodes, whose number is limited, and none of the holes of
torch's own reader matter (CVE-2025-32434, CVE-2026-24747).
"""

import pickletools
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

PICKLE_LIMIT = 4_000_000  # bytes; a Stable Diffusion checkpoint has 150 KB of it
_OPCODES = 200_000  # a tensor takes 32, a checkpoint with a second copy of its weights 80,000
_KEYS = (str, bytes, int, type(None))
_KEY_LIMIT = 1 << 60  # larger integers, and tuples, can be made to have all the same hash

# All that torch writes for tensors and the containers of models.
_KNOWN = {
    *("collections.OrderedDict", "collections.Counter", "collections.defaultdict"),
    *("builtins.set", "builtins.dict", "builtins.list", "builtins.bytearray", "builtins.complex", "_codecs.encode"),
    *("torch.nn.modules.container.ParameterDict", "torch.nn.parameter.Parameter", "torch.Tensor", "torch.Size"),
    *("torch.device", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2"),
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    *("torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor"),
}
_KNOWN_TYPES = re.compile(
    r"torch\.(storage\.)?[A-Za-z0-9]+Storage|torch\.(bool|b?float\d\w*|complex\d+|q?u?int\d\w*)|torch\.per_\w+"
)


class UnknownName(ValueError):
    """A class or function which is none of torch's for tensors; its name is the message."""


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function, such as "torch.FloatStorage"."""

    text: str


@dataclass(eq=False)
class Call:
    """What calling `name` with `arguments` would have made, and the `state` it would have been given."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class Stored:
    """A persistent id, which in torch's files says where data lie: ("storage", type, key, device, count)."""

    id: Any


def load(file: BinaryIO) -> tuple[Any, list[Stored]]:
    """The next pickle of a file, and all that it says to lie elsewhere in the file.

    It is made of dictionaries, lists (sets too), tuples, numbers, texts, `Name`, `Call` and `Stored`.

    Raises:
        UnknownName: it refers to something that is no part of tensors.
        ValueError: it is damaged, too long, or uses what torch never writes.
    """
    try:
        return _run(file)
    except (IndexError, KeyError, AttributeError, TypeError, OverflowError) as error:  # of a stack that is not there
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from error


_CONSTANTS = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple},
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list},
}
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _run(file: BinaryIO) -> tuple[Any, list[Stored]]:
    stack: list[Any] = []
    stored: list[Stored] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[Any, Any] = {}

    def popped_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > _OPCODES:
            raise ValueError(f"its pickle has more than {_OPCODES} steps, more than any model needs")
        name = opcode.name
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            width = int(name[-1])
            if len(stack) < width:
                raise IndexError
            stack[-width:] = [tuple(stack[-width:])]
        elif name == "TUPLE":
            items = popped_mark()
            stack.append(tuple(items))
        elif name in ("LIST", "DICT"):
            items = popped_mark()
            stack.append(items if name == "LIST" else _filled({}, items))
        elif name == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif name in ("APPENDS", "ADDITEMS"):
            items = popped_mark()
            _list(stack[-1]).extend(items)
        elif name == "SETITEM":
            item = [stack.pop(-2), stack.pop()]
            _filled(stack[-1], item)
        elif name == "SETITEMS":
            items = popped_mark()
            _filled(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_known(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_known(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Call):
                stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(_persistent(stack.pop()))
            if isinstance(stack[-1], Stored):
                stored.append(stack[-1])
        elif name == "STOP":
            return stack.pop(), stored
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle uses {name}, which torch never writes")
    raise ValueError("its pickle has no end")


def _known(module: str, attribute: str) -> Name:
    name = ".".join(("builtins" if module == "__builtin__" else module, attribute))
    if name not in _KNOWN and not _KNOWN_TYPES.fullmatch(name):
        raise UnknownName(name.removeprefix("builtins."))
    return Name(name)


def _persistent(id_: Any) -> Name | Stored:
    match id_:
        case ("module", Name() as kind, *_):  # before torch 1.6 a module's class came with its source code
            return kind
    return Stored(id_)


def _called(function: Name, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(arguments, tuple):
        raise TypeError
    if function.text in ("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"):
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else ()
        return _filled({}, [x for pair in pairs for x in pair])  # as Python 2 wrote them
    if function.text in ("builtins.set", "builtins.list"):
        return list(arguments[0]) if arguments else []
    return Call(function.text, arguments)


def _filled(target: Any, items: list[Any]) -> dict[Any, Any]:
    if not isinstance(target, dict) or len(items) % 2 or not all(map(_is_key, items[::2])):
        raise TypeError
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


def _is_key(key: Any) -> bool:
    return isinstance(key, _KEYS) and (not isinstance(key, int) or abs(key) < _KEY_LIMIT)


def _list(target: Any) -> list[Any]:
    if not isinstance(target, list):
        raise TypeError
    return target
