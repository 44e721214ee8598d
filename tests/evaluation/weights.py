"""Stand-ins for Inception: a file like that of its published weights, and a small network.

The file has their names and shapes, and random values.
"""

import hashlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from vitdiff_jax.evaluation import networks
from vitdiff_jax.interop.images import from_uint8
from vitdiff_jax.models.inception import Inception


def tensors():
    """{name: array} as torch-fidelity publishes them, scaled so that no layer dies or explodes."""
    random, found = np.random.default_rng(0), {}
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    for path, kernel in flatten_dict(shapes).items():
        if path[-1] == "bias":
            continue
        name, axes = ".".join(path[:-1]), (3, 2, 0, 1) if len(kernel.shape) == 4 else (1, 0)
        shape = tuple(kernel.shape[axis] for axis in axes)
        scale = np.float32(np.sqrt(2 * 12 / np.prod(shape[1:])))  # He et al.: for ReLU
        weight = scale * (random.random(shape, np.float32) - np.float32(0.5))
        if name == "fc":
            bias = random.standard_normal(shape[0], np.float32)
            found |= {"fc.weight": weight, "fc.bias": bias}
            continue
        found[f"{name}.conv.weight"] = weight
        for part, around in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            values = around + 0.1 * random.uniform(-1, 1, shape[0])
            found[f"{name}.bn.{part}"] = values.astype(np.float32)
    return found


def write(path, **about):
    """As safetensors with what `interop.weights` checks; `about` replaces some of that."""
    found, digest = tensors(), hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name} {found[name].dtype} {found[name].shape};".encode())
        digest.update(found[name].tobytes())
    checked = {"sha256": networks.PUBLISHED.sha256, "tensors": digest.hexdigest()}
    save_file(found, path, checked | about)
    return path


def small(setting):
    """In place of `networks.inception`: takes no time, and so few numbers that few images do."""
    rows = jax.random.normal(jax.random.key(0), (11, 3 * 8 * 8)) / 8

    def apply(params, images):
        flat = from_uint8(images).reshape(len(images), -1)
        found = flat @ params[:, : flat.shape[1]].T
        return {"pool": found[:, :5], "spatial": found[:, 5:8] ** 2, "logits": found[:, 8:]}

    return networks.Network(networks.INCEPTION, "none", apply, rows, setting.mesh)
