"""How functions of a state and a batch are distributed over devices and processes.

This is the only module that knows. A training step runs on all devices of all processes, by
`pmap` or by `jit` of `shard_map` on a mesh; both compute the same numbers. Each process provides
its own part [B / processes, ...] of a batch. Encoding runs on the devices of one process;
features are exchanged on the host.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data.errors import UsageError
from hvp_jax.parallel.sharding import Collectives, merge_channels, shard_axis

AXIS, SLICE = "batch", "slice"


def slice_index(device: Any) -> int:
    """The slice of a TPU that a device is of; on a GPU JAX gives this name to something else."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def make_mesh(devices: list) -> Mesh:
    """A mesh of `devices` along whose axes batches are sharded.

    One axis; with several slices of a TPU, they are a second one, before it.
    """
    slices = sorted({slice_index(device) for device in devices})
    if len(slices) < 2:
        return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    rows = [[d for d in devices if slice_index(d) == index] for index in slices]
    return Mesh(np.array(rows), (SLICE, AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def _batch_spec(mesh: Mesh) -> PartitionSpec:
    """How a batch is sharded: along all axes of a mesh."""
    return PartitionSpec(mesh.axis_names if len(mesh.axis_names) > 1 else AXIS)


def _abstract(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _with_stop_flag(step: Callable) -> Callable:
    """`step` on a batch and the stop flags of its examples, which the step itself does not see."""

    def train_step(state, batch_and_stop, collectives: Collectives):
        batch, stop = batch_and_stop
        state, metrics = step(state, batch, collectives=collectives)
        return state, metrics | {"stop": collectives.any(stop)}

    return train_step  # the name that profiles show


class Partitioner:
    """The devices of a run and how states, batches and functions are distributed over them.

    With `fsdp` each device of a slice holds a shard of the parameters and moments
    (`hvp_jax/parallel/sharding.py`).

    The two kinds differ in three places: where a state lives (`_state_mesh`), the shape of a batch
    (`shard_batch`), and how a step is compiled (`compile_train_step`).
    """

    def __init__(self, kind: str, fsdp: bool = False, devices: list | None = None):
        self.kind, self.fsdp = kind, fsdp
        self.devices = devices or jax.devices()
        self.local_devices = [d for d in self.devices if d.process_index == jax.process_index()]
        self.mesh, self.local_mesh = make_mesh(self.devices), make_mesh(self.local_devices)
        self._devices_of_a_slice = self.mesh.shape[AXIS]
        # pmap takes and returns arrays of its own process's devices.
        self._state_mesh = self.local_mesh if kind == "pmap" else self.mesh

    def check_batch_size(self, size: int, key: str) -> None:
        """Raises UsageError, naming the config key, unless the devices divide a batch evenly."""
        if size % len(self.devices):
            raise UsageError(
                f"{key}={size} does not divide over {len(self.devices)} devices; "
                f"use a multiple of {len(self.devices)}"
            )

    def _specs(self, tree: Any) -> Any:
        """The partition spec of each array of a state."""

        def spec(x) -> PartitionSpec:
            axis = shard_axis(x.shape, self._devices_of_a_slice) if self.fsdp else -1
            return PartitionSpec() if axis < 0 else PartitionSpec(*[None] * axis, AXIS)

        return jax.tree.map(spec, tree)

    def shardings(self, tree: Any) -> Any:
        """The sharding of each array of a state, as compiled training steps take and return it."""
        return jax.tree.map(lambda spec: NamedSharding(self._state_mesh, spec), self._specs(tree))

    def abstract_state(self, tree: Any) -> Any:
        """Shapes of a state -> the first argument of a compiled step, to lower one."""
        return tree if self.kind == "pmap" else jax.tree.map(_abstract, tree, self.shardings(tree))

    def abstract_batch(self, batch: Any) -> Any:
        """Shapes of a global batch -> the second argument of a compiled step, likewise."""
        stop = jax.ShapeDtypeStruct(jax.tree.leaves(batch)[0].shape[:1], bool)
        batch = jax.eval_shape(merge_channels, batch)
        if self.kind == "pmap":
            n = len(self.devices)
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((n, x.shape[0] // n, *x.shape[1:]), x.dtype),
                (batch, stop),
            )
        sharding = NamedSharding(self.mesh, _batch_spec(self.mesh))
        return jax.tree.map(lambda x: _abstract(x, sharding), (batch, stop))

    def shard_state(self, tree: Any) -> Any:
        """A state that is the same in all processes -> a copy, sharded for a training step."""
        # A copy, since a training step donates its state; `device_put` alone makes none of an
        # array on one device that is to be replicated on several.
        shardings = self.shardings(tree)
        if self._state_mesh == self.local_mesh:
            tree = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, tree)
            return jax.device_put(tree, shardings, may_alias=False)

        def put(x, sharding):
            x = np.array(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(put, tree, shardings)

    def _change_mesh(self, tree: Any, old: Mesh, new: Mesh) -> Any:
        """Arrays replicated over mesh `old` -> arrays of mesh `new`, in the same memory."""
        if old == new:
            return tree
        sharding = NamedSharding(new, PartitionSpec())

        def change(x):
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

        return jax.tree.map(change, tree)

    def to_global(self, state: Any) -> Any:
        """A state as arrays of all processes, in the same memory: what Orbax writes and reads."""
        return self._change_mesh(state, self._state_mesh, self.mesh)

    def from_global(self, state: Any) -> Any:
        """The inverse of `to_global`."""
        return self._change_mesh(state, self.mesh, self._state_mesh)

    def replicate_params(self, params: Any) -> Any:
        """Parameters of a state -> replicated over this process's devices, for evaluation."""
        if self.fsdp:
            replicated = jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), params)
            params = jax.jit(lambda x: x, out_shardings=replicated)(params)
        return self._change_mesh(params, self._state_mesh, self.local_mesh)

    def shard_batch(self, batch: Any, stop: bool = False) -> Any:
        """This process's part of a batch -> the second argument of a compiled training step.

        It carries the flag `stop`: the metric `stop` of the step is 1 if any process set it.
        """
        batch = merge_channels(batch), np.full(len(jax.tree.leaves(batch)[0]), stop)
        if self.kind == "pmap":  # takes an axis of local devices first
            n = len(self.local_devices)
            batch = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
        sharding = NamedSharding(self._state_mesh, _batch_spec(self._state_mesh))
        return jax.make_array_from_process_local_data(sharding, batch)

    def compile_train_step(self, step: Callable, state: Any) -> jax.stages.Wrapped:
        """`step(state, batch, collectives=)` -> a compiled function of a state and a sharded batch.

        `state` gives the shapes. The returned state is sharded like the argument, whose memory is
        donated; the metrics are replicated and include `stop`.
        """
        step = _with_stop_flag(step)
        # One device has nothing to reduce, but XLA would copy every gradient through a reduction.
        several = len(self.devices) > 1
        if self.kind == "pmap":
            return jax.pmap(
                functools.partial(step, collectives=Collectives(AXIS if several else None)),
                axis_name=AXIS,
                in_axes=(None, 0),
                out_axes=None,
                donate_argnums=(0,),
                devices=self.devices,
            )
        shard_axes = None
        if self.fsdp and several:
            shard_axes = jax.tree.map(
                lambda x: shard_axis(x.shape, self._devices_of_a_slice), state.params
            )
        specs, batch_spec = self._specs(state), _batch_spec(self.mesh)
        axis = batch_spec[0] if several else None
        mapped = jax.shard_map(
            functools.partial(step, collectives=Collectives(axis, shard_axes)),
            mesh=self.mesh,
            in_specs=(specs, batch_spec),
            out_specs=(specs, PartitionSpec()),
            # The step does its own collectives, as it must under pmap.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=(0,))

    def compile_eval_fn(self, function: Callable) -> Callable:
        """`function(params, batch)` -> the same, compiled for this process's devices.

        Parameters come from `replicate_params`; the devices must divide the batch. Each device
        computes its own rows, independently of the others. Returns host arrays.
        """
        sharded = PartitionSpec(AXIS)
        mapped = jax.jit(
            jax.shard_map(
                function,
                mesh=self.local_mesh,
                in_specs=(PartitionSpec(), sharded),
                out_specs=sharded,
                check_vma=False,
            )
        )
        sharding = NamedSharding(self.local_mesh, sharded)

        def run(params, batch):
            batch = jax.device_put(merge_channels(batch), sharding)
            return jax.device_get(mapped(params, batch))

        return run
