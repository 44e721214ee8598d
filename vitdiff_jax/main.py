"""The command: python -m vitdiff_jax.main --config=FILE [--workdir=DIR] [--mode=MODE] [options].

Any value of the config can be given as --config.section.key=value. Exit codes: 0 finished, 1 the
run failed, 2 the command or config is wrong, 75 stopped by a signal after saving (run it again).
What a workdir holds is shown by its report.html, written at the end of a run or by --mode=report.
"""

import argparse
import importlib
import inspect
import os
import pathlib
import sys
import traceback
import typing
from collections.abc import Sequence
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
"""Modes that leave a report of the workdir at their end."""
FAILED, WRONG, STOPPED = 1, 2, 75


def parser() -> argparse.ArgumentParser:
    """The flags that every mode has."""
    p = argparse.ArgumentParser("vitdiff_jax.main", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--config", help="a config file, such as configs/digits.py or FILE:VARIANT")
    p.add_argument("--workdir", help="default: runs/<config>; may be gs://... or s3://...")
    p.add_argument("--mode", default="train", choices=MODES)
    p.add_argument("--coordinator", help="host:port of process 0, to run several processes")
    p.add_argument("--processes", type=int, help="how many processes there are")
    p.add_argument("--process", type=int, help="which of them this is, from 0")
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
    flags = [a for a in argv if a in ("-h", "--help")]
    base, _ = parser().parse_known_args([a for a in argv if a not in flags])
    if base.mode in ("plan", "report"):  # no chip is needed, nor may it be kept from its user
        os.environ["JAX_PLATFORMS"] = "cpu"
    # Only now: these imports take seconds, a wrong mode should not.
    from vitdiff_jax.data.pipeline import DataError
    from vitdiff_jax.experiment import config as config_lib
    from vitdiff_jax.inference.restoring import RestorationError
    from vitdiff_jax.inference.sampling import SamplingError
    from vitdiff_jax.interop.weights import WeightsError
    from vitdiff_jax.modes import report
    from vitdiff_jax.planning.aot import CompileError
    from vitdiff_jax.runtime import logs, parallel
    from vitdiff_jax.runtime.checkpoint import CheckpointError
    from vitdiff_jax.runtime.processes import Peers
    from vitdiff_jax.training.loop import STOPPED as STOPPED_RUN
    from vitdiff_jax.training.loop import TrainingError

    entry = importlib.import_module(MODES[base.mode]).main
    full = parser()
    kinds = add_mode_flags(full, entry)
    args, overrides = full.parse_known_args(argv)
    others = Peers()
    try:
        _check_processes(args, config_lib)
        parallel.start_distributed(args.coordinator, args.processes, args.process)
        others.join()
        workdir, config = _workdir_and_config(args, overrides, config_lib)
        logs.say(f"workdir {workdir}, compiled programs in {parallel.use_compilation_cache()}")
        given = {name: _value(getattr(args, name), kind) for name, kind in kinds.items()}
        result = entry(config, workdir, **given)
        if args.mode in REPORTED and result != STOPPED_RUN:  # which has no time to lose
            report.at_end(workdir)
        others.finish()
    except config_lib.ConfigError as error:
        return _fail(others, WRONG, error)
    except CheckpointError as error:
        others.expect_cause()  # a death while all save looks like a full disk
        return _fail(others, FAILED, error)
    except (
        CompileError, DataError, RestorationError, SamplingError, TrainingError, WeightsError,
    ) as error:  # fmt: skip
        return _fail(others, FAILED, error)
    except KeyboardInterrupt:  # training has a handler of its own
        return _fail(others, FAILED, "interrupted; the same command may be run again")
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else error
        return _fail(others, FAILED, text)
    except Exception as error:
        if others.alone:
            raise
        others.expect_cause()
        traceback.print_exc()
        return _fail(others, FAILED, f"{type(error).__name__}: {error}")
    return STOPPED if result == STOPPED_RUN else 0


def _check_processes(args, config_lib) -> None:
    """The flags of several processes go together."""
    given = [args.coordinator, args.processes, args.process]
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise config_lib.ConfigError("--coordinator, --processes, --process: give all or none")
        if not 0 <= args.process < args.processes:
            raise config_lib.ConfigError(
                f"--process: {args.process} is not in 0 to {args.processes - 1}"
            )


def _workdir_and_config(args, overrides, config_lib):
    """The workdir, and the config from the file given, else from the workdir, if one is needed."""
    if args.mode == "import":
        if args.config or overrides or args.workdir is None:
            raise config_lib.ConfigError(
                "--mode=import: takes --source, --family and --workdir; the config follows from the"
                " weights, and its values can be set by the modes that use it"
            )
        return paths.reached(args.workdir), None
    if args.mode == "report":
        if args.config or overrides or args.workdir is None:
            raise config_lib.ConfigError("--mode=report: takes --workdir alone")
        return paths.reached(args.workdir), None
    if args.config:
        stem = pathlib.Path(args.config.partition(":")[0]).stem
        variant = args.config.partition(":")[2]
        name = f"{stem}-{variant}" if variant else stem
        workdir = paths.reached(args.workdir or pathlib.Path("runs", name))
        return workdir, config_lib.load(args.config, overrides)
    if args.workdir is None:
        raise config_lib.ConfigError("--config or --workdir: at least one is needed")
    workdir = paths.reached(args.workdir)
    return workdir, config_lib.read(workdir / "config.json", overrides)


def _value(given: Any, kind: type) -> Any:
    """A flag's value; files in a bucket are copied, since modes read them on this machine."""
    return paths.local(given) if kind is pathlib.Path and given is not None else given


def _fail(others, code: int, error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    others.fail(code, error)
    return code


def ask_for_huge_pages() -> None:
    """Start this process again with glibc asking Linux for huge pages, once.

    XLA on a CPU takes its memory anew at each step; page faults of 4 KiB were a fifth of the
    processor time of a DiT-S-sized step (2 cores, 2.4 s -> 1.9 s). glibc reads this at start only.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    ask_for_huge_pages()
    sys.exit(main())
