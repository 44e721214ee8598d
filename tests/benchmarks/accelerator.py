"""How fast training steps are on this machine's GPU or TPU: those of configs, and PyTorch's.

    python tests/benchmarks/accelerator.py --step=dit.py:64 --step=dit.py:64,model.attention=xla
    python tests/benchmarks/accelerator.py --pytorch=128

A step is given as config:images on each chip[,key=value...]; all of the model's blocks are
compiled, as training compiles them, AdamW and one average included. Random pixels are as good as
any here. Printed are the median, the least and the most of five rounds of ten steps, each round
waited for, the share of the chip's peak (MFU) that the model's own operations make, and the bytes
that the compiler has given away.

--pytorch: JiT-B/16 of 256 px by an independent module (`tests/parity/jit_torch.py`): autocast to
bfloat16, its flash attention, fused AdamW, one average, eager and by torch.compile. In a process of
its own, since JAX takes most of the memory. A script and not a test: a time is no yes or no.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STEPS, ROUNDS = 10, 5
"""Steps of a round, and rounds."""
DECAY, RATE, FLOOR, CLASSES, LABEL_DROPOUT = 0.9999, 2e-4, 0.05, 1000, 0.1


def timed(step, finish) -> tuple[float, float, float]:
    """(median, least, most) seconds of step(), which finish() waits for."""
    for _ in range(3):
        step()
    finish()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        finish()
        seconds.append((time.perf_counter() - start) / STEPS)
    return statistics.median(seconds), min(seconds), max(seconds)


def config_of(given: str):
    """The complete config of "file.py:images,key=value"; values are JSON or text."""
    import jax

    from vitdiff_jax.experiment import config as config_lib
    from vitdiff_jax.modes import plan

    name, _, rest = given.partition(":")
    images, *pairs = rest.split(",")
    changes: dict = {"train.batch": int(images) * jax.device_count(), "train.ema": [DECAY]}
    for key, value in (pair.split("=", 1) for pair in pairs):
        try:
            changes[key] = json.loads(value)
        except json.JSONDecodeError:
            changes[key] = value
    return plan.changed(config_lib.load(str(ROOT / "configs" / name)), changes)


def random_batch(shapes):
    """Pixels or latents, labels from 0 on, and nothing else."""
    random = np.random.default_rng(0)

    def values(name, a):
        if name == "image":
            pixels = random.integers(0, 256, a.shape)
            return (pixels if a.dtype == np.uint8 else pixels / 127.5 - 1).astype(a.dtype)
        return np.resize(np.arange(CLASSES), a.shape).astype(a.dtype)

    return {name: values(name, a) for name, a in shapes.items()}


def ours(given: str) -> None:
    """Measure a step of ours and print a line."""
    import jax

    from vitdiff_jax.experiment import build as experiment_lib
    from vitdiff_jax.runtime import chips, parallel
    from vitdiff_jax.training import program

    config = config_of(given)
    experiment = experiment_lib.build(config, *experiment_lib.outline(config))
    mesh = parallel.make_mesh(config.parallel.fsdp)
    built = program.build(config, experiment, mesh)
    shapes, start = program.batch_shapes(config, experiment), time.perf_counter()
    compiled = built.step.lower(built.shapes, shapes).compile()
    compiling = time.perf_counter() - start
    batch = parallel.put_batch(mesh, random_batch(shapes))
    state, metrics = jax.jit(built.init, out_shardings=built.shardings)(), {}

    def step():
        nonlocal state, metrics
        state, metrics = compiled(state, batch)

    def finish():
        jax.block_until_ready(state)

    seconds, least, most = timed(step, finish)
    flops = 3 * experiment.forward_flops() * config.train.batch / mesh.size
    peak = chips.peak_flops(jax.devices()[0].device_kind) or np.nan
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    total += memory.output_size_in_bytes - memory.alias_size_in_bytes
    print(
        f"{given}: {1e3 * seconds:.1f} ms ({1e3 * least:.1f} to {1e3 * most:.1f}),"
        f" {config.train.batch / seconds:.0f} images/s, MFU {flops / seconds / peak:.3f},"
        f" {total / 2**30:.1f} GiB, compiled in {compiling:.0f} s,"
        f" loss {float(metrics['loss']):.3f}",
        flush=True,
    )


def pytorch(images: int) -> None:
    """Measure PyTorch's, eager and compiled, and print a line each."""
    import torch

    from tests.parity.jit_torch import JiT

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    shape, device = (256, 256, 3), torch.device("cuda")
    model = JiT(
        shape, classes=CLASSES, patch=16, width=768, depth=12, heads=12, bottleneck=128,
        class_tokens=32, class_tokens_from=4,
    ).to(device)  # fmt: skip
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    ema = [p.detach().clone() for p in params]
    image = torch.randint(0, 256, (images, 3, 256, 256), dtype=torch.uint8, device=device)
    label = torch.arange(images, device=device) % CLASSES

    def loss_of(image, label):
        x = image.float() / 127.5 - 1
        label = torch.where(torch.rand(images, device=device) < LABEL_DROPOUT, CLASSES, label)
        t = torch.sigmoid(0.8 * torch.randn(images, device=device) - 0.8)  # 1 is data here
        t_image = t[:, None, None, None]
        z = t_image * x + (1 - t_image) * torch.randn_like(x)
        rest = (1 - t_image).clamp(min=FLOOR)
        with torch.autocast("cuda", torch.bfloat16):
            found = model(z, t, label)
        return (((x - z) / rest - (found.float() - z) / rest) ** 2).mean()

    for name, loss in (("eager", loss_of), ("torch.compile", torch.compile(loss_of))):

        def step(loss=loss):
            optimizer.zero_grad()
            loss(image, label).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(ema, params, 1 - DECAY)

        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        compiling = time.perf_counter() - start
        seconds, least, most = timed(step, torch.cuda.synchronize)
        print(
            f"PyTorch {torch.__version__}, {name}, JiT-B/16, {images} images:"
            f" {1e3 * seconds:.1f} ms ({1e3 * least:.1f} to {1e3 * most:.1f}),"
            f" {images / seconds:.0f} images/s,"
            f" {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, first step {compiling:.0f} s",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", action="append", default=[], help="config:images[,key=value...]")
    parser.add_argument("--pytorch", type=int, help="images of a step of PyTorch's")
    arguments = parser.parse_args()
    if arguments.step:
        import jax

        print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    for given in arguments.step:
        ours(given)
    if arguments.pytorch:
        pytorch(arguments.pytorch)


if __name__ == "__main__":
    main()
