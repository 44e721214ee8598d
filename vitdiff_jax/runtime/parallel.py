"""Devices: the mesh, how arrays are laid out on it, and compiling the step by jit or by pmap.

The mesh has two axes, "data" and "fsdp". A batch is cut over both. Parameters, optimiser and EMAs
are cut over "fsdp" by one rule, the largest dimension that divides, and are whole where that axis
is 1 (plain data parallelism). With ZeRO-1 (arXiv:1910.02054) they are kept cut over all devices,
and the step gathers the parameters once.
"""

import contextlib
import glob
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vitdiff_jax.runtime.processes import FROZEN

TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}
"""Never in pieces: under FSDP, where XLA's partitioner sees to the gradients, it would cut products
whose result is scattered into rings, and compute what feeds them once more in each. Measured with
ZeRO-1 before `by_shard_map` (2 blocks of DiT-XL, v5e): 27.4 million cycles instead of 21.2."""

FSDP_LEAST = 2**12
"""Arrays with fewer elements stay whole: cutting a bias costs more messages than it saves bytes."""


def start_distributed(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the other processes of this run: by the given address, or as the cluster says.

    Cloud TPU pods, SLURM and Open MPI are recognised by JAX; a single machine stays alone.
    """
    if coordinator:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=FROZEN
        )
        return
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
    on_tpu = chips and importlib.util.find_spec("libtpu")
    tasks = os.environ.get("SLURM_NTASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    if on_tpu or int(tasks) > 1:
        with contextlib.suppress(ValueError):  # a TPU without a pod around it, such as Colab's
            jax.distributed.initialize(heartbeat_timeout_seconds=FROZEN)


def use_compilation_cache() -> str:
    """Keep compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/vitdiff_jax; says where."""
    where = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vitdiff_jax"
    )
    jax.config.update("jax_compilation_cache_dir", where)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return where


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices (None: all) as ("data", "fsdp"), `fsdp` along the second axis, which must divide."""
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"fsdp: {fsdp} does not divide the {count} devices")
    # Auto, not make_mesh's default Explicit: flax.linen does not know explicit shardings.
    auto = (jax.sharding.AxisType.Auto,) * 2
    shape, names = (count // fsdp, fsdp), ("data", "fsdp")
    return jax.make_mesh(shape, names, axis_types=auto, devices=devices)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(mesh: Mesh | AbstractMesh, shapes: Any, *, zero: bool = False) -> Any:
    """A sharding for each array of a state: its largest divisible dimension cut over "fsdp".

    zero: its first one, over all devices, as ZeRO-1 keeps it between steps: what is gathered then
    lies together.
    """
    axes = mesh.axis_names if zero else ("fsdp",)
    size = math.prod(mesh.shape[axis] for axis in axes)

    def rule(a):
        divisible = [i for i, n in enumerate(a.shape) if n % size == 0]
        if size == 1 or not divisible or np.prod(a.shape) < FSDP_LEAST:
            return replicated(mesh)
        dimension = divisible[0] if zero else max(divisible, key=lambda i: a.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * dimension, axes))

    return jax.tree.map(rule, shapes)


Gradient = Callable[..., tuple[jax.Array, Any]]
"""(parameters, batch, key, share) -> (loss, gradient), means over the batch times its share.

The share of a device's part of a batch is known before its gradient: to divide afterwards would be
one more pass over it (0.15 of a JiT-B step's 41.7 ms on a v5e, by the compiler's count).
"""


def by_shard_map(mesh: Mesh, params: Any, *, zero: bool) -> Callable[[Gradient], Gradient]:
    """What makes a device's gradient, of its part of a batch, that of the global batch.

    params: their shapes. zero: they come cut over all devices, are gathered, and so is the gradient
    cut; else both are whole. XLA's partitioner does the same by itself, but then cuts the products
    of weight gradients into rings, which breaks their fusions: a fifth of DiT-XL's step on a v5e,
    by the compiler's count.
    """
    axes = mesh.axis_names
    specs = jax.tree.map(lambda s: s.spec, state_shardings(mesh, params, zero=zero))

    def cut(spec):
        return next((i for i, names in enumerate(spec) if names), None)

    def gathered(a, spec):
        i = cut(spec)
        return a if i is None else jax.lax.all_gather(a, axes, axis=i, tiled=True)

    def total(a, spec):
        i = cut(spec)
        if i is None:
            return jax.lax.psum(a, axes)
        return jax.lax.psum_scatter(a, axes, scatter_dimension=i, tiled=True)

    def spread(gradient):
        def on_each(params, batch, key):
            whole = jax.tree.map(gathered, params, specs)
            value, grads = gradient(whole, batch, key, 1 / mesh.size)
            return jax.lax.psum(value, axes), jax.tree.map(total, grads, specs)

        same = PartitionSpec()
        return jax.shard_map(
            on_each, mesh=mesh, in_specs=(specs, PartitionSpec(axes), same),
            out_specs=(same, specs), check_vma=False,
        )  # fmt: skip

    return spread


def by_pmap(gradient: Gradient) -> Gradient:
    """The same under `Pmapped`: everything is whole on every device."""

    def on_each(params, batch, key):
        share = 1 / jax.lax.axis_size("data")
        return jax.lax.psum(gradient(params, batch, key, share), "data")

    return on_each


def agree(value: int) -> int:
    """Process 0's value, in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as its part of one global array."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, a) for name, a in batch.items()}


def prefetch(
    mesh: Mesh, batches: Iterator[dict[str, np.ndarray]]
) -> Iterator[dict[str, jax.Array]]:
    """`put_batch` of each, one batch ahead: it travels to the devices while they compute."""
    ahead = put_batch(mesh, next(batches))
    for batch in batches:
        here, ahead = ahead, put_batch(mesh, batch)
        yield here


def compile_step(step: Callable, mesh: Mesh, shardings: Any, compiler: str) -> Callable:
    """Compile step(state, batch) -> (state, metrics) for `put_batch`'s batches.

    compiler: "jit", or "pmap" (whole state on every device; `step` must have been made with
    `by_pmap`). The state's buffers are donated: do not use the old one again.
    """
    if compiler == "jit":
        jitted = jax.jit(
            step,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
            compiler_options=TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None,
        )
        return InMesh(mesh, jitted)
    return Pmapped(step, mesh)


class InMesh:
    """A jitted function that is called and lowered with the mesh in use: what is within can see it.

    Attention by a Pallas kernel has to: XLA does not cut kernels over devices.
    """

    def __init__(self, mesh: Mesh, jitted: Any):
        self.mesh, self.jitted = mesh, jitted

    def __call__(self, *arguments: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.jitted(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As that of a jitted function; arguments may be shapes."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*arguments)


class Pmapped:
    """A step compiled by pmap that takes and gives what one compiled by jit does."""

    def __init__(self, step: Callable, mesh: Mesh):
        self.mesh = mesh
        self.mapped = jax.pmap(
            step, "data", in_axes=(None, 0), out_axes=None, donate_argnums=0,
            devices=list(mesh.devices.flat),
        )  # fmt: skip

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        outputs = self.mapped(state, {name: _per_device(a) for name, a in batch.items()})
        # pmap's outputs lie on this process's devices only; whatever comes next wants all of them.
        whole = replicated(self.mesh)
        return jax.tree.map(lambda a: _everywhere(a, whole), outputs)

    def lower(self, state: Any, batch: dict[str, jax.ShapeDtypeStruct]) -> Any:
        """As that of a jitted step, for global shapes."""
        count = self.mesh.size
        cut = {
            name: jax.ShapeDtypeStruct((count, a.shape[0] // count, *a.shape[1:]), a.dtype)
            for name, a in batch.items()
        }
        return self.mapped.lower(state, cut)


def _everywhere(a: jax.Array, whole: NamedSharding) -> jax.Array:
    """An array that every device of every process holds, as one global array; nothing is copied."""
    parts = [shard.data for shard in a.addressable_shards]
    return jax.make_array_from_single_device_arrays(a.shape, whole, parts)


def _per_device(a: jax.Array) -> np.ndarray:
    """This process's part of a global array [B, ...], as pmap wants it: [devices, rows, ...]."""
    shards = sorted(a.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.stack([np.asarray(shard.data) for shard in shards])
