"""Device mesh, shardings, and compilation of the training step by jit or pmap.

The mesh has two axes, "data" and "fsdp". A batch is sharded over both. Parameters, optimiser state
and EMAs are sharded over "fsdp" by one rule, along the largest divisible dimension; with fsdp=1
(plain data parallelism) they are replicated. With ZeRO-1 (arXiv:1910.02054) they are sharded over
all devices, and the step gathers the parameters once.
"""

import contextlib
import glob
import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import clusters
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vitdiff_jax.runtime import rendezvous
from vitdiff_jax.runtime.processes import FROZEN, StartError

TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables in which a cluster says how many processes there are."""

TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}
"""Disables windowed einsums: under FSDP, XLA's partitioner would split matrix products whose result
is reduce-scattered into ring steps, and recompute their inputs in each. Measured with ZeRO-1 before
`by_shard_map` (2 blocks of DiT-XL, v5e): 27.4 million cycles instead of 21.2."""

BARRIERS = itertools.count()
"""Barriers need new names."""
FSDP_LEAST = 2**12
"""Smaller arrays are replicated: sharding a bias costs more communication than it saves memory."""


def start_distributed(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Initialise `jax.distributed` with the given coordinator, or from the cluster environment.

    JAX detects Cloud TPU pods, SLURM and Open MPI; on a single machine this is a no-op. Raises
    StartError if the processes do not find each other, see `rendezvous`.
    """
    advice = "start each with the same --coordinator and --processes, and its own --process"
    if not coordinator:
        chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
        on_tpu = chips and importlib.util.find_spec("libtpu")
        name = next((name for name in TASKS if os.environ.get(name)), "")
        count = os.environ.get(name, "1")
        if not on_tpu and count == "1":
            return
        # JAX has no public API for what it detects.
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        given = os.environ.get("JAX_COORDINATOR_ADDRESS")
        try:
            # Not the local devices: `initialize` has them from $JAX_LOCAL_DEVICE_IDS first.
            coordinator, processes, process, _ = detect(given, None, None, None, None, 300)
        except Exception as error:
            if on_tpu and not isinstance(error, ValueError):  # of a TPU outside a pod, as in Colab
                raise
            if not on_tpu:
                raise StartError(
                    f"{name}={count}, but other variables of the cluster are missing or damaged"
                    f" ({type(error).__name__}: {error}); unset {name} for a single process"
                ) from error
        if not on_tpu and None in (coordinator, processes, process):
            print(
                f"warning: {name}={count}, but no other variable says that this is one of several"
                " processes: it runs alone; start them with srun or mpirun, or each with"
                " --coordinator, --processes and --process", flush=True,
            )  # fmt: skip
        advice = "run the same command on every machine of the TPU"
        if not on_tpu:
            advice = (
                f"{name}={processes}: start all of them, with srun or mpirun, or unset {name} for a"
                " single process"
            )
    if coordinator and processes and process is not None:
        rendezvous.meet(coordinator, processes, process, advice)
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=FROZEN
        )


def wait_for_first() -> None:
    """Return once all processes have called this, however long process 0 takes.

    Unlike a collective of the devices, which on CPUs fails after 30 seconds.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        # JAX has no public API for its barriers.
        from jax._src import distributed

        state: Any = distributed.global_state
        state.client.wait_at_barrier(f"vitdiff_jax/{next(BARRIERS)}", 600_000)


def use_compilation_cache() -> str:
    """Enable JAX's persistent compilation cache; returns its directory.

    $JAX_COMPILATION_CACHE_DIR, else ~/.cache/vitdiff_jax.
    """
    where = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vitdiff_jax"
    )
    jax.config.update("jax_compilation_cache_dir", where)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return where


def halve_cpu(*sizes: int) -> None:
    """Make two devices of this machine's CPU, for training in a single process.

    An operation of a small network is too short to be divided between two cores; the halves of a
    batch are not. A step of configs/digits.py takes 0.68 of the time on one device, one of
    configs/fashion_mnist.py 0.87, one of configs/photos.py 0.9 to 1 (two cores, two alternating
    runs each, 2026-12-01). More than two devices have not been measured, and each has a copy of
    the state.

    sizes: of the batches; if one is odd, there is one device. Once JAX has started, or where
    $XLA_FLAGS has the number of devices, nothing changes.
    """
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    if any(size % 2 for size in sizes) or given or len(own) < 2 or jax.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", 2)


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh ("data", "fsdp") of devices (None: all); `fsdp` must divide their number."""
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"fsdp: {fsdp} does not divide the {count} devices")
    # Auto, not make_mesh's default Explicit: flax.linen does not support explicit sharding.
    auto = (jax.sharding.AxisType.Auto,) * 2
    shape, names = (count // fsdp, fsdp), ("data", "fsdp")
    return jax.make_mesh(shape, names, axis_types=auto, devices=devices)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis sharded over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(mesh: Mesh | AbstractMesh, shapes: Any, *, zero: bool = False) -> Any:
    """The sharding of each array of a state: largest divisible dimension over "fsdp".

    zero: the first divisible dimension over all devices, for ZeRO-1: shards are then contiguous.
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
"""(parameters, batch, shared, share) -> (values, gradient): means over the batch, times `share`.

`share`, the fraction of the global batch on this device, is applied to the loss: dividing the
gradients afterwards would be another pass over them (0.15 ms of a JiT-B step's 41.7 ms on a v5e, by
the compiler's estimate).
"""


def by_shard_map(mesh: Mesh, params: Any, *, zero: bool) -> Callable[[Gradient], Gradient]:
    """A transformation of a per-device gradient function into that of the global batch.

    params: shapes of the parameters. zero: parameters and gradients are sharded over all devices
    (all-gather, reduce-scatter); otherwise both are replicated (all-reduce). XLA's partitioner
    could do the same, but splits the weight-gradient products into ring steps, which prevents
    fusion and costs a fifth of DiT-XL's step on a v5e, by the compiler's estimate.
    """
    axes = mesh.axis_names
    specs = jax.tree.map(lambda s: s.spec, state_shardings(mesh, params, zero=zero))

    def sharded_axis(spec):
        return next((i for i, names in enumerate(spec) if names), None)

    def all_gather(a, spec):
        i = sharded_axis(spec)
        return a if i is None else jax.lax.all_gather(a, axes, axis=i, tiled=True)

    def reduce(a, spec):
        i = sharded_axis(spec)
        if i is None:
            return jax.lax.psum(a, axes)
        return jax.lax.psum_scatter(a, axes, scatter_dimension=i, tiled=True)

    def data_parallel(gradient):
        def per_device(params, batch, shared):
            params = jax.tree.map(all_gather, params, specs)
            value, grads = gradient(params, batch, shared, 1 / mesh.size)
            return jax.lax.psum(value, axes), jax.tree.map(reduce, grads, specs)

        full = PartitionSpec()
        return jax.shard_map(
            per_device, mesh=mesh, in_specs=(specs, PartitionSpec(axes), full),
            out_specs=(full, specs), check_vma=False,
        )  # fmt: skip

    return data_parallel


def by_pmap(gradient: Gradient) -> Gradient:
    """The same for `Pmapped`, where parameters and gradients are replicated."""

    def per_device(params, batch, shared):
        share = 1 / jax.lax.axis_size("data")
        return jax.lax.psum(gradient(params, batch, shared, share), "data")

    return per_device


def broadcast(value: int) -> int:
    """The value of process 0, on every process; also a barrier."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from this process's rows of a batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, a) for name, a in batch.items()}


def prefetch(
    mesh: Mesh, batches: Iterator[dict[str, np.ndarray]]
) -> Iterator[dict[str, jax.Array]]:
    """`put_batch` of each, one batch ahead: transfers overlap with computation."""
    ahead = put_batch(mesh, next(batches))
    for batch in batches:
        here, ahead = ahead, put_batch(mesh, batch)
        yield here


def compile_step(step: Callable, mesh: Mesh, shardings: Any, compiler: str) -> Callable:
    """Compile step(state, batch, prepared) -> (state, metrics) for batches from `put_batch`.

    prepared: replicated arrays, or ().

    compiler: "jit", or "pmap" (state replicated on every device; `step` must use `by_pmap`). The
    buffers of the old state are donated.
    """
    if compiler == "jit":
        jitted = jax.jit(
            step,
            in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
            compiler_options=TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None,
        )
        return WithMesh(mesh, jitted)
    return Pmapped(step, mesh)


class WithMesh:
    """A jitted function that is called and lowered under `jax.set_mesh`.

    The Pallas attention kernel looks up the mesh: XLA does not partition kernels by itself.
    """

    def __init__(self, mesh: Mesh, jitted: Any):
        self.mesh, self.jitted = mesh, jitted

    def __call__(self, *arguments: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.jitted(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """Like the method of a jitted function; arguments may be shapes."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*arguments)


class Pmapped:
    """A step compiled by pmap, with the signature of one compiled by jit."""

    def __init__(self, step: Callable, mesh: Mesh):
        self.mesh = mesh
        self.mapped = jax.pmap(
            step, "data", in_axes=(None, 0, None), out_axes=None, donate_argnums=0,
            devices=list(mesh.devices.flat),
        )  # fmt: skip

    def __call__(self, state: Any, batch: dict[str, jax.Array], prepared: Any) -> Any:
        parts = {name: _per_device(a) for name, a in batch.items()}
        outputs = self.mapped(state, parts, prepared)
        # pmap's outputs are on this process's devices only; the rest of the code expects globals.
        sharding = replicated(self.mesh)
        return jax.tree.map(lambda a: _as_global(a, sharding), outputs)

    def lower(self, state: Any, batch: dict[str, jax.ShapeDtypeStruct], prepared: Any) -> Any:
        """Like the method of a jitted step, for global shapes."""
        count = self.mesh.size
        shapes = {
            name: jax.ShapeDtypeStruct((count, a.shape[0] // count, *a.shape[1:]), a.dtype)
            for name, a in batch.items()
        }
        return self.mapped.lower(state, shapes, prepared)


def _as_global(a: jax.Array, sharding: NamedSharding) -> jax.Array:
    """One global array from replicas on every device of every process, without copying."""
    parts = [shard.data for shard in a.addressable_shards]
    return jax.make_array_from_single_device_arrays(a.shape, sharding, parts)


def _per_device(a: jax.Array) -> np.ndarray:
    """This process's part of a global array [B, ...] in pmap's layout [devices, rows, ...]."""
    shards = sorted(a.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.stack([np.asarray(shard.data) for shard in shards])
