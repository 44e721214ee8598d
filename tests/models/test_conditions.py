"""Conditions: what is told matters, what is not told is as if it were not there."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny_models import SHAPE, TINY, param_shapes, random_params, stacked
from tests.parts import covering, only, quick
from vitdiff_jax.data.text import to_bytes
from vitdiff_jax.models import conditions
from vitdiff_jax.models.vit import Model

SIZES = {"label": (5,), "attributes": (3,), "text": (16,), "embedding": (4, 6), "hint": (2,)}
OPTIONS = TINY["vit"] | dict(text_depth=2)
TEXTS = ("a", "déjà", "sixteen bytes!!!")  # 1, 6 and 16 bytes: 1, 2 and 4 tokens
each = pytest.mark.parametrize("name", SIZES)


def told(*names, seed=0):
    """These conditions (none named: all of them) for three images, each with something to say."""
    random = np.random.default_rng(seed)
    embedding = random.standard_normal((3, 4, 6))
    embedding[0, 1:] = embedding[1, 3:] = 0  # texts of one, three and four vectors
    values = {
        "label": np.array([0, 3, 4], np.int32),
        "attributes": random.integers(0, 2, (3, 3)).astype(np.int8),
        "text": np.stack([to_bytes(text, 16) for text in TEXTS]),
        "embedding": embedding.astype(np.float16),
        "hint": random.standard_normal((3, *SHAPE[:2], 2)).astype(np.float32),
    }
    return {name: jnp.asarray(values[name]) for name in names or SIZES}


def sizes_of(cond):
    """As in SIZES, but texts and embeddings of any length."""
    own = ("label", "hint")
    return {name: SIZES[name] if name in own else a.shape[1:] for name, a in cond.items()}


# --- Leaving conditions out -----------------------------------------------------------------------


def test_sizes_are_those_of_the_data_set():
    described = {
        "label": tuple("abcde"), "attributes": ["x", "y", "z"], "text": 16,
        "embedding": {"length": 4, "width": 6, "encoder": "some"}, "hint": 2,
    }  # fmt: skip
    assert conditions.sizes_of(described) == SIZES
    assert conditions.sizes_of({}) == {}


@each
def test_blank_is_what_is_not_told(name):
    """-1 where there are numbers to choose from, else zeros; shaped as the examples are."""
    (found,) = conditions.null_batch({name: SIZES[name]}, 3, *SHAPE[:2]).values()
    wanted = told(name)[name]
    assert found.shape == wanted.shape
    assert (found == (0 if name in ("embedding", "hint") else -1)).all()
    again = conditions.null_cond({name: wanted})[name]
    assert again.dtype == wanted.dtype
    np.testing.assert_array_equal(again, found)


drop = jax.jit(conditions.drop, static_argnums=2)


def dropped(cond, keys, rate):
    """{name: [B]}: who has lost it; what is not lost must be as it was."""
    after = drop(cond, keys, rate)
    assert after.keys() == cond.keys()
    found = {}
    for name, blank in conditions.null_cond(cond).items():
        assert after[name].dtype == cond[name].dtype
        lost, kept = (
            np.array((after[name] == wanted).reshape(len(keys), -1).all(1))
            for wanted in (blank, cond[name])
        )
        assert (lost != kept).all()
        found[name] = lost
    return found


def many(count, *names):
    return {
        name: jnp.asarray(np.resize(a, (count, *a.shape[1:]))) for name, a in told(*names).items()
    }


@pytest.mark.parametrize(("name", "rate"), covering(itertools.product(SIZES, [0.3, 0.0, 1.0])))
def test_a_condition_alone_is_dropped_by_its_keys_uniform(name, rate):
    """So that models with classes alone train as they did before there were other conditions."""
    keys = jax.random.split(jax.random.key(1), 40)
    wanted = jax.vmap(jax.random.uniform)(keys) < rate
    np.testing.assert_array_equal(dropped(many(40, name), keys, rate)[name], wanted)


@pytest.mark.slow
def test_several_are_dropped_together_and_each_alone():
    """Each of the 32 ways as often as (together or alone) says, five standard errors."""
    count, rate = 20_000, 0.2
    keys = jax.random.split(jax.random.key(0), count)
    lost = np.stack(list(dropped(many(count), keys, rate).values()), 1)
    together = np.array(jax.vmap(jax.random.uniform)(keys) < rate)
    assert lost[together].all()
    for way in itertools.product([False, True], repeat=len(SIZES)):
        wanted = (1 - rate) * np.prod(np.where(way, rate, 1 - rate)) + rate * all(way)
        error = np.sqrt(wanted * (1 - wanted) / count)
        assert abs((lost == way).all(1).mean() - wanted) < 5 * error, way


def test_dropping_belongs_to_the_key():
    """Not to the place in the batch, nor to the order in which a data set names its conditions."""
    cond, keys = many(60), jax.random.split(jax.random.key(0), 60)
    rows = np.random.default_rng(0).permutation(60)
    whole = dropped(cond, keys, 0.4)
    part = dropped({name: a[rows] for name, a in reversed(cond.items())}, keys[rows], 0.4)
    other = dropped(cond, jax.random.split(jax.random.key(1), 60), 0.4)
    for name, lost in whole.items():
        np.testing.assert_array_equal(part[name], lost[rows])
        assert (other[name] != lost).any()


# --- The embedding --------------------------------------------------------------------------------


@functools.cache
def params(*names, **options):
    return random_params(Model({name: SIZES[name] for name in names or SIZES}, **OPTIONS | options))


def embedded(cond, weights=None):
    """(vector, tokens, mask) of conditions, by the same parameters whichever there are."""
    module = conditions.Embedding(sizes_of(cond), 16, jnp.dtype("float32"), 8, 2)
    return jax.jit(module.apply)({"params": weights or params()["conditions"]}, cond)


def test_attributes_add_up():
    """The vector of any wish is the sum of its parts; what is left open adds nothing."""
    wishes = np.array(list(itertools.product([-1, 0, 1], repeat=3)), np.int8)
    vectors, tokens, mask = embedded({"attributes": jnp.asarray(wishes)})
    assert tokens is None
    assert mask is None
    alone = {
        (int(i), int(wish[i])): vector
        for wish, vector in zip(wishes, vectors)
        for i in np.flatnonzero(wish >= 0)
        if (wish >= 0).sum() == 1
    }
    assert len({vector.tobytes() for vector in map(np.asarray, alone.values())}) == 6
    for wish, vector in zip(wishes, vectors):
        parts = [alone[i, int(value)] for i, value in enumerate(wish) if value >= 0]
        np.testing.assert_allclose(vector, sum(parts, np.zeros(16)), atol=1e-6)


def test_the_vector_is_a_sum():
    """Of label, attributes and the mean of the tokens that there are, of text and embedding."""
    vector, tokens, mask = embedded(told())
    np.testing.assert_array_equal(mask.sum(1), [1 + 1, 2 + 3, 4 + 4])
    mean = [row[here].mean(0) for row, here in zip(np.asarray(tokens), np.asarray(mask))]
    parts = [embedded(told(name))[0] for name in ("label", "attributes")]
    np.testing.assert_allclose(vector, sum(parts, np.stack(mean)), atol=1e-5)
    assert all(abs(part).max() > 0.1 for part in (*parts, *mean))


def test_no_condition_is_no_vector():
    """Nor is a hint one: it comes in with the image."""
    assert embedded({}) == embedded(told("hint")) == (None, None, None)


def test_embeddings_are_normed_and_projected():
    """A vector of zeros is none."""
    cond = told("embedding")
    _, tokens, mask = embedded(cond)
    x = np.asarray(cond["embedding"], np.float64)
    np.testing.assert_array_equal(mask, x.any(-1))
    out = params()["conditions"]["embedding_out"]
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(tokens, wanted, atol=1e-5)


def with_positions(change):
    """The parameters with other positions [4, 8] of the text's tokens."""
    found = params()["conditions"]
    return found | {"text": found["text"] | {"positions": change(found["text"]["positions"])}}


@pytest.mark.parametrize("text", quick([TEXTS[1]], TEXTS[:2]))
def test_nothing_after_a_text_matters(text):
    """Neither how much room there is for more, nor what other texts in the batch fill it with."""
    alone = embedded({"text": to_bytes(text, 16)[None]})
    room = with_positions(lambda a: jnp.concatenate([a, jnp.full_like(a, 100.0)]))
    texts = [to_bytes(item, 32) for item in ("x" * 32, text, "")]
    beside = embedded({"text": np.stack(texts)}, room)
    count = -(-len(text.encode()) // 4)
    for vector, tokens, mask in ([a[0] for a in alone], [a[1] for a in beside]):
        np.testing.assert_array_equal(mask, np.arange(len(mask)) < count)
        np.testing.assert_allclose(vector, alone[0][0], atol=1e-5)
        np.testing.assert_allclose(tokens[:count], alone[1][0, :count], atol=1e-5)


def test_no_text_is_a_text_not_told():
    none = jnp.asarray(to_bytes("", 16)[None])
    np.testing.assert_array_equal(none, conditions.null_cond({"text": none})["text"])
    vector, tokens, mask = embedded({"text": none})
    assert not mask.any()
    assert not vector.any()
    assert np.isfinite(tokens).all()


def test_every_byte_of_a_text_matters():
    """And where it stands: the others are the same text with one byte less, changed, or swapped."""
    texts = ["abcdefg", "abcdef", "abcdefh", "bacdefg", "abcdgfe", "\0abcdefg", "abcdefg\0"]
    vectors = np.asarray(embedded({"text": np.stack([to_bytes(t, 16) for t in texts])})[0])
    apart = abs(vectors[:, None] - vectors).max(-1)
    assert (apart[~np.eye(len(texts), dtype=bool)] > 1e-3).all()


# --- The network ----------------------------------------------------------------------------------


def images(batch=3):
    random = np.random.default_rng(5)
    x = random.standard_normal((batch, *SHAPE)).astype(np.float32)
    return x, random.uniform(0, 1, batch).astype(np.float32)


@functools.cache
def network(sizes, **options):
    return jax.jit(Model(dict(sizes), **OPTIONS | options).apply)


def run(cond, weights, **options):
    """The tiny model's images."""
    apply = network(tuple(sizes_of(cond).items()), **options)
    return np.asarray(apply({"params": weights}, *images(), cond))


def without(weights, name):
    """The parameters of the network without this condition, out of those with it."""
    kernel = weights["bottleneck_in"]["kernel"]
    if name == "hint":  # its channels stand behind the image's three
        kernel = kernel.reshape(-1, 3 + 2, kernel.shape[-1])[:, :3].reshape(-1, kernel.shape[-1])
    return weights | {"bottleneck_in": {"kernel": kernel}}


@pytest.mark.parametrize(
    ("name", "start"),
    only(
        [("hint", 1)],
        itertools.product(["attributes", "text", "embedding", "hint"], [0, 1]),
    ),
)
def test_what_is_not_told_is_not_there(name, start):
    """The images are those of a network that knows labels alone; a class has its "no class"."""
    options = dict(class_tokens_from=start, depth=1 + start, text_depth=1)
    label, weights = told("label"), params("label", name, **options)
    wanted = run(label, without(weights, name), **options)
    found = run(label | conditions.null_cond(told(name)), weights, **options)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    found = run(label | told(name), weights, **options)
    assert (abs(found - wanted).max((1, 2, 3)) > 1e-2).all()


@pytest.mark.slow
def test_tokens_after_a_text_are_not_looked_at():
    """Texts of two tokens, then of any garbage: the images stay, to the bit."""
    cond = told("label", "text") | {"text": np.stack([to_bytes(t, 16) for t in ("a", "déjà", "")])}
    weights = params("label", "text")

    def moved(rows):
        places = weights["conditions"]["text"]["positions"]
        text = weights["conditions"]["text"] | {"positions": places.at[rows].add(100.0)}
        other = weights | {"conditions": weights["conditions"] | {"text": text}}
        return abs(run(cond, other) - run(cond, weights)).max((1, 2, 3))

    assert moved(slice(2, 4)).max() == 0
    assert (moved(slice(0, 2)) > 0).tolist() == [True, True, False]  # the last has no text
    assert (moved(1) > 0).tolist() == [False, True, False]


@pytest.mark.slow
def test_vectors_of_zeros_are_not_looked_at():
    cond, weights = told("label", "embedding"), params("label", "embedding")
    longer = cond | {"embedding": jnp.pad(cond["embedding"], [(0, 0), (0, 3), (0, 0)])}
    np.testing.assert_allclose(run(longer, weights), run(cond, weights), atol=1e-5)


@functools.cache
def gradient():
    model, weights = Model(SIZES, **OPTIONS), np.random.default_rng(1).standard_normal((3, *SHAPE))

    def projection(params):
        return (weights * model.apply({"params": params}, *images(), told())).sum()

    return jax.jit(jax.grad(projection))(params())


@pytest.mark.slow
def test_every_parameter_of_the_conditions_learns():
    found = gradient()
    leaves, _ = jax.tree_util.tree_flatten_with_path(found["conditions"])
    assert len(leaves) > 30
    for path, leaf in leaves:
        assert np.isfinite(leaf).all(), path
        assert abs(leaf).max() > 1e-4, path
    kernel = found["bottleneck_in"]["kernel"].reshape(4, 3 + 2, -1)
    assert (abs(kernel).max((0, 2)) > 1e-4).all()  # of the image's channels and the hint's


@pytest.mark.slow
@pytest.mark.parametrize(("start", "remat"), [(0, "none"), (1, "full")])
def test_scanned_is_unrolled(start, remat):
    """The mask goes to every block alike."""
    rolled = dict(class_tokens_from=start, scan=True, remat=remat)
    weights = params(class_tokens_from=start)
    stacks = stacked(weights, param_shapes(Model(SIZES, **OPTIONS | rolled)))
    plain = run(told(), weights, class_tokens_from=start)
    np.testing.assert_allclose(run(told(), stacks, **rolled), plain, atol=1e-5)
