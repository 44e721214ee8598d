"""Text embeddings of a frozen `transformers` encoder, computed once and stored beside the data.

A record holds the vectors of all texts of an image as float16, without padding.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vitdiff_jax.data import marks, records
from vitdiff_jax.data.pipeline import DataError


@functools.lru_cache(1)
def load_encoder(name: str) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """A function texts -> float16 [length, W] for each, special tokens included.

    name: a folder, or a model on the Hugging Face Hub: the text encoders of CLIP and T5, or another
    encoder. Only safetensors are read, and no code that comes with a model is run.
    """
    if "tensorflow" in sys.modules:  # after building a data set
        sys.modules.setdefault("triton", None)  # type: ignore  # both in one process crash Python
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError('text encoders need: pip install "vitdiff_jax[text]"') from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        config = transformers.AutoConfig.from_pretrained(name)
        kind = {
            "clip": transformers.CLIPTextModel, "t5": transformers.T5EncoderModel,
        }.get(config.model_type.removesuffix("_text_model"), transformers.AutoModel)  # fmt: skip
        model = kind.from_pretrained(name, use_safetensors=True).eval()
    except Exception as error:  # `transformers` raises whatever its parts raise
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"cannot load the text encoder {name}: {reason}") from error
    longest = min(tokenizer.model_max_length, 4096)

    def encode(texts):
        batch = tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        with torch.no_grad():
            out = model(**batch).last_hidden_state
        valid = batch["attention_mask"].bool()  # the side of the padding depends on the tokenizer
        return [row[mask].to(torch.float16).numpy() for row, mask in zip(out, valid)]

    return encode


def padded(vectors: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Vectors [n, W] as float16 [length, W], truncated or padded with 0."""
    out = np.zeros((about["length"], about["width"]), np.float16)
    out[: len(vectors)] = vectors[: about["length"]]
    return out


def encode(texts: Sequence[str], about: dict[str, Any]) -> np.ndarray:
    """Texts as float16 [N, length, W] by the encoder of a data set; "" is the null text."""
    out = np.zeros((len(texts), about["length"], about["width"]), np.float16)
    wanted = sorted(set(texts) - {""})
    if wanted:
        found = dict(zip(wanted, load_encoder(about["encoder"])(wanted)))
        for i, item in enumerate(texts):
            if item:
                out[i] = padded(found[item], about)
    return out


class Store:
    """A folder with embeddings: `embeddings.array_record` and `embeddings.json`."""

    def __init__(self, folder: pathlib.Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.folder = folder
        try:
            self.about = json.loads((folder / "embeddings.json").read_text())
            self.mark = self.about.pop("mark", None)
            self._source = ArrayRecordDataSource(str(folder / "embeddings.array_record"))
            self._width = int(self.about["width"])
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: damaged ({error}); delete it and prepare again") from error

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """The vectors [n, W] of each text of image `index`."""
        try:
            record = records.read_record(self._source, index)
        except OSError as error:
            raise DataError(f"{self.folder}: {error}; delete it and prepare again") from error
        count = int.from_bytes(record[:4], "little")
        ends = np.cumsum(np.frombuffer(record, np.int32, count, 4))
        vectors = np.frombuffer(record, np.float16, -1, 4 + 4 * count).reshape(-1, self._width)
        return np.split(vectors, ends[:-1])


def mark_of(encoder: str) -> str:
    """The mark of a text encoder: of the files of a folder, else its name on the Hub."""
    folder = pathlib.Path(encoder).expanduser()
    return marks.of_folder(folder) if folder.is_dir() else encoder


def write(folder: pathlib.Path, encoder: str, captions: Iterable[list[str]], mark: str) -> None:
    """Write the embeddings of each image's captions to a folder, atomically.

    mark: of the captions and the encoder.
    """
    run = load_encoder(encoder)
    files = ("embeddings.array_record", "embeddings.json")
    with records.atomic_folder(folder, *files, "group_size:1") as (write_record, about):
        about.update(encoder=encoder, mark=mark, width=0, length=0)
        for texts in captions:
            found = run(texts)
            lengths = np.array([len(vectors) for vectors in found], np.int32)
            longest = max(about["length"], int(lengths.max()))
            about.update(width=found[0].shape[1], length=longest)
            head = len(found).to_bytes(4, "little") + lengths.tobytes()
            write_record(head + np.concatenate(found).tobytes())
