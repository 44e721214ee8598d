"""How fast Inception's features are on this machine's CPU, next to pytorch-fid's.

    python tests/benchmarks/inception.py [--rounds 5]

Both get the same 256x256 images in batches of 32, random weights, and give the last pool; ours also
the logits and the map for sFID. Each has a process of its own; they take turns (`turns.py`).
Medians are printed, and the fastest.
"""

import argparse
import statistics

import numpy as np
import turns

BATCH, SIDE = 32, 256


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)


def ours():
    """Through `Network`, as metrics do."""
    import jax
    import jax.numpy as jnp

    from vitdiff_jax.evaluation.metric import Batch
    from vitdiff_jax.evaluation.networks import Network
    from vitdiff_jax.models.inception import Inception
    from vitdiff_jax.runtime import parallel

    model, batch = Inception(), Batch(images())
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
    network = Network("random", "", model.apply, params, parallel.make_mesh())
    return "ours", {"pool": lambda: network(batch)}


def pytorch_fid():
    """As its own command feeds it."""
    import torch
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: {}
    torch.nn.Module.load_state_dict = lambda *_, **__: None  # random weights
    model = inception.InceptionV3([3]).eval()
    batch = torch.from_numpy(images()).permute(0, 3, 1, 2).float() / 255

    def run():
        with torch.no_grad():
            return model(batch)[0].numpy()

    return "pytorch_fid", {"pool": run}


def main() -> None:
    """Print images per second of both, and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    measured = turns.measure({"ours": ours, "pytorch_fid": pytorch_fid}, rounds)
    found = {side: [BATCH / wall for wall, _ in times] for (_, side), times in measured.items()}
    for name, rates in found.items():
        print(f"{name}: median {statistics.median(rates):.1f} images/s, best {max(rates):.1f}")
    ratio = statistics.median(found["ours"]) / statistics.median(found["pytorch_fid"])
    print(f"ratio of the medians {ratio:.2f}")


if __name__ == "__main__":
    main()
