"""Reads the text of a program that TPU's compiler has made: its computations and instructions.

The text is HLO after scheduling: the instructions of a computation stand in the order in which they
run. The compiler writes its own estimate of an instruction's cycles into the instruction's
`backend_config`.
"""

import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}

# The compiler writes the greatest number of 64 bits where it has no estimate of the cycles.
NO_ESTIMATE = 2**63 - 1
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The layout in a shape has parentheses too, but none after a space and a word.
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\dm\d\w*)?\[([\d,]*)\]")


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]  # names of instructions of the same computation
    rest: str  # of the line, after the opening parenthesis of the operands
    is_root: bool

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes, or an empty string."""
        match = re.search(pattern, self.rest)
        return match[1] if match else ""

    def called(self, role: str) -> str:
        """The name of the computation that it calls as `role`: calls, to_apply, body, condition."""
        return self.attribute(rf"\b{role}=%([\w.\-]+)")

    @property
    def op_name(self) -> str:
        """JAX's name of the operation: its scopes and primitive, separated by slashes."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, or None if it makes none."""
        found = int(self.attribute(r'"estimated_cycles":"(\d+)"') or NO_ESTIMATE)
        return found if found < NO_ESTIMATE else None


class Program(NamedTuple):
    computations: dict[str, dict[str, Instruction]]  # by name, then the instructions by name
    entry: str


def parse(text: str) -> Program:
    """Raises ValueError if the text has no entry computation."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if match := _COMPUTATION.match(line):
                current = computations[match[2]] = {}
                entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif match := _INSTRUCTION.match(line):
            root, name, shape, opcode, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
            current[name] = Instruction(name, shape, opcode, operands, rest, bool(root))
    if not entry:
        raise ValueError("the text of the compiled program has no ENTRY")
    return Program(computations, entry)


def array_bytes(shape: str) -> list[float]:
    """The bytes of every array of a shape, without the padding of its layout."""
    return [
        math.prod(int(n) for n in dims.split(",") if n) * BITS.get(dtype, 8) / 8
        for dtype, dims in _ARRAY.findall(shape)
    ]


def root(computation: dict[str, Instruction]) -> Instruction:
    return next(x for x in computation.values() if x.is_root)


def constant(computation: dict[str, Instruction], name: str) -> int | None:
    """The integer that an instruction is a copy of, or None."""
    instruction = computation.get(name)
    while instruction and instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    match = re.match(r"(-?\d+)\)", instruction.rest)
    return int(match[1]) if match else None


def _carry_index(computation: dict[str, Instruction], name: str) -> int | None:
    """The element of the loop's carry that an instruction is a copy of, or None."""
    x = computation.get(name)
    while x and x.opcode in ("copy", "bitcast"):
        x = computation.get(x.operands[0])
    if x is None or x.opcode != "get-tuple-element":
        return None
    return int(x.attribute(r"index=(\d+)"))


def trip_count(
    program: Program, computation: dict[str, Instruction], loop: Instruction
) -> int | None:
    """How often the body of a `while` of `computation` runs; None if the text does not say it.

    Loops of JAX's `scan`, `map` and `fori_loop` count one element of the carry up to a limit. The
    limit, the start and the step are constants: of the condition, or of the tuple that enters.
    """
    condition = program.computations[loop.called("condition")]
    body = program.computations[loop.called("body")]
    carry = computation.get(loop.operands[0])

    def entering(index: int) -> int | None:
        known = carry is not None and carry.opcode == "tuple"
        return constant(computation, carry.operands[index]) if known and carry else None

    compare = root(condition)
    limits = [constant(condition, x) for x in compare.operands]
    counters = [_carry_index(condition, x) for x in compare.operands]
    if compare.opcode == "fusion":  # the comparison, and its constant, may be inside
        fused = program.computations[compare.called("calls")]
        limits += [constant(fused, name) for name in fused]
        compare = root(fused)
    indices = [index for index in counters if index is not None]
    counter = indices[0] if indices else None
    limits += [entering(index) for index in indices[1:]]
    limit = next((value for value in limits if value is not None), None)
    if counter is None or limit is None or compare.attribute(r"direction=(\w\w)") != "LT":
        return None
    step, following = 1, body.get(root(body).operands[counter])
    if following and following.opcode == "add":
        step = next((n for x in following.operands if (n := constant(body, x))), 1)
    return max(0, math.ceil((limit - (entering(counter) or 0)) / step))
