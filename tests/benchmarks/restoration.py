"""How fast DPS, DDRM and DiffPIR restore on this machine's CPU, next to deepinv's.

    python tests/benchmarks/restoration.py [--rounds 5] [--steps 50] [--batches 1 8]

Both have the same ViT with the same random weights (ours, and `tests/parity/jit_torch.py` behind
deepinv's interface), the same 70 % of missing pixels with noise, float32, and as many network calls
for an image: what was called is counted and printed, and that both networks agree is checked first.
The schedule is deepinv's for DPS and DiffPIR, the variance preserving one.

"dps" is ours as `--mode=restore` runs it, where the backward pass computes each block again to save
memory; "dps, kept" keeps what the forward pass computed, as PyTorch does.

In deepinv's favour: its parameters need no gradients, images are float32 and not its default of
float64, and DiffPIR is told the noise beforehand, else it makes a table anew in each call.

Each library has a process of its own, and they take turns (`turns.py`). On a machine that
does other things, read the processor times of one core (`taskset -c 0 python ...`): threads of
PyTorch wait for each other at every layer, and with a core short it takes many times as long.
"""

import argparse
import functools
import os
import statistics
import time
from typing import Any

import turns  # isort: skip - sets the platform and the path
import jax
import jax.numpy as jnp
import numpy as np

from vitdiff_jax import restoration
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.schedules import LinearVP
from vitdiff_jax.interop import families
from vitdiff_jax.models import vit
from vitdiff_jax.operators.mask import Mask

SHAPE, SHARE, NOISE = (32, 32, 3), 0.7, 0.1
SIZE = dict(patch=4, width=128, depth=4, heads=4, bottleneck=64, class_tokens=0)
METHODS = ("dps", "dps, kept", "ddrm", "diffpir")
SCHEDULE = LinearVP()
LEVELS = (0.02, 0.2, 0.5, 0.9, 1.0)
"""Times at which the networks are compared."""
TOLERANCE = 1e-4


def known() -> np.ndarray:
    """1 where a pixel is known, [H, W, 1]."""
    return (np.random.default_rng(0).random((*SHAPE[:2], 1)) > SHARE).astype(np.float32)


def measurement(batch: int) -> np.ndarray:
    """What is left of random images, and noise: [batch, H, W, C]."""
    random = np.random.default_rng(1)
    x = random.uniform(-1, 1, (batch, *SHAPE))
    return (known() * x + NOISE * random.standard_normal(x.shape)).astype(np.float32)


def probes() -> tuple[np.ndarray, np.ndarray]:
    """Noisy images x_t and their times t, one for each of `LEVELS`."""
    shape = (len(LEVELS), *SHAPE)
    return np.random.default_rng(2).standard_normal(shape, np.float32), np.float32(LEVELS)


def times(steps: int) -> np.ndarray:
    return np.linspace(1, 0, steps + 1)


def levels(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma of `SCHEDULE` without JAX, which must not run beside PyTorch."""
    slope = SCHEDULE.beta_max - SCHEDULE.beta_min
    alpha = np.exp(-(t**2) * slope / 4 - t * SCHEDULE.beta_min / 2)
    return alpha, np.sqrt(1 - alpha**2)


class Ours:
    """Compiled programs as `vitdiff_jax.inference.restoring` makes them."""

    def __init__(self, params: Any, steps: int, batches: list[int]):
        self.params, self.times = params, times(steps)
        self.name = f"jax {jax.__version__}"
        self.operator = Mask(known(), SHAPE[2])
        self.runs, self.compiling = {}, {}
        for method in METHODS:
            for batch in batches:
                start = time.perf_counter()
                self.runs[method, batch] = self._compiled(method, batch)
                self.compiling[method, batch] = time.perf_counter() - start

    def _denoise(self, params: Any, remat: str = "none"):
        model = vit.Model(conditions={}, remat=remat, **SIZE)
        apply = functools.partial(model.apply, {"params": params})
        return Process(SCHEDULE, prediction="x").denoiser(lambda x, t: apply(x, t, {}))

    def _restore(self, method: str, denoise, seeds, y, operator):
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
        noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys[:, 0])
        restore = restoration.methods()[method.partition(",")[0]].restore
        return restore(
            denoise, SCHEDULE, self.times, noise, keys[:, 1],
            operator=operator, y=y, noise_std=NOISE,
        )  # fmt: skip

    def _compiled(self, method: str, batch: int):
        def program(params, seeds, y, operator):
            remat = "full" if method == "dps" else "none"
            return self._restore(method, self._denoise(params, remat), seeds, y, operator)

        arguments = self.params, np.arange(batch, dtype=np.uint32), measurement(batch)
        compiled = jax.jit(program).lower(*arguments, self.operator).compile()
        return lambda: np.asarray(compiled(*arguments, self.operator))

    def denoised(self) -> np.ndarray:
        """Of `probes`."""
        return np.asarray(jax.jit(lambda p, x, t: self._denoise(p)(x, t))(self.params, *probes()))

    def calls(self, method: str) -> tuple[int, int]:
        """Calls of a denoiser, and of its gradient, while one image is restored.

        A denoiser that only counts: what rematerialisation computes again is no call of a method.
        """
        found = [0, 0]

        def count(which):
            found[which] += 1

        @jax.custom_vjp
        def denoise(x, t):
            jax.debug.callback(count, 0)
            return x / 2

        def forward(x, t):
            return denoise(x, t), t

        def backward(t, slope):
            jax.debug.callback(count, 1)
            return slope / 2, jnp.zeros_like(t)

        denoise.defvjp(forward, backward)
        seeds = np.zeros(1, np.uint32)
        jax.block_until_ready(
            jax.jit(lambda y: self._restore(method, denoise, seeds, y, self.operator))(
                measurement(1)
            )
        )
        jax.effects_barrier()
        return found[0], found[1]


class Theirs:
    """deepinv's methods on an eager PyTorch network; images are in [0, 1] there."""

    def __init__(self, weights: Any, steps: int, batches: list[int]):
        import deepinv
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch, self.counts, self.compiling = torch, [0, 0], {}
        self.name = f"deepinv {deepinv.__version__}, torch {torch.__version__}"
        self.denoiser = self._denoiser(deepinv, weights)
        alpha, sigma = levels(times(steps)[:-1])
        methods = {
            "dps": deepinv.sampling.DPS(
                self.denoiser, schedule="vp", solver="ddpm", num_steps=steps + 1,
                dtype=torch.float32,
            ),
            "ddrm": deepinv.sampling.DDRM(self.denoiser, sigmas=sigma / alpha / 2),
            "diffpir": deepinv.sampling.DiffPIR(
                self.denoiser, deepinv.optim.data_fidelity.L2(), sigma=NOISE / 2, max_iter=steps,
                zeta=0.3, lambda_=8.0,
            ),
        }  # fmt: skip
        self.runs = {}
        for batch in batches:
            for method in METHODS:
                name = method.partition(",")[0]
                self.runs[method, batch] = self._run(deepinv, name, methods[name], batch)

    def _denoiser(self, deepinv, weights: Any):
        from tests.parity.jit_torch import JiT

        torch, counts = self.torch, self.counts
        net = JiT(SHAPE, classes=None, class_tokens_from=0, **SIZE)
        net.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
        net.requires_grad_(False)
        low, slope = SCHEDULE.beta_min, SCHEDULE.beta_max - SCHEDULE.beta_min

        def counted(gradient):
            counts[1] += 1

        class Denoiser(deepinv.models.Denoiser):
            """x + sigma eps in [0, 1] -> x, by a network that sees alpha x + sigma eps at t."""

            def forward(self, x, sigma, *args, **kwargs):
                counts[0] += 1
                ratio = 2 * self._handle_sigma(sigma, reference_tensor=x)  # in [-1, 1]
                c = 2 * torch.log1p(ratio**2)
                t = c / (low + torch.sqrt(low**2 + slope * c))
                x_t = (2 * x - 1) / torch.sqrt(1 + ratio**2)
                if x_t.requires_grad:
                    x_t.register_hook(counted)
                return (net(x_t, 1000 * t.flatten().expand(len(x))) + 1) / 2

        return Denoiser()

    def _run(self, deepinv, name: str, method, batch: int):
        torch, noise = self.torch, deepinv.physics.GaussianNoise(NOISE / 2)
        mask = torch.from_numpy(known()).permute(2, 0, 1).expand(SHAPE[2], *SHAPE[:2])
        told = dict(noise_model=noise) if name == "ddrm" else {}
        physics = deepinv.physics.Inpainting((SHAPE[2], *SHAPE[:2]), mask=mask.contiguous(), **told)
        y = (torch.from_numpy(measurement(batch)).permute(0, 3, 1, 2) + 1) / 2 * mask
        return lambda: method(y, physics).permute(0, 2, 3, 1).numpy() * 2 - 1

    def denoised(self) -> np.ndarray:
        """Of `probes`."""
        x_t, t = probes()
        alpha, sigma = levels(t)
        x = (x_t / alpha[:, None, None, None] + 1) / 2
        x = self.torch.from_numpy(x).permute(0, 3, 1, 2)
        found = self.denoiser(x, self.torch.from_numpy(sigma / alpha / 2))
        return found.permute(0, 2, 3, 1).numpy() * 2 - 1

    def calls(self, method: str) -> tuple[int, int]:
        self.counts[:] = 0, 0
        next(run for (name, _), run in self.runs.items() if name == method)()
        return self.counts[0], self.counts[1]


def started(make, weights, steps: int, batches: list[int]):
    """What one side says of itself: all that `check` looks at; and its runs."""
    side = make(weights, steps, batches)
    finite = {key: bool(np.isfinite(run()).all()) for key, run in side.runs.items()}
    calls = {method: side.calls(method) for method in METHODS}
    return (side.name, side.denoised(), finite, calls, side.compiling), side.runs


def weights_of_both() -> tuple[Any, Any]:
    """Random weights: (our parameters, PyTorch's state), as arrays."""
    from tests.parity.jit_torch import JiT
    from tests.parity.test_vit import random_weights, tensors

    state = tensors(random_weights(JiT(SHAPE, classes=None, class_tokens_from=0, **SIZE)))
    return families.from_torch("jit", state, size=SHAPE[:2])[1], state


def check(*about) -> None:
    """Refuse to time networks that differ and results that are not finite; print the rest."""
    ours, theirs = (denoised for _, denoised, *_ in about)
    away = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"the networks differ by {away:.1e} of the largest output")
    if not away < TOLERANCE:
        raise SystemExit(f"error: more than {TOLERANCE}: these are two networks")
    for name, _, finite, calls, compiling in about:
        if not all(finite.values()):
            raise SystemExit(f"error: {name} gives what is not finite: {finite}")
        print(f"{name}: network calls and gradients {calls}; compiled in seconds {compiling}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    load = f", load {os.getloadavg()[0]:.1f}"
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores{load}; {args.steps} steps, {args.rounds} rounds; {SHAPE} {SIZE}")
    sides = {
        side: functools.partial(started, make, weights, args.steps, args.batches)
        for side, make, weights in zip(("ours", "deepinv"), (Ours, Theirs), weights_of_both())
    }
    times = turns.measure(sides, args.rounds, check)
    for method in METHODS:
        for batch in args.batches:
            report((method, batch), *(times[(method, batch), side] for side in sides))


def report(key: tuple[str, int], ours: turns.Times, theirs: turns.Times) -> None:
    """A line: milliseconds an image, medians and ranges, and how many times faster ours is."""
    method, batch = key

    def text(seconds):
        middle, least, most = (1e3 * f(seconds) / batch for f in (statistics.median, min, max))
        return f"{middle:6.1f} ms ({least:.1f} to {most:.1f})"

    (wall, cpu), (their_wall, their_cpu) = zip(*ours), zip(*theirs)
    ratios = [
        statistics.median(b) / statistics.median(a)
        for a, b in ((wall, their_wall), (cpu, their_cpu))
    ]
    print(
        f"{method:9} batch {batch}: an image takes ours {text(wall)}, deepinv {text(their_wall)}:"
        f" {ratios[0]:.2f} times as fast, {ratios[1]:.2f} in processor time"
    )


if __name__ == "__main__":
    main()
