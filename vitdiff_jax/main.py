"""The command: python -m vitdiff_jax.main --config=FILE [--workdir=DIR] [--mode=MODE] [options].

Any config value can be overridden with --config.section.key=value. --workdir=pretrained:NAME is a
model of the package. Exit codes: 0 finished, 1 the run failed, 2 the command line or the config is
invalid, 75 stopped by a signal after saving a checkpoint (the same command resumes). The workdir's
report.html summarises a run; it is written at the end of each run and by --mode=report.
"""

import argparse
import contextlib
import difflib
import importlib
import inspect
import itertools
import os
import pathlib
import re
import sys
import traceback
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vitdiff_jax.runtime import paths

MODES = {  # mode -> the module whose `main` runs it; its keyword arguments are the mode's flags
    "train": "vitdiff_jax.training.loop",
    "sample": "vitdiff_jax.modes.sample",
    "restore": "vitdiff_jax.modes.restore",
    "evaluate": "vitdiff_jax.modes.evaluate",
    "statistics": "vitdiff_jax.modes.statistics",
    "prepare": "vitdiff_jax.modes.prepare",
    "plan": "vitdiff_jax.modes.plan",
    "import": "vitdiff_jax.modes.import_",
    "export": "vitdiff_jax.modes.export",
    "report": "vitdiff_jax.modes.report",
}
REPORTED = ("train", "sample", "restore", "evaluate", "plan")
"""Modes that write the workdir's report when they finish."""
ALONE = {"evaluate": "evaluation", "import": ""}
"""Modes of which one at a time runs in a workdir, and the folder of its lock; `train` has its own.

Others may run beside any mode: each of their files is written whole, under its final name.
"""
NEED_MODEL, TRY = ("sample", "evaluate", "export"), "--workdir=pretrained:digits"
FAILED, INVALID, STOPPED = 1, 2, 75


class UsageError(Exception):
    """A wrong command line; the message is one line that names the argument."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit."""

    def error(self, message: str) -> typing.NoReturn:
        """In the words of this command."""
        text = message.removeprefix("argument ")
        text = re.sub(r"invalid int value: (.*)", r"\1 is not an integer", text)
        text = re.sub(r"invalid float value: (.*)", r"\1 is not a number", text)
        text = re.sub(r"ignored explicit argument (.*)", r"takes no value; leave out =\1", text)
        raise UsageError(" ".join(text.split()))


def parser() -> argparse.ArgumentParser:
    """The flags common to all modes."""
    p = Parser("vitdiff_jax.main", description=__doc__, allow_abbrev=False,
               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--config", help="config file, such as configs/digits.py or FILE:VARIANT")
    p.add_argument("--workdir", help="default: runs/<config>; may be gs://... or pretrained:NAME")
    p.add_argument("--mode", default="train", help=f"default: train; {', '.join(MODES)}")
    p.add_argument("--coordinator", help="host:port of process 0, for multi-process runs")
    p.add_argument("--processes", type=int, help="number of processes")
    p.add_argument("--process", type=int, help="index of this process, from 0")
    return p


def add_mode_flags(p: argparse.ArgumentParser, entry) -> dict[str, type]:
    """Add the keyword arguments of a mode's `main` as flags; returns {name: type}."""
    found, hints = {}, typing.get_type_hints(entry)
    for name, parameter in inspect.signature(entry).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kinds = [
                k for k in typing.get_args(hints[name]) or [hints[name]] if k is not type(None)
            ]
            read = str if kinds[0] is pathlib.Path else kinds[0]  # see `_value`
            how: dict[str, Any] = {"type": read} if kinds != [bool] else {"action": "store_true"}
            p.add_argument(f"--{name}", default=parameter.default, **how)
            found[name] = kinds[0]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _main(argv)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return INVALID


def _main(argv: list[str]) -> int:
    args, overrides = _parsed(argv)
    from vitdiff_jax.experiment.config import ConfigError
    from vitdiff_jax.runtime.checkpoint import CheckpointError
    from vitdiff_jax.runtime.processes import Peers

    peers = Peers()
    try:
        return _run(args, overrides, peers)
    except ConfigError as error:
        return _fail(peers, INVALID, error)
    except CheckpointError as error:
        peers.await_cause()  # a peer that dies during a save looks like a full disk
        return _fail(peers, FAILED, error)
    except _failures() as error:
        return _fail(peers, FAILED, error)
    except KeyboardInterrupt:  # training installs its own handler
        return _fail(peers, FAILED, "interrupted; run the same command to continue")
    except OSError as error:
        file = error.filename2 or error.filename  # of a renaming, the name that was meant
        text = f"{file}: {error.strerror}" if file else error
        return _fail(peers, FAILED, text)
    except Exception as error:
        if peers.alone:
            raise
        peers.await_cause()
        traceback.print_exc()
        return _fail(peers, FAILED, f"{type(error).__name__}: {error}")


def _parsed(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, those of the mode among them, and the config overrides; or UsageError."""
    flags = [a for a in argv if a in ("-h", "--help")]
    base, _ = parser().parse_known_args([a for a in argv if a not in flags])
    if base.mode not in MODES:
        raise UsageError(f"--mode: {base.mode!r} is not one of {', '.join(MODES)}"
                         f"{_did_you_mean(base.mode, MODES, '--mode=')}")  # fmt: skip
    if base.mode in ("plan", "report"):  # need no accelerator, and must not lock one that is in use
        os.environ["JAX_PLATFORMS"] = "cpu"
    full = parser()
    # Imported late: these imports take seconds, and an unknown mode should fail at once.
    add_mode_flags(full, importlib.import_module(MODES[base.mode]).main)
    args, rest = full.parse_known_args(argv)
    return args, list(_overrides(rest, args))


def _run(args: argparse.Namespace, overrides: list[str], peers: Any) -> int:
    """Run the mode, together with the other processes; returns the exit code."""
    from vitdiff_jax.experiment import config as config_lib
    from vitdiff_jax.experiment import rules, usage
    from vitdiff_jax.inference import pretrained
    from vitdiff_jax.modes import report
    from vitdiff_jax.runtime import logs, parallel
    from vitdiff_jax.training.loop import STOPPED as STOPPED_RUN

    rules.check_flags(vars(args))
    _check_processes(args, config_lib)
    parallel.start_distributed(args.coordinator, args.processes, args.process)
    peers.join()
    shipped = pretrained.of_command(args.mode, args.config, args.workdir)
    workdir, config = _workdir_and_config(args, overrides, config_lib, shipped)
    logs.say(f"workdir {workdir}, compilation cache {parallel.use_compilation_cache()}")
    entry = importlib.import_module(MODES[args.mode]).main
    kinds = add_mode_flags(parser(), entry)
    given = {name: _value(getattr(args, name), kind) for name, kind in kinds.items()}
    if line := usage.unused(args.mode, overrides, given):
        logs.say(line)
    for line in usage.without_effect(args.mode, config, overrides) if config else ():
        logs.say(line)
    results = pretrained.opened(shipped) if shipped else contextlib.nullcontext()
    with results, _alone(args.mode, workdir):
        result = entry(config, workdir, **given)
    if args.mode in REPORTED and result != STOPPED_RUN:  # a preempted run must exit quickly
        report.at_end(workdir)
    peers.finish()
    return STOPPED if result == STOPPED_RUN else 0


def _failures() -> tuple[type[Exception], ...]:
    """The errors of which the message is all that the user needs."""
    from vitdiff_jax.data.pipeline import DataError
    from vitdiff_jax.inference.restoring import RestorationError
    from vitdiff_jax.inference.sampling import SamplingError
    from vitdiff_jax.interop.weights import WeightsError
    from vitdiff_jax.planning.aot import CompileError
    from vitdiff_jax.runtime.lock import LockError
    from vitdiff_jax.runtime.processes import StartError
    from vitdiff_jax.training.loop import TrainingError

    return (
        CompileError, DataError, LockError, RestorationError, SamplingError, StartError,
        TrainingError, WeightsError,
    )  # fmt: skip


@contextlib.contextmanager
def _alone(mode: str, workdir: Any) -> Iterator[None]:
    """Hold the lock of a mode of `ALONE`, in process 0."""
    import jax

    from vitdiff_jax.runtime import lock, logs, parallel

    if mode not in ALONE:
        yield
        return
    folder, first = workdir / ALONE[mode] if ALONE[mode] else workdir, jax.process_index() == 0
    dead = lock.dead_owner(folder, logs.say) if first else None
    parallel.wait_for_first()
    with lock.hold(folder, dead) if first else contextlib.nullcontext():
        yield


def _overrides(rest: list[str], args: argparse.Namespace) -> Iterator[str]:
    """The config overrides among the arguments that are no flags; UsageError for anything else."""
    for name, value in vars(args).items():
        if value == "" and name in ("config", "workdir", "input", "mask", "samples", "source"):
            raise UsageError(f"--{name}: is empty")
    left = iter(rest)
    for argument in left:
        name, equals, _ = argument.partition("=")
        if "." not in name or name.endswith(".py") or ".py:" in name:
            raise UsageError(_meant(argument, args))
        if argument.startswith("-config."):
            raise UsageError(f"{argument}: write -{argument}")
        yield argument
        if argument.startswith("--") and not equals:
            yield from itertools.islice(left, 1)


def _meant(argument: str, args: argparse.Namespace) -> str:
    """What was probably meant by an argument that is neither a flag nor an override."""
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if not argument.startswith("-"):
        if name in MODES:
            return f"{argument}: write --mode={argument}"
        if ".py" in argument:
            return f"{argument}: write --config={argument}"
        near = _did_you_mean(argument, MODES, "--mode=")
        return f"{argument}: not understood; flags are written as --name=value{near}"
    homes: dict[str, list[str]] = {}
    for mode, module in MODES.items():
        signature = inspect.signature(importlib.import_module(module).main)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                homes.setdefault(parameter.name, []).append(mode)
    if name in vars(args):
        return f"{argument}: write --{name}"
    if name in homes:
        return f"--{name}: belongs to --mode={', '.join(homes[name])}, not to --mode={args.mode}"
    near = _did_you_mean(name, [*vars(args), *homes], "--")
    return f"{argument.partition('=')[0]}: no such flag{near}"


def _did_you_mean(given: str, known: Iterable[str], prefix: str) -> str:
    near = difflib.get_close_matches(given, list(known), 1, 0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _check_processes(args, config_lib) -> None:
    """The three flags of a multi-process run go together."""
    given = [args.coordinator, args.processes, args.process]
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise config_lib.ConfigError("--coordinator, --processes, --process: set all or none")
        if not 0 <= args.process < args.processes:
            raise config_lib.ConfigError(
                f"--process: {args.process} is not in 0 to {args.processes - 1}"
            )
        host, _, port = args.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise config_lib.ConfigError(
                f"--coordinator: {args.coordinator!r} is not of the form host:port"
            )


def _workdir_and_config(args, overrides, config_lib, shipped):
    """The workdir and, if the mode needs one, the config: from --config, else from the model's.

    The workdir of a model of the package is that of its results.
    """
    given = shipped.home if shipped else args.workdir
    if args.mode == "import":
        if args.config or overrides or args.workdir is None:
            raise config_lib.ConfigError(
                "--mode=import: takes --source, --family and --workdir only; the config is derived"
                " from the weights; override its values in the modes that use the model"
            )
        return paths.resolve(given), None
    if args.mode == "report":
        if args.config or overrides or args.workdir is None:
            raise config_lib.ConfigError("--mode=report: takes --workdir only")
        return paths.resolve(given), None
    if args.config:
        stem = pathlib.Path(args.config.partition(":")[0]).stem
        variant = args.config.partition(":")[2]
        name = f"{stem}-{variant}" if variant else stem
        workdir = paths.resolve(given or pathlib.Path("runs", name))
        return workdir, config_lib.load(args.config, overrides)
    if shipped:
        return shipped.home, shipped.config(overrides)
    if args.workdir is None:
        hint = f"; to try a trained model: {TRY}" if args.mode in NEED_MODEL else ""
        raise config_lib.ConfigError(f"--config or --workdir: at least one is required{hint}")
    workdir = paths.resolve(args.workdir)
    return workdir, config_lib.read(workdir / "config.json", overrides)


def _value(given: Any, kind: type) -> Any:
    """The value of a flag; files in a bucket are copied to this machine, where modes read them."""
    return paths.local_copy(given) if kind is pathlib.Path and given is not None else given


def _fail(peers, code: int, error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    peers.fail(code, error)
    return code


def request_huge_pages() -> None:
    """Re-execute this process once, with glibc's malloc backed by transparent huge pages.

    XLA's CPU backend allocates its buffers anew at each step; 4 KiB page faults took a fifth of the
    CPU time of a DiT-S-sized step (2 cores, 2.4 s -> 1.9 s). glibc reads the setting only at start.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    request_huge_pages()
    sys.exit(main())
