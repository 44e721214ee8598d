"""`--mode=plan`: whether a run fits on chips that are not there, how long it takes, what it costs.

The config's own train step is compiled by the real compiler for the chips. By default with few of
the model's blocks, two sizes of each kind, from which the whole is extrapolated (a model of eight
blocks within 5 %, tests/modes/test_plan.py); --full compiles all.
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
"""Of a chip's memory: v5e's compiler has 15.75 of 16 GiB for a program."""
FEW = 2
"""Blocks of each kind in the smallest model that is compiled."""
EXPENSIVE = 10
ESTIMATE = {
    "tpu": "the compiler's cycles",
    "cuda": "roofline: no run is faster",
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

    --topology: such as v5e:4x4, v6e:2x2, v5p:2x2x1, h100:8. --search: also other ways to cut the
    batch and the state and to save memory, and which of those that fit is fastest.
    """
    if config is None:
        raise ConfigError("--config: needed, or a workdir that has one")
    where = _where(topology)
    if price_per_chip_hour is not None and price_per_chip_hour < 0:
        raise ConfigError(f"--price_per_chip_hour: {price_per_chip_hour} is less than 0")
    planner = Planner(config, where, full, price_per_chip_hour)
    plans = planner.search() if search else [planner.plan(config)]
    best = min(plans, key=lambda plan: (not plan["fits"], plan["seconds_per_step"]))
    logs.say(table(best) if len(plans) == 1 else f"{search_table(plans)}\n\n{table(best)}")
    path = workdir / "plan.json"
    tables.write(path, best | ({"tried": plans} if search else {}))
    logs.say(f"written to {path}")


def _where(topology: str | None) -> Slice:
    if topology is None:
        raise ConfigError("--topology: needed, such as v5e:4x4, v6e:4x4 or h100:8")
    try:
        return chips.parse(topology)
    except ValueError as error:
        raise ConfigError(f"--topology: {error}") from error


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans of a config and of changes of it, on the same chips."""

    config: ConfigDict
    where: Slice
    full: bool
    price: float | None

    def plan(self, config: ConfigDict) -> dict[str, Any]:
        """The plan of one config, as plan.json has it."""
        shape, conditions = experiment_lib.outline(config)
        experiment = experiment_lib.build(config, shape, conditions)
        _check_batch(config, self.where)
        request = Request(
            config.to_dict(), shape, {k: _plain(v) for k, v in conditions.items()},
            f"{self.where.name}:{'x'.join(map(str, self.where.shape))}",
        )  # fmt: skip
        compiled, how = self._compiled(request, experiment.model)
        state = state_bytes(config, experiment, self.where.count)
        return report(config, self.where, experiment, compiled, state, self.price) | {"how": how}

    def _compiled(self, request: Request, model: Any) -> tuple[Compiled, str]:
        """The step of the whole model, compiled or extrapolated, and which of the two."""
        counts = model.block_counts() if hasattr(model, "block_counts") else {}
        small = {kind: min(FEW, count) for kind, count in counts.items()}
        if self.full or small == counts or getattr(model, "scan", False):
            return aot.compile_all([request])[0], "compiled whole"
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
        """Plans of ways to run the same training, each a change of the config."""
        plans = []
        for layout in layouts(self.config, self.where.count):
            for saving in savings(self.config, self.where.count):
                changes = layout | saving
                plan = self.plan(changed(self.config, changes)) | {"changes": changes}
                logs.say(f"{_changes(changes)}: {'fits' if plan['fits'] else 'does not fit'}")
                plans.append(plan)
                if plan["fits"]:  # what saves more memory is slower
                    break
        return plans


def _plain(value: Any) -> Any:
    """A condition's description as JSON can hold it."""
    return list(value) if isinstance(value, (range, tuple)) else value


def _check_batch(config: ConfigDict, where: Slice) -> None:
    batch, parts = config.train.batch, config.train.accumulate
    if batch % (where.count * parts):
        raise ConfigError(
            f"config.train.batch: {batch} does not divide by {where.count} chips x {parts} parts"
            " (config.train.accumulate)"
        )


def state_bytes(
    config: ConfigDict, experiment: experiment_lib.Experiment, count: int
) -> dict[str, float]:
    """Bytes of the training state on each device, by what they are."""
    mesh = jax.sharding.AbstractMesh(
        (count // config.parallel.fsdp, config.parallel.fsdp), ("data", "fsdp")
    )
    shapes = jax.eval_shape(program.make_init(config, experiment))
    shardings = parallel.state_shardings(mesh, shapes, zero=config.parallel.zero1)

    def size(tree: Any, laid: Any) -> float:
        return float(
            sum(
                np.prod(sharding.shard_shape(a.shape)) * a.dtype.itemsize
                for a, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(laid), strict=True)
            )
        )

    return {
        "parameters": size(shapes.params, shardings.params),
        "optimiser": size(shapes.opt_state, shardings.opt_state),
        "ema": size(shapes.ema, shardings.ema),
    }


def report(
    config: ConfigDict, where: Slice, experiment: experiment_lib.Experiment, compiled: Compiled,
    state: Mapping[str, float], price: float | None,
) -> dict[str, Any]:  # fmt: skip
    """All that plan.json says, of a step as it was compiled."""
    total = sum(compiled.bytes.values())
    computing = sum(compiled.operations.values())
    seconds = computing + compiled.message_seconds - compiled.hidden
    model_flops = 3 * experiment.forward_flops()  # backward: two products for each one
    peak = where.chip.flops * where.count
    hours = config.train.steps * seconds / 3600
    costly = sorted(compiled.operations.items(), key=lambda item: -item[1])[:EXPENSIVE]
    params = jax.tree.leaves(experiment.param_shapes())
    fastest = model_flops * config.train.batch / peak
    return {
        "topology": f"{where.name}:{'x'.join(map(str, where.shape))}",
        "chips": where.count,
        "parameters": int(sum(np.prod(a.shape) for a in params)),
        "flops_per_image": model_flops,
        "batch": config.train.batch,
        "bytes_per_device": {**state, "activations": total - sum(state.values()), "total": total},
        "memory_per_device": where.chip.memory,
        "fits": not compiled.too_large and total <= USABLE * where.chip.memory,
        "estimate": ESTIMATE[where.chip.platform],
        "seconds_per_step": seconds,
        "computing_seconds": computing,
        "images_per_second": config.train.batch / seconds if seconds else 0.0,
        "estimated_mfu": fastest / computing if computing else 0.0,
        "estimated_mfu_with_messages": fastest / seconds if seconds else 0.0,
        "collectives": {
            "bytes": dict(compiled.messages), "seconds": compiled.message_seconds,
            "hidden_seconds": compiled.hidden,
        },
        "operations": [{"name": name, "seconds": value, "share": value / computing}
                       for name, value in costly],
        "steps": config.train.steps,
        "hours": hours,
        "chip_hours": hours * where.count,
        "price": None if price is None else hours * where.count * price,
    }  # fmt: skip


def layouts(config: ConfigDict, count: int) -> list[dict[str, Any]]:
    """Ways to cut the state over `count` chips, the fastest first where all fit."""
    found: list[dict[str, Any]] = [{"parallel.fsdp": 1, "parallel.zero1": False}]
    if count > 1 and config.parallel.compiler == "jit":
        found.insert(0, {"parallel.fsdp": 1, "parallel.zero1": True})
        found.append({"parallel.fsdp": count, "parallel.zero1": False})
    return found


def savings(config: ConfigDict, count: int) -> Iterator[dict[str, Any]]:
    """Ways to save memory, each slower than the one before."""
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
    """A copy of the config with other values."""
    copy: Any = config.copy_and_resolve_references()
    for key, value in changes.items():
        section, name = key.split(".")
        copy[section][name] = value
    return copy


def _changes(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key.partition('.')[2]}={value}" for key, value in changes.items())


def search_table(plans: list[dict[str, Any]]) -> str:
    """What was tried, the fastest that fits first."""
    lines = [f"{'':60} {'GiB':>6} {'s/step':>8} {'MFU':>5}"]
    for plan in sorted(plans, key=lambda plan: (not plan["fits"], plan["seconds_per_step"])):
        gib = plan["bytes_per_device"]["total"] / chips.GIB
        lines.append(
            f"{_changes(plan['changes']):60} {gib:6.2f} {plan['seconds_per_step']:8.3f}"
            f" {plan['estimated_mfu']:5.2f}{'' if plan['fits'] else '  does not fit'}"
        )
    return "\n".join(lines)


def table(plan: Mapping[str, Any]) -> str:
    """A plan as a person reads it."""
    lines = [f"{name:14} {text}" for name, text in tables.of_plan(plan)]
    lines += ["", "the most expensive operations, of all blocks together"]
    lines += [f"  {100 * o['share']:5.1f} %  {o['name']}" for o in plan["operations"]]
    return "\n".join(lines)
