"""How functions of (state, batch) are laid over devices and processes. Nothing else knows.

A training step is laid over all devices of all processes, by `pmap` or by `jit` of
`shard_map` on a mesh; both compute the same numbers. Each process brings its own part
[B / processes, ...] of a batch. Encoding is laid over the devices of one process: what
clips and texts become is exchanged on the host.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data.errors import UsageError
from hvp_jax.parallel.sharding import Collectives, shard_axis

AXIS = "batch"


def make_mesh(devices: list) -> Mesh:
    """The one axis that batches lie along, over `devices`."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _shape_at(x, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _with_stop(step: Callable) -> Callable:
    """`step` for a batch and the stop flags of its examples; the step itself sees no flags."""

    def train_step(state, batch_and_stop, collectives: Collectives):
        batch, stop = batch_and_stop
        state, metrics = step(state, batch, collectives=collectives)
        return state, metrics | {"stop": collectives.any(stop)}

    return train_step  # the name that profiles show


class Partitioner:
    """The devices of a run and the way steps are laid over them.

    `fsdp`: a device holds a part of parameters and moments (`hvp_jax/parallel/sharding.py`).
    """

    def __init__(self, kind: str, fsdp: bool = False, devices: list | None = None):
        self.kind, self.fsdp = kind, fsdp
        self.devices = devices or jax.devices()
        self.local_devices = [d for d in self.devices if d.process_index == jax.process_index()]
        self.mesh, self.local_mesh = make_mesh(self.devices), make_mesh(self.local_devices)
        # pmap takes and gives what is whole everywhere as arrays of its process's devices.
        self._home = self.local_mesh if kind == "pmap" else self.mesh

    @property
    def _apart(self) -> bool:
        return len(self.local_devices) < len(self.devices)

    def check_batch_size(self, size: int, key: str) -> None:
        """A batch must divide over the devices; UsageError names the key."""
        if size % len(self.devices):
            raise UsageError(
                f"{key}={size} does not divide over {len(self.devices)} devices; "
                f"use a multiple of {len(self.devices)}"
            )

    def _specs(self, tree):
        """How each array of a state lies."""

        def spec(x) -> PartitionSpec:
            at = shard_axis(x.shape, len(self.devices)) if self.fsdp else -1
            return PartitionSpec() if at < 0 else PartitionSpec(*[None] * at, AXIS)

        return jax.tree.map(spec, tree)

    def shardings(self, tree):
        """Of each array of a state, as `compile_train_step` wants and returns it."""
        return jax.tree.map(lambda spec: NamedSharding(self._home, spec), self._specs(tree))

    def abstract_state(self, tree):
        """Shapes of a state -> the same with their shardings, to lower a step without arrays."""
        return jax.tree.map(_shape_at, tree, self.shardings(tree))

    def abstract_batch(self, batch):
        """Shapes of a global batch -> what a step compiled for a mesh takes."""
        to = NamedSharding(self.mesh, PartitionSpec(AXIS))
        stop = jax.ShapeDtypeStruct(jax.tree.leaves(batch)[0].shape[:1], bool)
        return jax.tree.map(lambda x: _shape_at(x, to), (batch, stop))

    def shard_state(self, tree):
        """A copy of a tree, the same in all processes, as every step wants and returns it."""
        # A copy, since a training step gives the memory of its state away; `device_put` makes
        # none of an array of one device where it is to be on several.
        if not self._apart or self.kind == "pmap":
            tree = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, tree)
            return jax.device_put(tree, self.shardings(tree), may_alias=False)

        def put(x, to):
            x = np.array(x)
            return jax.make_array_from_callback(x.shape, to, lambda index: x[index])

        return jax.tree.map(put, tree, self.shardings(tree))

    def _rewrap(self, tree, mesh: Mesh):
        """Arrays that are whole everywhere, as arrays of another mesh, in the same memory."""

        def wrap(x):
            parts = [part.data for part in x.addressable_shards]
            to = NamedSharding(mesh, PartitionSpec())
            return jax.make_array_from_single_device_arrays(x.shape, to, parts)

        return jax.tree.map(wrap, tree)

    def to_global(self, state):
        """A state as arrays of all processes, in the same memory: what Orbax writes and reads."""
        return self._rewrap(state, self.mesh) if self._apart and self.kind == "pmap" else state

    def from_global(self, state):
        """The reverse of `to_global`."""
        return self._rewrap(state, self._home) if self._apart and self.kind == "pmap" else state

    def replicate_params(self, params):
        """Parameters, whole on every device of this process, as `compile_eval_fn` wants them."""
        if self.fsdp:
            to = jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), params)
            params = jax.jit(lambda x: x, out_shardings=to)(params)
        return self._rewrap(params, self.local_mesh) if self._apart else params

    def shard_batch(self, batch, stop: bool = False):
        """This process's part of a batch -> what a step of `compile_train_step` takes.

        `stop` goes along: the metrics of the step tell all processes if any wants to stop.
        """
        batch = batch, np.full(len(jax.tree.leaves(batch)[0]), stop)
        if self.kind == "pmap":  # it wants the devices as an axis of their own
            n = len(self.local_devices)
            batch = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
            return jax.device_put(batch, NamedSharding(self.local_mesh, PartitionSpec(AXIS)))
        to = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(to, x), batch)

    def compile_train_step(self, step: Callable, state) -> Callable:
        """`step(state, batch, collectives=)` -> a compiled function of a state and a sharded batch.

        `state` tells the shapes. What comes back lies as the state did, metrics whole, with
        `stop` among them; the memory of the state is used again.
        """
        step = _with_stop(step)
        if self.kind == "pmap":
            return jax.pmap(
                functools.partial(step, collectives=Collectives(AXIS)),
                axis_name=AXIS,
                in_axes=(None, 0),
                out_axes=None,
                donate_argnums=(0,),
                devices=self.devices,
            )
        cuts = None
        if self.fsdp:
            cuts = jax.tree.map(lambda x: shard_axis(x.shape, len(self.devices)), state.params)
        specs = self._specs(state)
        mapped = jax.shard_map(
            functools.partial(step, collectives=Collectives(AXIS, cuts)),
            mesh=self.mesh,
            in_specs=(specs, PartitionSpec(AXIS)),
            out_specs=(specs, PartitionSpec()),
            # The step gathers and averages by itself, as it must under pmap.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=(0,))

    def compile_eval_fn(self, function: Callable) -> Callable:
        """`function(params, batch)`, example by example -> the same, compiled, to host arrays.

        Parameters as `replicate_params` gives them. A batch is of this process, and divides over
        its devices. A device's own rows alone decide what it computes.
        """
        split = PartitionSpec(AXIS)
        mapped = jax.jit(
            jax.shard_map(
                function,
                mesh=self.local_mesh,
                in_specs=(PartitionSpec(), split),
                out_specs=split,
                check_vma=False,
            )
        )
        to = NamedSharding(self.local_mesh, split)
        return lambda params, batch: jax.device_get(mapped(params, jax.device_put(batch, to)))
