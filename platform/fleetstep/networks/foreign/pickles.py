"""Pickles of others, read without running them.

A pickle is a program, and `pickle.load` runs it: it imports what the file names and calls it. The
interpreter here has no such operation. It knows the opcodes that build data; a call in the file
becomes a `Record` of what would have been called with what, and nothing is called. Names outside
an allow-list are refused all the same, so that a hostile file is named as one.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.foreign.refusals import cut, shown

# Network pickles have some hundred thousand at most.
_MOST_OPCODES = 1_000_000
# Of a whole number: torch's magic number has 77. Larger ones overflow whatever counts with them.
_MOST_BITS = 80
_MOST_KEY_BITS = 60
_NEWEST_PROTOCOL = 5
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PERSISTENT_ID = "persistent id"
_REMEDY = (
    "it can run programs when it is opened as a pickle: do not open it with other software unless "
    "you trust its source; ask its author for safetensors"
)


class Source(Protocol):
    """A file-like object whose `read(n)` gives at most what is there (`mmap`, `io.BytesIO`)."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""

    def readline(self) -> bytes:
        """Bytes up to the end of the line."""

    def tell(self) -> int:
        """Position in bytes."""


@dataclass(frozen=True)
class Global:
    """A name that the file refers to, module and all; never imported."""

    name: str


@dataclass(eq=False)
class Record:
    """A call that the file asks for and that is not made.

    Attributes:
        name: what would be called, such as "collections.OrderedDict".
        arguments: with what.
        state: what would be set on the result afterwards.
        items: what would be stored in the result under keys.
    """

    name: str
    # Not shown: what holds itself many times over takes forever to print.
    arguments: tuple[Any, ...] = field(repr=False)
    state: Any = field(default=None, repr=False)
    items: dict[Any, Any] = field(default_factory=dict, repr=False)


def read_pickle(
    source: Source,
    allowed: Collection[str],
    *,
    tensors: bool = False,
    most_opcodes: int = _MOST_OPCODES,
) -> Any:
    """The value of the pickle that starts here; the source is left behind its end.

    Numbers, strings, bytes, None, tuples, lists, dicts, sets, `Record`s and `Global`s come out.

    Args:
        source: where the pickle is.
        allowed: names that it may refer to.
        tensors: whether it may refer to storages by a persistent id, as torch.save does; such a
            reference becomes a `Record` named "persistent id".
        most_opcodes: how many it may have.

    Raises:
        ForeignWeightsError: it refers to anything else, uses an opcode that plain data does not
            need, or is damaged.
    """
    machine = _Machine(frozenset(allowed), tensors)
    position = 0
    try:
        # Only read, readline and tell are called.
        for count, step in enumerate(pickletools.genops(cast(IO[bytes], source))):
            opcode, argument, position = step[0], step[1], step[2] or 0
            if count >= most_opcodes:
                raise ForeignWeightsError(
                    f"the pickle has more than {most_opcodes} opcodes", "it is no network's"
                )
            machine.step(opcode.name, argument)
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise ForeignWeightsError(
            f"the pickle is damaged at or after byte {position}: {shown(error)}",
            "fetch the file again",
        ) from error
    return machine.result()


class _Machine:
    """The pickle machine without its calls: a stack of values, marks on it, and a memo."""

    def __init__(self, allowed: frozenset[str], tensors: bool) -> None:
        self._allowed, self._tensors = allowed, tensors
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._actions: dict[str, Callable[[], None]] = {
            "MARK": lambda: self._marks.append(len(self._stack)),
            "MEMOIZE": lambda: self._remember(len(self._memo)),
            "EMPTY_LIST": lambda: self._stack.append([]),
            "EMPTY_DICT": lambda: self._stack.append({}),
            "EMPTY_SET": lambda: self._stack.append(set()),
            "TUPLE": lambda: self._stack.append(tuple(self._since_mark())),
            "APPEND": lambda: self._extend([self._stack.pop()]),
            "APPENDS": lambda: self._extend(self._since_mark()),
            "ADDITEMS": lambda: self._add(self._since_mark()),
            "SETITEM": lambda: self._set_items(self._last(2)),
            "SETITEMS": lambda: self._set_items(self._since_mark()),
            "STACK_GLOBAL": lambda: self._refer(*self._last(2)),
            "REDUCE": self._record_call,
            "NEWOBJ": self._record_call,
            "BUILD": self._record_state,
        }

    def step(self, opcode: str, argument: Any) -> None:
        """Do what one opcode asks for, if that is only to build data."""
        if opcode in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
                raise ValueError(f"a whole number of {argument.bit_length()} bits")
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self._stack.append(tuple(self._last(_TUPLES[opcode])))
        elif opcode in self._actions:
            self._actions[opcode]()
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif opcode in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif opcode == "GLOBAL":
            self._refer(*argument.split(" ", 1))
        elif opcode == "BINPERSID" and self._tensors:
            self._stack.append(Record(PERSISTENT_ID, (self._stack.pop(),)))
        elif opcode == "PROTO" and argument > _NEWEST_PROTOCOL:
            raise ValueError(f"protocol {argument}")
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise ForeignWeightsError(
                f"the pickle uses the opcode {opcode}, which plain data and tensors do not need",
                _REMEDY,
            )

    def result(self) -> Any:
        """What is left when the pickle has stopped."""
        if len(self._stack) != 1 or self._marks:
            raise ForeignWeightsError("the pickle is damaged at its end", "fetch the file again")
        return self._stack.pop()

    def _last(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise IndexError("the stack is empty")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _since_mark(self) -> list[Any]:
        return self._last(len(self._stack) - self._marks.pop())

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("only a list is appended to")
        self._stack[-1].extend(values)

    def _add(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not set:
            raise TypeError("only a set is added to")
        self._stack[-1].update(map(_key, values))

    def _set_items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        items = target.items if isinstance(target, Record) else target
        if type(items) is not dict or len(flat) % 2:
            raise TypeError("only a mapping takes items, in pairs")
        items.update(zip(map(_key, flat[::2]), flat[1::2], strict=True))

    def _refer(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a module and a name in it are strings")
        full = f"{module}.{name}"
        if full not in self._allowed:
            raise ForeignWeightsError(
                f"the pickle refers to {cut(full, 200)}, which is refused; allowed are "
                f"{', '.join(sorted(self._allowed))}",
                _REMEDY,
            )
        self._stack.append(Global(full))

    def _record_call(self) -> None:
        function, arguments = self._last(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError("only a name is called, with a tuple")
        self._stack.append(Record(function.name, arguments))

    def _record_state(self) -> None:
        (state,) = self._last(1)
        if not isinstance(self._stack[-1], Record) or self._stack[-1].state is not None:
            raise TypeError("only a fresh object takes a state")
        self._stack[-1].state = state


def _key(value: Any) -> str | int:
    # Anything deeper could take exponential time to hash, and larger numbers could all collide.
    if not isinstance(value, str | int):
        raise TypeError(f"a key is a string or a whole number, not {type(value).__name__}")
    if isinstance(value, int) and value.bit_length() > _MOST_KEY_BITS:
        raise ValueError(f"a key of {value.bit_length()} bits")
    return value
