"""`--mode=plan`: memory, time and cost of a run on accelerators that need not be present.

The config's training step is compiled ahead of time for the target chips: by default with few of
the model's blocks, in two sizes per kind of block, and extrapolated to the full model (to within
5 % for eight blocks, tests/modes/test_plan.py); with --full, with all blocks.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.planning import aot
from vitdiff_jax.planning.aot import Compiled, Request
from vitdiff_jax.runtime import chips, logs, parallel, tables
from vitdiff_jax.runtime.chips import Slice
from vitdiff_jax.training import program

USABLE = 0.98
"""Fraction of a chip's memory: the v5e compiler has 15.75 of 16 GiB for a program."""
FEW = 2
"""Blocks of each kind in the smallest compiled model."""
EXPENSIVE = 10
ESTIMATE = {
    "tpu": "the compiler's cycles",
    "cuda": "roofline: a lower bound",
}


def main(
    config: ConfigDict | None,
    workdir: epath.Path,
    *,
    topology: str | None = None,
    price_per_chip_hour: float | None = None,
    search: bool = False,
    full: bool = False,
) -> None:
    """Print a table and write plan.json.

    --topology: such as v5e:4x4, v6e:2x2, v5p:2x2x1, h100:8. --search: try other layouts of batch
    and state and ways to save memory, and pick the fastest that fits. --full: compile all blocks.
    """
    if config is None:
        raise ConfigError("--config: required, or a --workdir that has one")
    target = _target(topology)
    if price_per_chip_hour is not None and price_per_chip_hour < 0:
        raise ConfigError(f"--price_per_chip_hour: {price_per_chip_hour} is negative")
    planner = Planner(config, target, full, price_per_chip_hour)
    plans = planner.search() if search else [planner.plan(config)]
    best = min(plans, key=lambda plan: (not plan["fits"], plan["seconds_per_step"]))
    logs.say(table(best) if len(plans) == 1 else f"{search_table(plans)}\n\n{table(best)}")
    path = workdir / "plan.json"
    tables.write(path, best | ({"tried": plans} if search else {}))
    logs.say(f"plan in {path}")


def _target(topology: str | None) -> Slice:
    if topology is None:
        raise ConfigError("--topology: required, such as v5e:4x4, v6e:4x4 or h100:8")
    try:
        return chips.parse(topology)
    except ValueError as error:
        raise ConfigError(f"--topology: {error}") from error


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans of a config and of variants of it, for the same chips."""

    config: ConfigDict
    target: Slice
    full: bool
    price: float | None

    def plan(self, config: ConfigDict) -> dict[str, Any]:
        """The plan of one config, as in plan.json."""
        if config.train.frechet.spaces:
            raise ConfigError("config.train.frechet.spaces: such steps cannot be planned yet")
        shape, conditions = experiment_lib.outline(config)
        experiment = experiment_lib.build(config, shape, conditions)
        _check_batch(config, self.target)
        request = Request(
            config.to_dict(), shape, {k: _plain(v) for k, v in conditions.items()},
            self.target.topology,
        )  # fmt: skip
        compiled, how = self._compiled(request, experiment.model)
        state = state_bytes(config, experiment, self.target.count)
        return report(config, self.target, experiment, compiled, state, self.price) | {"how": how}

    def _compiled(self, request: Request, model: Any) -> tuple[Compiled, str]:
        """The compiled step of the full model, or an extrapolation, and a description of it."""
        counts = model.block_counts() if hasattr(model, "block_counts") else {}
        small = {kind: min(FEW, count) for kind, count in counts.items()}
        if self.full or small == counts or getattr(model, "scan", False):
            return aot.compile_all([request])[0], "compiled in full"
        grow = {kind: 1 for kind, count in counts.items() if count > small[kind]}
        sizes = [small, *({**small, kind: small[kind] + 1} for kind in grow)]
        base, *larger = aot.compile_all(
            [dataclasses.replace(request, blocks=size) for size in sizes]
        )
        more = {kind: (one, grow[kind]) for kind, one in zip(grow, larger, strict=True)}
        left = {kind: counts[kind] - small[kind] for kind in grow}
        how = " and ".join(f"{'+'.join(map(str, size.values()))}" for size in sizes)
        return aot.extrapolate(base, more, left), (
            f"extrapolated from {how} of {'+'.join(map(str, counts.values()))} blocks"
        )

    def search(self) -> list[dict[str, Any]]:
        """Plans of equivalent layouts, each a change of the config."""
        plans = []
        for layout in layouts(self.config, self.target.count):
            for saving in savings(self.config, self.target.count):
                changes = layout | saving
                plan = self.plan(changed(self.config, changes)) | {"changes": changes}
                logs.say(f"{_changes(changes)}: {'fits' if plan['fits'] else 'does not fit'}")
                plans.append(plan)
                if plan["fits"]:  # further savings are slower
                    break
        return plans


def _plain(value: Any) -> Any:
    """A condition's description in JSON types."""
    return list(value) if isinstance(value, (range, tuple)) else value


def _check_batch(config: ConfigDict, target: Slice) -> None:
    batch, parts = config.train.batch, config.train.accumulate
    if batch % (target.count * parts):
        raise ConfigError(
            f"config.train.batch: {batch} is not divisible by {target.count} chips x {parts}"
            " microbatches (config.train.accumulate)"
        )


def state_bytes(
    config: ConfigDict, experiment: experiment_lib.Experiment, count: int
) -> dict[str, float]:
    """Bytes of the training state per device, by component."""
    mesh = jax.sharding.AbstractMesh(
        (count // config.parallel.fsdp, config.parallel.fsdp), ("data", "fsdp")
    )
    shapes = jax.eval_shape(program.make_init(config, experiment))
    shardings = parallel.state_shardings(mesh, shapes, zero=config.parallel.zero1)

    def size(tree: Any, shardings: Any) -> float:
        leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
        return float(sum(np.prod(s.shard_shape(a.shape)) * a.dtype.itemsize for a, s in leaves))

    return {
        "parameters": size(shapes.params, shardings.params),
        "optimiser": size(shapes.opt_state, shardings.opt_state),
        "ema": size(shapes.ema, shardings.ema),
    }


def report(
    config: ConfigDict, target: Slice, experiment: experiment_lib.Experiment, compiled: Compiled,
    state: Mapping[str, float], price: float | None,
) -> dict[str, Any]:  # fmt: skip
    """The contents of plan.json, from the compiled step."""
    total = sum(compiled.bytes.values())
    computing = sum(compiled.operations.values())
    seconds = computing + compiled.communication_seconds - compiled.hidden
    model_flops = 3 * experiment.forward_flops()  # the backward pass has two products for each one
    peak = target.chip.flops * target.count
    hours = config.train.steps * seconds / 3600
    costly = sorted(compiled.operations.items(), key=lambda item: -item[1])[:EXPENSIVE]
    params = jax.tree.leaves(experiment.param_shapes())
    fastest = model_flops * config.train.batch / peak
    return {
        "topology": target.topology,
        "chips": target.count,
        "parameters": int(sum(np.prod(a.shape) for a in params)),
        "flops_per_image": model_flops,
        "optimizer_flops": program.optimizer_flops(config, experiment),
        "batch": config.train.batch,
        "bytes_per_device": {**state, "activations": total - sum(state.values()), "total": total},
        "memory_per_device": target.chip.memory,
        "fits": not compiled.out_of_memory and total <= USABLE * target.chip.memory,
        "estimate": ESTIMATE[target.chip.platform],
        "seconds_per_step": seconds,
        "computing_seconds": computing,
        "images_per_second": config.train.batch / seconds if seconds else 0.0,
        "estimated_mfu": fastest / computing if computing else 0.0,
        "estimated_mfu_with_communication": fastest / seconds if seconds else 0.0,
        "collectives": {
            "bytes": dict(compiled.communication), "seconds": compiled.communication_seconds,
            "hidden_seconds": compiled.hidden,
        },
        "operations": [{"name": name, "seconds": value, "share": value / computing}
                       for name, value in costly],
        "steps": config.train.steps,
        "hours": hours,
        "chip_hours": hours * target.count,
        "price": None if price is None else hours * target.count * price,
    }  # fmt: skip


def layouts(config: ConfigDict, count: int) -> list[dict[str, Any]]:
    """Shardings of the state over `count` chips, fastest first if all fit."""
    found: list[dict[str, Any]] = [{"parallel.fsdp": 1, "parallel.zero1": False}]
    if count > 1 and config.parallel.compiler == "jit":
        found.insert(0, {"parallel.fsdp": 1, "parallel.zero1": True})
        found.append({"parallel.fsdp": count, "parallel.zero1": False})
    return found


def savings(config: ConfigDict, count: int) -> Iterator[dict[str, Any]]:
    """Memory-saving settings, each slower than the previous one."""
    share = config.train.batch // count
    parts = [n for n in (1, 2, 4, 8, 16) if share % n == 0 and share > n]
    remat = "remat" in config.model
    for n in parts[:2]:
        yield {"train.accumulate": n} | ({"model.remat": "none"} if remat else {})
    if remat:
        yield {"train.accumulate": 1, "model.remat": "dots"}
        yield {"train.accumulate": 1, "model.remat": "full"}
    for n in parts[2:]:
        yield {"train.accumulate": n} | ({"model.remat": "full"} if remat else {})


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with changed values."""
    copy: Any = config.copy_and_resolve_references()
    for key, value in changes.items():
        section, name = key.split(".")
        copy[section][name] = value
    return copy


def _changes(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key.partition('.')[2]}={value}" for key, value in changes.items())


def search_table(plans: list[dict[str, Any]]) -> str:
    """The layouts that were tried, the fastest that fits first."""
    lines = [f"{'':60} {'GiB':>6} {'s/step':>8} {'MFU':>5}"]
    for plan in sorted(plans, key=lambda plan: (not plan["fits"], plan["seconds_per_step"])):
        gib = plan["bytes_per_device"]["total"] / chips.GIB
        lines.append(
            f"{_changes(plan['changes']):60} {gib:6.2f} {plan['seconds_per_step']:8.3f}"
            f" {plan['estimated_mfu']:5.2f}{'' if plan['fits'] else '  does not fit'}"
        )
    return "\n".join(lines)


def table(plan: Mapping[str, Any]) -> str:
    """A plan as text."""
    lines = [f"{name:14} {text}" for name, text in tables.of_plan(plan)]
    lines += ["", "most expensive operations, summed over blocks"]
    lines += [f"  {100 * o['share']:5.1f} %  {o['name']}" for o in plan["operations"]]
    return "\n".join(lines)
