"""PTX, as NVRTC makes it of one kernel, as C++: a register is a variable, a branch a goto.

What is not known here is an error and not a guess. `machine.h` says what memory, barriers and the
arithmetic of a GPU do. The approximate instructions are computed exactly, and ptxas may contract
nothing here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TYPES = {
    **{f"{kind}{bits}": f"u{bits}" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"s{bits}" for bits in (8, 16, 32, 64)},
    "f16": "u16",
    "f32": "float",
    "pred": "bool",
}
_REGISTER = re.compile(r"%(?:p|rs|rd|r|f|h)\d+")
_INFIX = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^", "div": "/", "rem": "%"}
_CALLS = {"min", "max", "popc", "prmt", "sqrt", "rsqrt", "rcp", "lg2", "ex2", "sin", "cos", "abs"}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
#: Comparisons that are true, too, where a side is not a number.
_UNORDERED = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
_ROUNDED = {"rni": "nearbyintf", "rzi": "truncf", "rmi": "floorf", "rpi": "ceilf"}


@dataclass(frozen=True)
class Kernel:
    """A kernel in C++.

    Attributes:
        name: Its name.
        body: The statements of one thread.
        parameters: The types of its parameters.
        shared: Bytes of shared memory.
        sizes: How many instructions each straight piece has.
        waits: Whether there is a barrier.
    """

    name: str
    body: str
    parameters: list[str]
    shared: int
    sizes: list[int]
    waits: bool


def translate(ptx: str) -> Kernel:
    """One kernel of a module.

    Raises:
        ValueError: There is something in it that is not known here.
    """
    text = re.sub(r"//[^\n]*", "", ptx)
    head, body = re.split(r"\n\{\n", text, maxsplit=1)
    name = re.search(r"\.entry (\w+)\(", head)[1]
    parameters = re.findall(rf"\.param \.(\w+) {name}_param_\d+", head)
    work = _Work(name)
    for line in body.rsplit("}", 1)[0].splitlines():
        if line.strip():
            work.take(line.strip())
    return Kernel(name, work.text(), parameters, work.shared, work.sizes, work.waits)


class _Work:
    """A kernel that is being translated."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.declared: list[str] = []
        self.lines: list[str] = ["PIECE(0);"]
        self.sizes = [0]
        self.places: dict[str, int] = {}
        self.shared, self.waits = 0, False

    def text(self) -> str:
        return "\n".join([*self.declared, *self.lines])

    def take(self, line: str) -> None:
        register = re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>;", line)
        memory = re.fullmatch(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", line)
        label = re.fullmatch(r"\$?(\w+):", line)
        if register:
            kind, prefix, count = register.groups()
            names = ", ".join(f"{prefix}{i} = 0" for i in range(int(count)))
            self.declared.append(f"{_TYPES[kind]} {names};")
        elif memory:
            align, name, size = int(memory[1]), memory[2], int(memory[3])
            self.places[name] = -(-self.shared // align) * align
            self.shared = self.places[name] + size
        elif label:
            self.lines.append(f"{label[1]}:;")
            self._piece()
        elif line.startswith(".pragma"):
            pass
        elif line.startswith("."):
            raise ValueError(f"{self.name}: {line}")
        else:
            self._statement(line.rstrip(";"))

    def _piece(self) -> None:
        self.lines.append(f"PIECE({len(self.sizes)});")
        self.sizes.append(0)

    def _statement(self, line: str) -> None:
        guard = re.match(r"@(!?)%(p\d+)\s+", line)
        rest = line[guard.end() :] if guard else line
        opcode, *operands = rest.split(None, 1)
        given = _operands(operands[0]) if operands else []
        try:
            done = self._instruction(opcode.split("."), given)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.name}: {line}") from error
        condition = f"if ({guard[1]}{guard[2]}) " if guard else ""
        self.lines.append(f"{condition}{{ {done} }}")
        self.sizes[-1] += 1
        if opcode.startswith("bra"):
            self._piece()

    def _instruction(self, opcode: list[str], given: list[str]) -> str:
        kind, last = opcode[0], opcode[-1]
        if kind == "ret":
            return "return;"
        if kind == "bra":
            return f"goto {given[0].lstrip('$')};"
        if kind == "bar":
            self.waits = True
            return "barrier();"
        if kind in ("ld", "st"):
            return self._memory(opcode, given)
        to, sources = given[0].lstrip("%"), given[1:]
        typed = [self._value(source, _TYPES[last]) for source in sources]
        return f"set({to}, {self._expression(kind, opcode, sources, typed)});"

    def _expression(self, kind: str, opcode: list[str], given: list[str], typed: list[str]) -> str:
        last = opcode[-1]
        own, wide = _TYPES[last], "wide" in opcode
        if kind in ("mov", "cvta"):
            return typed[0]
        if kind == "neg":
            return f"({own})-{typed[0]}"
        if kind == "not":
            return f"({own}){'!' if last == 'pred' else '~'}{typed[0]}"
        if kind in _INFIX:
            return f"({own})({typed[0]} {_INFIX[kind]} {typed[1]})"
        if kind in _CALLS:
            return f"do_{kind}({', '.join(typed)})"
        if kind == "mul" and wide:
            double = f"{own[0]}{2 * int(own[1:])}"
            return f"({double}){typed[0]} * ({double}){typed[1]}"
        if kind == "mul" and "hi" in opcode:
            return f"high_half({typed[0]}, {typed[1]})"
        if kind == "mul":
            return f"({own})({typed[0]} * {typed[1]})"
        if kind == "mad" and "lo" in opcode:
            return f"({own})({typed[0]} * {typed[1]} + {typed[2]})"
        if kind == "fma" and "rn" in opcode:
            return f"fmaf({', '.join(typed)})"
        if kind in ("shl", "shr"):
            return f"do_{kind}({typed[0]}, {self._value(given[1], 'u32')})"
        if kind == "selp":
            return f"{given[2].lstrip('%')} ? {typed[0]} : {typed[1]}"
        if kind == "setp":
            how = opcode[1]
            if how in _COMPARE:
                return f"{typed[0]} {_COMPARE[how]} {typed[1]}"
            return f"!({typed[0]} {_UNORDERED[how]} {typed[1]})"
        if kind == "cvt":
            return self._converted(opcode, given[0])
        raise KeyError(kind)

    def _converted(self, opcode: list[str], given: str) -> str:
        to, source = opcode[-2:]
        value = self._value(given, _TYPES[source])
        if (to, source) == ("f32", "f16"):
            return f"_cvtsh_ss({value})"
        if (to, source) == ("f16", "f32"):
            return f"(u16)_cvtss_sh({value}, 0)"
        if (to, source) == ("bf16", "f32"):
            return f"to_bfloat16({value})"
        rounded = [_ROUNDED[o] for o in opcode if o in _ROUNDED]
        if rounded:
            value = f"{rounded[0]}({value})"
        elif source == "f32" and to != "f32":
            raise KeyError(to)
        return f"do_sat({value})" if "sat" in opcode else f"({_TYPES[to]}){value}"

    def _memory(self, opcode: list[str], given: list[str]) -> str:
        kind, space, own = opcode[0], opcode[1], _TYPES[opcode[-1]]
        place, values = (given[1], given[0]) if kind == "ld" else (given[0], given[1])
        base, offset = re.fullmatch(r"\[([^+\]]+)\+?(-?\d+)?\]", place).groups()
        if space == "param":
            number = base.removeprefix(f"{self.name}_param_")
            return f"set({values.lstrip('%')}, *({own} *)parameters[{number}]);"
        if space not in ("global", "shared"):
            raise KeyError(space)
        each = values.strip("{}").split(",")
        names = [v.strip().lstrip("%") for v in each]
        where = f"{self._value(base, 'u64')} + {offset or 0}"
        if kind == "ld":
            read = "".join(f" set({n}, got[{i}]);" for i, n in enumerate(names))
            return f"{own} got[{len(names)}]; read_{space}({where}, got, sizeof got);{read}"
        put = ", ".join(self._value(v.strip(), own) for v in each)
        return f"{own} put[] = {{{put}}}; write_{space}({where}, put, sizeof put);"

    def _value(self, operand: str, kind: str) -> str:
        """An operand, read as a type."""
        if _REGISTER.fullmatch(operand):
            return f"as<{kind}>({operand[1:]})"
        special = re.fullmatch(r"%(n?tid|n?ctaid)\.([xyz])", operand)
        if special:
            return f"as<{kind}>(grid.{special[1]}.{special[2]})"
        if operand.startswith("0f"):
            return f"as<{kind}>(as<float>(0x{operand[2:]}u))"
        if re.fullmatch(r"-?\d+", operand):
            return f"({kind}){operand}" + ("ll" if int(operand) < 2**63 else "ull")
        return f"({kind})(shared_memory + {self.places[operand]})"


def _operands(text: str) -> list[str]:
    """What is between commas, but for those in braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text)]
