"""Orbax checkpoints: asynchronous, atomic and checksummed.

Orbax does not detect corrupt files, so the SHA-256 of every file is written into a checkpoint
before the rename that makes it visible: a checkpoint is either complete or does not exist. In a
bucket, where nothing can be renamed, a file written last has this role. Process 0 verifies the
checksums before any process reads, since a failure on one process would leave the others waiting.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as keeping

from vitdiff_jax.runtime import bucket, paths

SUMS = "checksums.json"
UNHASHED = (SUMS, "_CHECKPOINT_METADATA", "commit_success.txt")  # written after the checksums
NOTHING, ALL_DAMAGED = -1, -2


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or restored; the message is one line."""


class Checkpoints:
    """The checkpoints of one run: items `state` (without EMAs), `ema` and `meta` per step.

    keep: number of latest checkpoints to keep; keep_every: also keep those at multiples (0: none).
    read_only: do not touch what a concurrent training run is writing.
    report: called with one line per damaged checkpoint.
    """

    def __init__(
        self,
        directory: epath.Path,
        *,
        keep: int = 1,
        keep_every: int = 0,
        read_only: bool = False,
        report: Callable[[str], None] = print,
    ):
        self.home = directory if directory.is_absolute() else directory.absolute()
        self.directory, self._staging = self.home, None
        if bucket.needed(self.home):
            if jax.process_count() > 1:
                raise CheckpointError(
                    f"{self.home}: several processes can save checkpoints only in a folder that all"
                    " of them see, or in gs://"
                )
            self._staging = bucket.Staging(self.home, SUMS)
            self.directory = self._staging.folder
        self.keep, self.keep_every = keep, keep_every
        self.report, self._saving = report, 0
        policies: list[keeping.PreservationPolicy] = [keeping.LatestN(keep)]
        if keep_every:
            policies.append(keeping.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keeping.AnyPreservationPolicy(policies),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(),
            "ema": ocp.PyTreeCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        self.manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Save a `TrainState` asynchronously; returns once its arrays may be donated."""
        if step in self.steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state.replace(ema={})),
            ema=ocp.args.PyTreeSave(state.ema),
            meta=ocp.args.JsonSave(meta),
        )
        with self._write_errors():  # also those of the previous save, which Orbax waits for
            self.manager.wait_until_finished()
            self._saving = step
            self.manager.save(step, args=items, force=True)

    def steps(self) -> list[int]:
        """Steps of all checkpoints, including damaged ones."""
        return sorted(self._staging.steps() if self._staging else self.manager.all_steps())

    def newest(self, set_aside: bool = False) -> int | None:
        """The latest step with intact files; None if nothing has been saved yet.

        set_aside: rename newer, damaged checkpoints to `<step>.damaged`, so that their steps can be
        saved again. Raises CheckpointError, and renames nothing, if all are damaged: whether to
        start over is for the user to decide.
        """
        found = NOTHING
        if jax.process_index() == 0:
            damaged = []
            for step in reversed(self.steps()):
                damage = self._damage(step)
                if damage is None:
                    found = step
                    break
                self.report(f"checkpoint {step} is damaged ({damage})")
                damaged.append(step)
            if damaged and found == NOTHING:
                found = ALL_DAMAGED
            elif set_aside:
                self._set_aside(damaged)
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if found == ALL_DAMAGED:
            raise CheckpointError(
                f"all checkpoints in {self.home} are damaged; move them away to start over"
            )
        if set_aside or self._staging:
            self.manager.reload()
        return None if found == NOTHING else found

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints after `step`, which are damaged, as `newest` does."""
        if self.steps()[-1] > step:
            if jax.process_index() == 0:
                self._set_aside([later for later in self.steps() if later > step])
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
            self.manager.reload()

    def undamaged(self) -> list[int]:
        """All steps with intact files; the others are reported."""
        wrong = np.zeros(len(steps := self.steps()), bool)
        if jax.process_index() == 0:
            for i, step in enumerate(steps):
                if damage := self._damage(step):
                    self.report(f"checkpoint {step} is damaged ({damage})")
                    wrong[i] = True
        wrong = multihost_utils.broadcast_one_to_all(wrong)
        return [step for step, bad in zip(steps, wrong) if not bad]

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            path = self.home / str(step)
            places = (path.with_name(f"{step}.damaged{n}") for n in ("", *range(2, 1000)))
            paths.move(path, next(place for place in places if not place.exists()))

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON item of a checkpoint."""
        with self._readable(step):
            items = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return self.manager.restore(step, args=items)["meta"]

    def restore(self, step: int, target: Any) -> Any:
        """The `TrainState` of a step; target: the same tree of ShapeDtypeStructs with shardings."""
        self._same_arrays(step, "state", target.replace(ema={}))
        self._same_arrays(step, "ema", target.ema)
        items = ocp.args.Composite(
            state=_restore_args(target.replace(ema={})), ema=_restore_args(target.ema)
        )
        with self._readable(step):
            restored = self.manager.restore(step, args=items)
        return restored["state"].replace(ema=restored["ema"])

    def restore_emas(self, step: int, names: Sequence[str], target: Any) -> dict[str, Any]:
        """The parameters of the named EMAs of a step; target: of each of them, as in `restore`."""
        with self._readable(step):
            stored = self.manager.item_metadata(step)["ema"].tree
        for name in names:
            if name not in stored:
                raise CheckpointError(
                    f"checkpoint {step} has no EMA {name}, only {', '.join(stored)}"
                )
        targets = dict.fromkeys(names, target)
        self._same_arrays(step, "ema", targets, only=names)
        items = ocp.args.Composite(ema=_restore_args(targets))
        with self._readable(step):
            return self.manager.restore(step, args=items)["ema"]

    def close(self) -> None:
        """Wait for pending saves, then close."""
        with self._write_errors():
            self.manager.wait_until_finished()
        self.manager.close()

    def _same_arrays(
        self, step: int, item: str, target: Any, only: Sequence[str] | None = None
    ) -> None:
        """Raise CheckpointError if the stored arrays do not match the target."""
        with self._readable(step):
            tree = self.manager.item_metadata(step)[item].tree
        stored = _shapes({name: tree[name] for name in only} if only else tree)
        wanted = _shapes(target)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"checkpoint {step} in {self.home} is of another model: {name} is"
                    f" {stored.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
                )

    @contextlib.contextmanager
    def _readable(self, step: int):
        """Turn Orbax's various errors into a CheckpointError."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # Orbax raises ValueError, KeyError, JSONDecodeError, Exception
            line = " ".join(str(error).split())[:200]
            raise CheckpointError(f"checkpoint {step} in {self.home}: {line}") from error

    @contextlib.contextmanager
    def _write_errors(self):
        """Turn write errors, such as one per array when the disk is full, into one line."""
        try:
            yield
        except Exception as error:  # tensorstore raises ValueError for files, Orbax OSError
            line = " ".join(str(error).split())[-200:]
            raise CheckpointError(
                f"cannot write to {self.home}: {line}; free some space, then run the same command"
                " to resume from the last checkpoint"
            ) from error

    def _write_checksums(self) -> None:
        """Called by Orbax when all files of a checkpoint are written but it is not yet visible."""
        if jax.process_index() == 0:
            hidden = [a for a in self.directory.iterdir() if ".orbax-checkpoint-tmp" in a.name]
            for path in hidden or [self.directory / str(self._saving)]:  # in a bucket: final name
                (path / SUMS).write_text(json.dumps(_sums(path), indent=1))
                if self._staging:
                    self._staging.upload(self._saving, path)
                    self._staging.prune(self._preserved)

    def _preserved(self, steps: list[int]) -> set[int]:
        """The preservation policies above, for steps in a bucket, which Orbax does not see."""
        multiples = {step for step in steps if self.keep_every and step % self.keep_every == 0}
        return multiples | set(steps[-self.keep :])

    def _damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint; None if they are intact."""
        path = self.directory / str(step)
        if self._staging:
            with self._readable(step):  # a failed download is not damage
                self._staging.download(step)
        try:
            wanted = json.loads((path / SUMS).read_text())
            found = _sums(path)
            wrong = [name for name, digest in wanted.items() if found.get(name) != digest]
        except (OSError, ValueError, AttributeError) as error:
            return f"{SUMS}: {error}"
        if not wrong:
            return None
        return f"checksum mismatch in {len(wrong)} of {len(wanted)} files, such as {wrong[0]}"


def _restore_args(target: Any) -> ocp.args.PyTreeRestore:
    """Arguments to restore (part of) the stored tree with the target's dtypes and shardings."""
    return ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )


def _sums(directory: epath.Path) -> dict[str, str]:
    """SHA-256 of every file in a directory, recursively."""
    sums = {}
    for path in sorted(_files(directory)):
        if not (path.parent == directory and path.name in UNHASHED):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore
            sums[str(path.relative_to(directory))] = digest
    return sums


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array of a tree of dicts, dataclasses and named tuples."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): (
            tuple(leaf.shape)
        )
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
