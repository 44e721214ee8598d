"""How fast a training step is on this machine's CPU, next to what it could be and to PyTorch.

    python tests/benchmarks/train_step.py [--rounds 7] [--sizes digits,dit-s]

The steps are of DiT-S's size (12 blocks of width 384 on 64 tokens, 32 images, float32) and those of
configs/fashion_mnist.py (at 32x32) and configs/digits.py, with AdamW and one EMA. Each round times,
one after the other, so that whatever else the machine does hits all of them: a large float32 matrix
product in JAX and in PyTorch, the limit that a step made of matrix products can reach; our step;
and the step of an independent JiT (`tests/parity/jit_torch.py`) in eager PyTorch and by
torch.compile. Medians are printed, and the fastest. A script and not a test: a time is no yes or
no.

JAX and PyTorch live in a process each (`turns.py`).
"""

import argparse
import dataclasses
import functools
import os
import statistics

import turns  # isort: skip - sets the platform and the path
import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.parity.jit_torch import JiT
from vitdiff_jax.experiment import build
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import program as program_lib

RATE, DECAY, FLOOR, LABEL_DROPOUT = 2e-4, 0.9999, 0.05, 0.1


@dataclasses.dataclass(frozen=True)
class Size:
    """Images of a batch, their shape and classes, and the options of the network."""

    batch: int
    shape: tuple[int, int, int]
    classes: int
    model: dict[str, int]

    @property
    def flops(self) -> float:
        """Model FLOPs of a step: 3 x the forward pass (backward: two products for each one).

        Counted: every matrix product, two per multiply-add. Not counted: norms, softmax, rotary
        embeddings, positions, optimiser and EMA, whose time therefore counts against the rate.
        """
        model = self.model
        patches = self.shape[0] * self.shape[1] // model["patch"] ** 2
        pixels = model["patch"] ** 2 * self.shape[2]  # numbers in a patch
        d, b, depth = model["width"], model["bottleneck"], model["depth"]
        hidden = int(4 * d * 2 / 3)
        blocks = 0
        for n in range(depth):
            tokens = patches + model["class_tokens"] * (n >= model["class_tokens_from"])
            # q k v out; scores and values; SwiGLU
            blocks += tokens * (4 * d * d + 2 * tokens * d + 3 * d * hidden)
        ends = patches * (pixels * b + b * d + d * pixels)
        adaln = 256 * d + d * d + depth * 6 * d * d + 2 * d * d  # time, adaLN of all
        return 3 * 2 * self.batch * (ends + blocks + adaln)


SIZES = {
    "dit-s": Size(32, (32, 32, 3), 1000, dict(
        patch=4, width=384, depth=12, heads=6, bottleneck=128, class_tokens=0, class_tokens_from=0,
    )),
    "fashion_mnist": Size(64, (32, 32, 1), 10, dict(
        patch=4, width=128, depth=6, heads=4, bottleneck=16, class_tokens=4, class_tokens_from=2,
    )),
    "digits": Size(64, (8, 8, 1), 10, dict(
        patch=2, width=64, depth=4, heads=4, bottleneck=16, class_tokens=4, class_tokens_from=1,
    )),
}  # fmt: skip
SIDE = 4096
"""Side of the square matrices whose product gives the machine's rate."""


def batch(size: Size) -> dict[str, np.ndarray]:
    """One batch as the data pipeline hands it over; random pixels are as good as any here."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (size.batch, *size.shape), np.uint8),
        "label": random.integers(0, size.classes, size.batch).astype(np.int32),
        "index": np.arange(size.batch, dtype=np.int32),
    }


def our_step(size: Size):
    """A function of nothing that takes one step of ours and waits for it; returns the loss."""
    config = config_lib.complete(dict(
        data=dict(name="digits"),  # not read
        model=dict(name="vit", **size.model),
        diffusion=dict(
            schedule=dict(name="RectifiedFlow"), prediction="x", loss_space="u", floor=FLOOR,
            times=dict(name="logit_normal", mean=0.8, std=0.8), label_dropout=LABEL_DROPOUT,
        ),
        optimizer=dict(learning_rate=RATE),
        train=dict(steps=1000, batch=size.batch, ema=(DECAY,)),
    ))  # fmt: skip
    mesh, names = parallel.make_mesh(), tuple(map(str, range(size.classes)))
    experiment = build.build(config, size.shape, {"label": names})
    program = program_lib.build(config, experiment, mesh)
    state = jax.jit(program.init, out_shardings=program.shardings)()
    data = parallel.put_batch(mesh, batch(size))

    def run():
        nonlocal state
        state, metrics = program.step(state, data)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run


def torch_step(size: Size, compiled: bool):
    """The same in PyTorch, eager or by torch.compile."""
    model = JiT(size.shape, classes=size.classes, **size.model)
    network = torch.compile(model) if compiled else model
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    ema = [p.detach().clone() for p in params]
    data = {name: torch.from_numpy(a) for name, a in batch(size).items()}

    def run():
        x = data["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
        label = torch.where(torch.rand(size.batch) < LABEL_DROPOUT, size.classes, data["label"])
        t = torch.sigmoid(0.8 * torch.randn(size.batch) - 0.8)  # 1 is data here
        t_image = t[:, None, None, None]
        z = t_image * x + (1 - t_image) * torch.randn_like(x)
        rest = (1 - t_image).clamp(min=FLOOR)
        loss = (((x - z) / rest - (network(z, t, label) - z) / rest) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - DECAY)
        return loss.item()

    return run


def jax_runs(names: list[str]):
    """What the JAX process is, and what it measures: our steps of these sizes."""
    parallel.halve_cpu(2)  # as training does, whose batches are even here
    a = jnp.asarray(np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32))
    product = jax.jit(jnp.matmul)
    runs = {"product": lambda: product(a, a).block_until_ready()}
    runs |= {name: our_step(SIZES[name]) for name in names}
    return f"jax {jax.__version__} on {jax.devices()[0].device_kind}", runs


def torch_runs(names: list[str], compiled: bool):
    """What a PyTorch process is, and what it measures."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    a = torch.from_numpy(np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32))
    runs = {"product": lambda: a @ a}
    runs |= {name: torch_step(SIZES[name], compiled) for name in names}
    return f"torch {torch.__version__} with {torch.get_num_threads()} threads", runs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each kind")
    parser.add_argument("--sizes", default=",".join(SIZES))
    args = parser.parse_args()
    names = args.sizes.split(",")
    flops = {"product": 2 * SIDE**3} | {name: SIZES[name].flops for name in names}
    sides = {
        "ours": functools.partial(jax_runs, names),
        "eager": functools.partial(torch_runs, names, False),
        "compiled": functools.partial(torch_runs, names, True),
    }
    print(f"{os.cpu_count()} cores, {args.rounds} rounds")
    measured = turns.measure(sides, args.rounds)
    for title, choose in (("median", statistics.median), ("fastest", min)):
        seconds = {of: choose([wall for wall, _ in times]) for of, times in measured.items()}
        report(title, seconds, flops)


def report(title: str, seconds: dict[tuple[str, str], float], flops: dict[str, float]) -> None:
    """Print times, rates and their ratios. The fastest are the ones to read on a busy machine."""
    rate = {of: flops[of[0]] / value / 1e9 for of, value in seconds.items()}
    for (name, system), value in seconds.items():
        of = name, system
        share = (
            "" if name == "product" else f", {rate[of] / rate['product', system]:.2f} of a product"
        )
        ratio = (
            "" if system == "ours" else f", ours {value / seconds[name, 'ours']:.2f} times as fast"
        )
        print(
            f"{title}: {name}, {system}: {value * 1e3:.1f} ms, {rate[of]:.1f} GFLOP/s{share}{ratio}"
        )


if __name__ == "__main__":
    main()
