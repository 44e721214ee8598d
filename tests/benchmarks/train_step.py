"""How fast a training step is on this machine's CPU, next to what it could be and to PyTorch.

    python tests/benchmarks/train_step.py [--rounds 7]

The step is of DiT-S's size (12 blocks of width 384 on 64 tokens, batch 32, float32) with AdamW and
one EMA. Each round times four things one after the other, so that whatever else the machine does
hits all of them: a large float32 matrix product in JAX and in PyTorch, the limit that a step made
of matrix products can reach; our step; and the step of an independent JiT in eager PyTorch
(`tests/parity/jit_torch.py`). Medians are printed, and the fastest. A script and not a test: a time
is no yes or no.

JAX and PyTorch live in a process each (`turns.py`).
"""

import argparse
import functools
import os
import statistics

import turns  # isort: skip - sets the platform and the path
import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.parity.jit_torch import JiT
from vitdiff_jax.diffusion import times
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.schedules import RectifiedFlow
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.models import vit
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import step as train_step

BATCH, SHAPE, CLASSES = 32, (32, 32, 3), 1000
SIZE = dict(patch=4, width=384, depth=12, heads=6, bottleneck=128)
RATE, DECAY, FLOOR, LABEL_DROPOUT = 2e-4, 0.9999, 0.05, 0.1
SIDE = 4096
"""Side of the square matrices whose product gives the machine's rate."""


def step_flops() -> float:
    """Model FLOPs of one step: 3 x the forward pass (backward: two products for each one).

    Counted: every matrix product, two per multiply-add. Not counted: norms, softmax, rotary turns,
    positions, optimiser and EMA, whose time therefore counts against the achieved rate.
    """
    tokens = SHAPE[0] * SHAPE[1] // SIZE["patch"] ** 2
    pixels = SIZE["patch"] ** 2 * SHAPE[2]  # numbers in a patch
    d, b = SIZE["width"], SIZE["bottleneck"]
    hidden = int(4 * d * 2 / 3)
    embed_and_head = pixels * b + b * d + d * pixels
    block = 4 * d * d + 2 * tokens * d + 3 * d * hidden  # q k v out; scores and values; SwiGLU
    per_token = embed_and_head + SIZE["depth"] * block
    per_image = 256 * d + d * d + SIZE["depth"] * 6 * d * d + 2 * d * d  # time, adaLN of all
    return 3 * 2 * BATCH * (tokens * per_token + per_image)


def batch() -> dict[str, np.ndarray]:
    """One batch as the data pipeline hands it over; random pixels are as good as any here."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (BATCH, *SHAPE), np.uint8),
        "label": random.integers(0, CLASSES, BATCH).astype(np.int32),
        "index": np.arange(BATCH, dtype=np.int32),
    }


def our_step():
    """A function of nothing that takes one step of ours and waits for it; returns the loss."""
    model = vit.Model(conditions={"label": (CLASSES,)}, class_tokens=0, **SIZE)
    process = Process(RectifiedFlow(), prediction="x", loss_space="u", floor=FLOOR)
    law = functools.partial(times.logit_normal, mean=0.8, std=0.8)
    rate = train_step.learning_rate(peak=RATE, steps=1000)
    optimizer = train_step.adamw(rate)
    step = train_step.make_train_step(
        model, process, law, optimizer, rate,
        seed=0, batch_size=BATCH, label_dropout=LABEL_DROPOUT,
    )  # fmt: skip
    mesh = parallel.make_mesh()
    init = train_step.make_init(model, optimizer, (ema_lib.decay_name(DECAY),), 0, SHAPE)
    shardings = parallel.state_shardings(mesh, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings)()
    data = parallel.put_batch(mesh, batch())
    compiled = parallel.compile_step(step, mesh, shardings, "jit")

    def run():
        nonlocal state
        state, metrics = compiled(state, data)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run


def torch_step():
    """The same in eager PyTorch."""
    model = JiT(SHAPE, classes=CLASSES, class_tokens=0, class_tokens_from=0, **SIZE)
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    ema = [p.detach().clone() for p in params]
    data = {name: torch.from_numpy(a) for name, a in batch().items()}

    def run():
        x = data["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
        label = torch.where(torch.rand(BATCH) < LABEL_DROPOUT, CLASSES, data["label"])
        t = torch.sigmoid(0.8 * torch.randn(BATCH) - 0.8)  # 1 is data here
        t_image = t[:, None, None, None]
        z = t_image * x + (1 - t_image) * torch.randn_like(x)
        rest = (1 - t_image).clamp(min=FLOOR)
        loss = (((x - z) / rest - (model(z, t, label) - z) / rest) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - DECAY)
        return loss.item()

    return run


def jax_runs():
    """What the JAX process is, and what it measures."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32))
    product = jax.jit(jnp.matmul)
    runs = {"product": lambda: product(a, a).block_until_ready(), "step": our_step()}
    return f"jax {jax.__version__} on {jax.devices()[0].device_kind}", runs


def torch_runs():
    """What the PyTorch process is, and what it measures."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    a = torch.from_numpy(np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32))
    runs = {"product": lambda: a @ a, "step": torch_step()}
    return f"torch {torch.__version__} with {torch.get_num_threads()} threads", runs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each kind")
    rounds = parser.parse_args().rounds
    flops = {"product": 2 * SIDE**3, "step": step_flops()}
    print(f"{os.cpu_count()} cores, {rounds} rounds; a step is {flops['step'] / 1e9:.1f} GFLOP")
    measured = turns.measure({"ours": jax_runs, "PyTorch": torch_runs}, rounds)
    seconds = {name: [wall for wall, _ in values] for name, values in measured.items()}
    for (kind, system), values in seconds.items():
        print(f"{kind + ', ' + system:18} {min(values) * 1e3:6.0f} to {max(values) * 1e3:6.0f} ms")
    for title, choose in (("median", statistics.median), ("fastest", min)):
        report(title, {name: choose(values) for name, values in seconds.items()}, flops)


def report(title: str, seconds: dict[tuple[str, str], float], flops: dict[str, float]) -> None:
    """Print times, rates and their ratios. The fastest are the ones to read on a busy machine."""
    rate = {name: flops[name[0]] / value / 1e9 for name, value in seconds.items()}
    for (kind, system), value in seconds.items():
        gflops = rate[kind, system]
        print(f"{title}: {kind + ', ' + system:18}{value * 1e3:8.0f} ms {gflops:8.1f} GFLOP/s")
    for system in ("ours", "PyTorch"):
        share = rate["step", system] / rate["product", system]
        print(f"{title}: {system} reaches {share:.3f} of its product rate")
    print(f"{title}: ours / PyTorch {rate['step', 'ours'] / rate['step', 'PyTorch']:.3f}")


if __name__ == "__main__":
    main()
