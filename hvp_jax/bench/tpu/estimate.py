"""How long a compiled program takes on a TPU, by the compiler's own estimates.

A sum over the instructions of the program, the bodies of loops times their number of iterations:

- the compiler's `estimated_cycles`, at the clock of the chip;
- for a Pallas kernel, which has none: its arithmetic at the peak plus its bytes at the full
  bandwidth of the memory;
- for a collective, which has none: the bytes that a chip sends at the bandwidth of its links, as if
  nothing hid it;
- for other instructions without cycles (a sort, a gather, a scatter): twice the bytes of the
  result at the full bandwidth of the memory.

Copies between the memories of a chip that run beside other instructions are counted apart and are
not in the sum. Of what goes between slices, by their hosts' network, the bytes are counted.
"""

from typing import NamedTuple

from data.errors import DataError
from hvp_jax.bench.tpu.parts import EXCHANGE, OTHER, part_of
from hvp_jax.bench.tpu.program import Instruction, Program, array_bytes, root, trip_count
from hvp_jax.monitoring.accelerators import Peak, Tpu

CYCLES, KERNEL, BYTES, COPY = "cycles", "kernel", "bytes", "copy"
COLLECTIVE, ASYNC_COLLECTIVE = "collective", "asynchronous collective"
BETWEEN = " between slices"  # ends the name of a kind of collective that crosses them
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# They do nothing at run time, or are the second half of an asynchronous operation.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "domain"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done", "async-done"}
FREE |= {
    "send-done",
    "recv",
    "recv-done",
    "async-update",
    *(f"{kind}-done" for kind in COLLECTIVES),
}
FREE_CALLS = ("AssumeGatherIndicesInBound", "ConcatBitcast", "GatherScatterIndicesBitpacked")


class Item(NamedTuple):
    source: str  # CYCLES, KERNEL, ...
    part: str
    name: str  # of a kernel or of a kind of collective, otherwise empty


class Amount(NamedTuple):
    times: float
    bytes: float
    seconds: float
    largest: float = 0  # bytes of the largest array

    def plus(self, other: "Amount", times: float) -> "Amount":
        return Amount(
            self.times + times * other.times,
            self.bytes + times * other.bytes,
            self.seconds + times * other.seconds,
            max(self.largest, other.largest),
        )


class Tally(dict[Item, Amount]):
    """What the instructions of a computation cost."""

    def add(self, other: "Tally", times: float = 1) -> None:
        for item, amount in other.items():
            self[item] = self.get(item, Amount(0, 0, 0)).plus(amount, times)

    def seconds(self, *sources: str) -> float:
        """All time, or that of some sources; copies only if they are asked for."""
        return sum(
            amount.seconds
            for item, amount in self.items()
            if (item.source in sources if sources else item.source != COPY)
        )

    def by(self, field: str, *sources: str) -> dict[str, Amount]:
        """Sums by `part` or `name`, the longest first."""
        sums: dict[str, Amount] = {}
        for item, amount in self.items():
            if item.source in sources or (not sources and item.source != COPY):
                key = getattr(item, field)
                sums[key] = sums.get(key, Amount(0, 0, 0)).plus(amount, 1)
        return dict(sorted(sums.items(), key=lambda pair: -pair[1].seconds))


class Estimator:
    """Costs of a program's computations on a slice of `chips` chips.

    `loops_without_count` are run once.
    """

    def __init__(self, program: Program, peak: Peak, chip: Tpu, chips: int):
        self.program, self.peak, self.chip, self.chips = program, peak, chip, chips
        self.loops_without_count: list[str] = []
        self._tallies: dict[tuple[str, str], Tally] = {}

    def total(self) -> Tally:
        return self.tally(self.program.entry, "")

    def tally(self, name: str, scope: str) -> Tally:
        """The costs of one run of a computation; `scope` names what has no name of its own."""
        if (name, scope) not in self._tallies:
            computation = self.program.computations[name]
            total = Tally()
            for instruction in computation.values():
                total.add(self._cost(instruction, computation, scope))
            self._tallies[name, scope] = total
        return self._tallies[name, scope]

    def _cost(self, x: Instruction, computation: dict, scope: str) -> Tally:
        name = _name(x, computation)
        if part_of(name) == OTHER and scope:
            name = scope
        if x.opcode == "while":
            trips = trip_count(self.program, computation, x)
            if trips is None:
                self.loops_without_count.append(x.op_name or x.name)
            total = Tally()
            total.add(self.tally(x.called("body"), name), 1 if trips is None else trips)
            return total
        if x.opcode == "conditional":
            branches = x.attribute(r"branch_computations=\{([^}]*)\}").split(", ")
            branches += [x.called("true_computation"), x.called("false_computation")]
            tallies = [self.tally(b.strip("%"), name) for b in branches if b]
            return max(tallies, key=Tally.seconds)
        if x.opcode in ("call", "async-start"):
            return self.tally(x.called("to_apply") or x.called("calls"), name)
        if _is_kernel(x):
            return self._kernel(x, computation, name)
        kind = x.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return self._collective(x, computation, x.opcode != kind)
        if x.opcode == "send":
            return _between_slices(x)
        if x.opcode == "fusion":
            return self._fusion(x, name)
        return self._plain(x, computation, part_of(name))

    def _plain(self, x: Instruction, computation: dict, part: str) -> Tally:
        if x.cycles is not None:
            return Tally({Item(CYCLES, part, ""): Amount(1, 0, x.cycles / self.chip.clock)})
        target = x.attribute(r'custom_call_target="(\w+)"')
        if x.opcode in FREE or target in FREE_CALLS or (target and not x.operands):
            return Tally()  # a call without operands allocates a buffer
        arrays = array_bytes(x.shape)
        if x.opcode in ("copy-start", "slice-start"):
            moved = min(arrays[:2], default=0.0)  # of the source and what is made of it
            seconds = moved / self.peak.bandwidth
            return Tally({Item(COPY, part, ""): Amount(1, moved, seconds)})
        if x.opcode == "dynamic-update-slice" and x.operands[1] in computation:
            arrays = array_bytes(computation[x.operands[1]].shape)
        moved = 2 * sum(arrays)
        return Tally({Item(BYTES, part, ""): Amount(1, moved, moved / self.peak.bandwidth)})

    def _fusion(self, x: Instruction, name: str) -> Tally:
        total = Tally()
        called = x.called("calls")
        fused = self.program.computations.get(called, {})
        # A collective that runs beside other fusions has a step in each of them: it is counted
        # where it starts.
        starts = x.name.startswith("async-collective-start")
        ends = x.name.startswith("async-collective-done")
        chained = called.startswith("async_collective_fusion") or ends
        for inner in fused.values():
            if _is_kernel(inner):
                total.add(self._kernel(inner, fused, name))
            if inner.opcode in COLLECTIVES and not chained:
                total.add(self._collective(inner, fused, starts))
        if not (starts or ends) and (x.cycles is not None or not total):
            total.add(self._plain(x, fused, part_of(name)))
        return total

    def _collective(self, x: Instruction, computation: dict, asynchronous: bool) -> Tally:
        kind = x.opcode.removesuffix("-start")
        if kind == "all-reduce" and root(computation).opcode == "dynamic-slice":
            kind = "reduce-scatter"  # so the compiler writes one that pads its operand
        arrays = [b for o in x.operands if o in computation for b in operand_bytes(computation, o)]
        size, n = sum(arrays), self.chips
        # In a ring, a chip sends all shards but one of the complete array.
        sent = {
            "all-gather": (n - 1) * size,
            "all-reduce": 2 * (n - 1) / n * size,
            "collective-permute": size,
        }.get(kind, (n - 1) / n * size)
        complete = n * size if kind == "all-gather" else size
        item = Item(ASYNC_COLLECTIVE if asynchronous else COLLECTIVE, EXCHANGE, kind)
        largest = max(arrays, default=0) * complete / (size or 1)
        return Tally({item: Amount(1, complete, sent / self.chip.link, largest)})

    def _kernel(self, x: Instruction, computation: dict, name: str) -> Tally:
        kernel = x.attribute(r'op_name="[^"]*?([\w.\-]+)/pallas_call') or x.name
        flops = x.attribute(r'"cost_estimate":\{[^}]*"flops":"(\d+)"')
        if not flops:
            raise DataError(
                f"the kernel {kernel} has no cost estimate and would be counted as free; give its "
                "pallas_call cost_estimate=pl.CostEstimate(flops=..., transcendentals=..., "
                "bytes_accessed=...)"
            )
        moved = sum(array_bytes(x.shape))
        # An operand that is given several times is read in parts, once.
        moved += sum(b for o in set(x.operands) for b in operand_bytes(computation, o))
        seconds = int(flops) / self.peak.flops + moved / self.peak.bandwidth
        return Tally({Item(KERNEL, part_of(name), kernel): Amount(1, moved, seconds)})


def _between_slices(x: Instruction) -> Tally:
    """What a chip gives to its host, as the compiler writes a collective across slices."""
    kind = x.attribute(r'_xla_megascale_transfer_type="(\w+)"').lower().replace("_", "-")
    moved = max(array_bytes(x.shape))
    item = Item(COLLECTIVE, EXCHANGE, kind + BETWEEN)
    return Tally({item: Amount(1, moved, 0, moved)})


def _is_kernel(x: Instruction) -> bool:
    return x.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in x.rest


def operand_bytes(computation: dict[str, Instruction], name: str) -> list[float]:
    return array_bytes(computation[name].shape) if name in computation else []


def _name(x: Instruction, computation: dict[str, Instruction]) -> str:
    """The operation's name, or that of what made its operand, or an empty string."""
    for _ in range(8):
        if x.op_name or not x.operands or x.operands[0] not in computation:
            break
        x = computation[x.operands[0]]
    return x.op_name
