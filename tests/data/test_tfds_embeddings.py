"""Captions as embeddings of a frozen text encoder, from the archives to samples.

The encoders are small random ones of `transformers`, stored in folders as the real ones are.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

import vitdiff_jax
from tests import tiny
from tests.data import homes
from tests.data.homes import copy_of, drawn, everyone, run
from vitdiff_jax.inference import prompts

pytestmark = [pytest.mark.extra, pytest.mark.usefixtures("unoptimised")]


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Imported only where these tests run: it takes seconds."""
    sys.modules.setdefault("triton", None)  # see `embeddings.load_encoder`
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


def clip(folder):
    """A random CLIP text encoder of letters, as `transformers` stores one."""
    import torch
    import transformers

    torch.manual_seed(0)
    letters = [*(chr(i) for i in range(33, 127)), "Ã", "©"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24
    )
    settings = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=24, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    model = transformers.CLIPTextModel(settings).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def t5(folder):
    """A random T5 encoder of words."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(1)
    words = ["<pad>", "</s>", "<unk>", "caption", "of", "picture", "a", "red", "square", ",", "é"]
    words += [str(i) for i in range(500)]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    settings = transformers.T5Config(
        vocab_size=len(words), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(settings).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(kind, folder, text, length):
    """The vectors of one text, by the encoder alone, as float16 [length, W]."""
    import torch
    import transformers

    model = {"clip": transformers.CLIPTextModel, "t5": transformers.T5EncoderModel}[kind]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, truncation=True, max_length=24)["input_ids"]
    with torch.no_grad():
        found = model.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
    out = np.zeros((length, found.shape[1]), np.float16)
    out[: len(found)] = found[:length].to(torch.float16).numpy()
    return out


@pytest.mark.parametrize(("kind", "length"), [("clip", 24), ("t5", 12), ("t5", 4)])
def test_embeddings_are_the_encoders(prepared, tmp_path, kind, length):
    made = copy_of(prepared("captions")[0], tmp_path / "home")
    folder = {"clip": clip, "t5": t5}[kind](tmp_path / "encoder")
    code, said, _ = made.prepare(f"--config.data.text={folder}", f"--config.data.length={length}")
    assert code == 0
    assert said.count("writing caption embeddings ") == 2
    found = made.dataset(text=str(folder), length=length)
    about = found.conditions["embedding"]
    assert (about["length"], about["width"], about["encoder"]) == (length, 8, str(folder))
    pictures = made.truth["train"]
    wanted = {
        name: [by_hand(kind, folder, text, length) for text in about.captions]
        for name, about in pictures.items()
    }
    seen = set()
    for name, _, example in drawn(found.train, pictures, 40):
        assert example["embedding"].dtype == np.float16
        apart = [np.abs(example["embedding"].astype(float) - other).max() for other in wanted[name]]
        assert min(apart) < 4e-3  # batches round differently
        assert sorted(apart)[1] > 0.02
        seen.add((name, int(np.argmin(apart))))
    assert len(seen) == 5 * len(pictures)
    for name, example in everyone(found.heldout, made.truth["val"]):
        first = by_hand(kind, folder, made.truth["val"][name].captions[0], length)
        np.testing.assert_allclose(example["embedding"], first, atol=4e-3)


def test_train_and_sample_with_embeddings(prepared, tmp_path):
    made = copy_of(prepared("captions")[0], tmp_path / "home")
    folder = clip(tmp_path / "encoder")
    text = [f"--config.data.text={folder}", "--config.data.length=24", "--config.train.steps=2"]
    workdir = tmp_path / "embedded"
    code, _, error = run(*made.flags, *text, f"--workdir={workdir}")
    assert code == 1  # nothing is computed at training
    assert "no caption embeddings" in error
    assert "--mode=prepare" in error
    assert made.prepare(*text)[0] == 0
    assert run(*made.flags, *text, f"--workdir={workdir}")[0] == 0
    for flags in ([], ["--prompt="], ["--prompt=a red square"]):
        assert run("--mode=sample", f"--workdir={workdir}", "--n=4", "--npz", *flags)[0] == 0
    nothing, empty, square = (
        np.load(workdir / "samples" / f"step2{which}-seed0-n4.npz")["arr_0"]
        for which in ("", "-prompt-", "-prompt-a_red_square")
    )
    np.testing.assert_array_equal(empty, nothing)
    assert square.shape == nothing.shape == (4, 16, 16, 3)
    conditions = vitdiff_jax.load(workdir).experiment.conditions
    told = prompts.encode(conditions, 3, prompt=["", "a red square", ""])["embedding"]
    assert (told.dtype, told.shape) == (np.float16, (3, 24, 8))
    assert not told[[0, 2]].any()
    np.testing.assert_allclose(told[1], by_hand("clip", folder, "a red square", 24), atol=4e-3)
    assert np.abs(told[1]).max() > 0.1


@pytest.mark.parametrize("damage", ["missing", "no weights", "cut off"])
def test_encoders_that_cannot_be_loaded_are_one_line(prepared, tmp_path, damage):
    made = copy_of(prepared("captions")[0], tmp_path / "home")
    folder = tmp_path / "encoder"
    if damage != "missing":
        weights = clip(folder) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500]) if damage == "cut off" else weights.unlink()
    before = tiny.files(made.root)
    code, _, error = made.prepare(f"--config.data.text={folder}", "--config.data.length=24")
    assert code == 1
    assert error.startswith(f"error: cannot load the text encoder {folder}: ")
    assert tiny.files(made.root) == before


def test_data_and_embeddings_are_prepared_in_one_go(tmp_path):
    """In a process of its own, since TensorFlow and PyTorch's Triton crash Python together."""
    homes.home(tmp_path / "home", "captions")
    folder = t5(tmp_path / "encoder")
    script = (
        "import pathlib, sys; from tests.data import homes\n"
        "made = homes.Home(pathlib.Path(sys.argv[1]), {}, {})\n"
        "with homes.no_checksums():\n"
        "    code, said, error = made.prepare(f'--config.data.text={sys.argv[2]}')\n"
        "print(said, error)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "home", folder],
        cwd=tiny.REPOSITORY, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    assert "ready: coco_captions-2014-1.1.0-train (6 images, 2 held out)" in done.stdout
