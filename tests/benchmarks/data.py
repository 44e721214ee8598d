"""How fast photographs become batches: our pipeline beside tf.data's, and our cache.

    pip install -e ".[prepare]" && python tests/benchmarks/data.py

500 photographs of 400x500 (cut from scikit-learn's two, JPEG quality 90), a random crop of at least
8 % of the area to 256x256, antialiased, batches of 32, two threads. tf.data decodes only the crop,
resizes antialiased bilinear as we do, and tunes itself. Each pipeline runs in a process of its own,
in turn, and its fastest and median round are printed, in images per second.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

COUNT, HEIGHT, WIDTH, SIZE, BATCH, LEAST_AREA, THREADS = 500, 400, 500, 256, 32, 0.08, 2
WARM, TIMED, ROUNDS = 20, 60, 5  # batches, batches, rounds


def write_photographs(folder):
    """500 overlapping parts of two real photographs."""
    from sklearn.datasets import load_sample_image

    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        photograph = photographs[i % 2]
        top = rng.integers(photograph.shape[0] - HEIGHT + 1)
        left = rng.integers(photograph.shape[1] - WIDTH + 1)
        part = Image.fromarray(photograph[top : top + HEIGHT, left : left + WIDTH])
        part.save(folder / f"{i:03d}.jpg", quality=90)


def ours(folder, cache=False):
    """Batches of our pipeline."""
    from vitdiff_jax.data import folder as own
    from vitdiff_jax.data import pipeline

    options = dict(cache=True) if cache else dict(random_area=LEAST_AREA)
    source = own.dataset(str(folder), size=SIZE, heldout=0.01, **options).train
    return pipeline.batches(source, BATCH, seed=0, threads=THREADS)


def cached(folder):
    """Batches of our pipeline from the cache."""
    return ours(folder, cache=True)


def tf_data(folder):
    """Batches of the pipeline that TensorFlow's guides recommend."""
    import tensorflow as tf

    def read(path):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4], tf.float32), 0, 0.1,
            (3 / 4, 4 / 3), (LEAST_AREA, 1.0), 10, True,
        )  # fmt: skip
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=True)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    paths = sorted(str(path) for path in folder.glob("*.jpg"))
    auto = tf.data.AUTOTUNE
    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(COUNT).repeat()
    return iter(data.map(read, auto).batch(BATCH).prefetch(auto).as_numpy_iterator())


def resize_error(folder):
    """Mean absolute difference, in grey levels, of our crop to one in float64."""
    from vitdiff_jax.data import transforms

    total = []
    for i, path in enumerate(sorted(folder.glob("*.jpg"))[:50]):
        image = transforms.decode(path.read_bytes(), 3)
        found = transforms.random_crop(image, SIZE, np.random.default_rng(i), LEAST_AREA)
        box = last_box(i)
        wanted = resize(np.asarray(image, np.float64), box)
        total.append(np.abs(found - wanted).mean())
    return float(np.mean(total))


def last_box(seed):
    """The box that `random_crop` draws from this seed, by asking it to crop the coordinates."""
    from vitdiff_jax.data import transforms

    class Recorder:
        size = (WIDTH, HEIGHT)

        def crop(self, box):
            self.box = box
            return Image.new("RGB", (box[2] - box[0], box[3] - box[1]))

    recorder = Recorder()
    transforms.random_crop(recorder, SIZE, np.random.default_rng(seed), LEAST_AREA)
    return recorder.box


def resize(image, box):
    """Antialiased bilinear in float64: a triangle as wide as the larger of the two pixel sizes."""

    def weights(first, last, count):
        scale = (last - first) / SIZE
        support = max(scale, 1.0)
        centre = first + (np.arange(SIZE) + 0.5) * scale
        distance = np.abs(np.arange(count) + 0.5 - centre[:, None]) / support
        w = np.maximum(0, 1 - distance)
        w[:, : int(first)] = 0
        w[:, int(last) :] = 0
        return w / w.sum(1, keepdims=True)

    left, top, right, bottom = box
    rows, cols = weights(top, bottom, HEIGHT), weights(left, right, WIDTH)
    return np.einsum("yh,hwc,xw->yxc", rows, image, cols, optimize=True)


def measure(name, folder):
    """Images per second of one pipeline, printed for the parent to read."""
    batches = globals()[name](folder)
    for _ in range(WARM):
        next(batches)
    began = time.perf_counter()
    for _ in range(TIMED):
        next(batches)
    print(TIMED * BATCH / (time.perf_counter() - began))


def main():
    with tempfile.TemporaryDirectory() as home:
        folder = pathlib.Path(home, "photographs")
        folder.mkdir()
        write_photographs(folder)
        rates = {name: [] for name in ("ours", "tf_data", "cached")}
        for _ in range(ROUNDS):
            for name, found in rates.items():
                command = [sys.executable, __file__, name, str(folder)]
                env = os.environ | {"XDG_CACHE_HOME": home}
                out = subprocess.run(
                    command, env=env, capture_output=True, text=True, check=True
                ).stdout
                found.append(float(out.split()[-1]))
        for name, found in rates.items():
            print(f"{name:8s} fastest {max(found):6.0f}  median {statistics.median(found):6.0f}")
        middle = {name: statistics.median(found) for name, found in rates.items()}
        print(f"ours / tf.data {middle['ours'] / middle['tf_data']:.2f}")
        print(f"cached / tf.data {middle['cached'] / middle['tf_data']:.1f}")
        print(f"mean absolute error of a crop {resize_error(folder):.2f} grey levels")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], pathlib.Path(sys.argv[2]))
    else:
        main()
