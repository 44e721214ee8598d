"""Tests run on the CPU, keep what they compile for the next run, and come in tiers.

LLVM does not optimise what is compiled: that takes longer than to run it, a quarter more for all
tests. Plain `pytest` leaves out what is marked `slow`, and says so at its end. Each of its tests
measures itself: with --limit=SECONDS (in CI) one whose setup, call or teardown takes longer fails
the run.
"""

import os
import pathlib

CACHE = pathlib.Path.home() / ".cache" / "vitdiff_jax_tests"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before the first import of jax
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # One device, whichever test starts JAX: training would make two of a CPU.
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)

import jax  # noqa: E402
import pytest  # noqa: E402

DESELECTED, OVER = pytest.StashKey[int](), pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--limit", type=float, help="seconds that a test's setup or call may take")


def pytest_configure(config):
    config.stash[DESELECTED], config.stash[OVER] = 0, {}


def pytest_deselected(items):
    if items:
        items[0].config.stash[DESELECTED] += sum(
            bool({"slow", "extra"} & set(item.keywords)) for item in items
        )


def pytest_sessionfinish(session):
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # this is a worker of xdist: all of them collect the same
        output["deselected"] = session.config.stash[DESELECTED]
    elif session.config.stash[OVER]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    found = getattr(node, "workeroutput", {}).get("deselected", 0)
    node.config.stash[DESELECTED] = max(found, node.config.stash[DESELECTED])


class Limit:
    """Remembers which tests take too long. A plugin, for the reports know no config."""

    def __init__(self, config):
        self.limit, self.over = config.getoption("--limit"), config.stash[OVER]

    def pytest_runtest_logreport(self, report):
        if self.limit and report.duration > self.limit:
            self.over[f"{report.nodeid} ({report.when})"] = report.duration


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    session.config.pluginmanager.register(Limit(session.config))


def pytest_terminal_summary(terminalreporter, config):
    for name, seconds in config.stash[OVER].items():
        terminalreporter.write_line(
            f"TOO SLOW: {name}: {seconds:.1f} s; make it faster or mark it slow", red=True
        )
    if count := config.stash[DESELECTED]:
        terminalreporter.write_line(
            f'{count} slow tests were not run; all tests: pytest -m "slow or not slow"'
        )


@pytest.fixture
def x64():
    """Run a test in float64, where formulas agree to 1e-9 or are different formulas."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def plain():
    """The model "plain", see `tiny.plain_network`."""
    from tests import tiny

    with tiny.plain_network():
        yield


@pytest.fixture(scope="module")
def no_plots():
    """Every command ends with a report, and its plots take half a second."""
    from vitdiff_jax.reporting import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda *given: "<svg></svg>")
        yield


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """Hardly any program serves two files; all together take 6 GB in each worker, else 2.5."""
    yield
    jax.clear_caches()
