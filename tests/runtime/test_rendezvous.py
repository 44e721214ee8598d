"""Processes that wait for each other, here threads: together they start, or each says why not."""

import socket
import threading
import time
from unittest import mock

import pytest
from jax._src import distributed

from vitdiff_jax.runtime import parallel, rendezvous
from vitdiff_jax.runtime.processes import StartError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.2)
    monkeypatch.setattr(rendezvous, "GIVE_UP", 0.6)


@pytest.fixture
def address():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    return f"localhost:{port}"


def start(address, *members, apart=0.0):
    """{process: None or the message of its StartError} of threads (process, count)."""
    found = {}

    def run(number, process, count):
        time.sleep(apart * number)
        try:
            rendezvous.meet(address, count, process, "do this")
            found[number] = None
        except StartError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=run, args=(i, *member)) for i, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_that_come_start_in_any_order_and_the_port_is_free(address, order, capsys):
    began = time.monotonic()
    members = [(process, 3) for process in order]
    assert start(address, *members, apart=0.05) == dict.fromkeys(range(3))
    assert time.monotonic() - began < 0.5
    socket.create_server(("", int(address.rpartition(":")[2]))).close()
    assert capsys.readouterr().out == ""


def test_who_is_missing_is_said_and_waiting_ends(address, capsys):
    found = start(address, (0, 4), (2, 4))
    text = "processes 1, 3 of 4 did not start within 0.6 s"
    assert found == {0: f"{text}: do this", 1: text}
    port = address.rpartition(":")[2]
    out = capsys.readouterr().out
    assert f"waiting for processes 1, 3 of 4 to call process 0 at port {port}, up to" in out


def test_no_process_0(address, capsys):
    (found,) = start(address, (1, 2)).values()
    assert found.startswith(f"no process 0 at {address} within 0.6 s (")
    assert found.endswith("refused): do this")
    assert f"waiting for process 0 at {address} (" in capsys.readouterr().out


def test_counts_that_differ_end_both(address):
    found = start(address, (0, 2), (1, 3))
    assert "process 1 was started as one of 3, process 0 as one of 2" in found[0]
    assert "process 1 was started as one of 3, process 0 as one of 2" in found[1]


def test_one_process_twice(address):
    found = start(address, (0, 3), (1, 3), (1, 3))
    assert all("two processes were started as process 1 of 3" in text for text in found.values())


def test_a_process_that_died_may_come_again(address):
    host, port = address.split(":")
    found = {}

    def host_process():
        try:
            found[0] = rendezvous.meet(address, 3, 0, "do this")
        except StartError as error:
            found[0] = error

    server = threading.Thread(target=host_process)
    server.start()
    time.sleep(0.1)
    with socket.create_connection((host, int(port))) as dead:
        dead.sendall(b"vitdiff_jax 1 3\n")
        time.sleep(0.05)
    assert start(address, (1, 3), (2, 3)) == {0: None, 1: None}
    server.join()
    assert found == {0: None}


def test_strangers_are_ignored(address):
    """Such as a port scanner, which sends nothing or something else."""
    host, port = address.split(":")

    def scan():
        for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n"):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(text)

    server = threading.Thread(target=lambda: found.update(start(address, (0, 2))))
    found = {}
    server.start()
    time.sleep(0.1)
    scan()
    assert start(address, (1, 2)) == {0: None}
    server.join()
    assert found == {0: None}


def test_something_else_at_the_address(address):
    with socket.create_server(("", int(address.rpartition(":")[2]))) as server:

        def answer():
            caller, _ = server.accept()
            caller.sendall(b"220 mail.example.org\r\n")
            caller.close()

        thread = threading.Thread(target=answer)
        thread.start()
        (found,) = start(address, (1, 2)).values()
        thread.join()
        assert found == f"what answers at {address} is not process 0: use another port"
        (found,) = start(address, (0, 2)).values()
        assert found.startswith("process 0 cannot use port ")


def test_one_process_of_an_interactive_slurm_job(address, monkeypatch):
    """srun would have started two."""
    port = address.rpartition(":")[2]
    for name, value in dict(
        JOB_ID=7, STEP_NODELIST="localhost", NTASKS=2, PROCID=0, LOCALID=0
    ).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("JAX_COORDINATOR_PORT", port)
    with pytest.raises(StartError) as caught:
        parallel.start_distributed()
    assert str(caught.value) == (
        "process 1 of 2 did not start within 0.6 s: SLURM_NTASKS=2: start all of them, with srun or"
        " mpirun, or unset SLURM_NTASKS for a single process"
    )


@pytest.mark.parametrize(
    ("given", "visible"), [({}, "1"), ({"JAX_LOCAL_DEVICE_IDS": "0,1"}, "0,1")]
)
def test_a_process_of_slurm_has_the_gpu_of_its_number_on_the_node(monkeypatch, given, visible):
    """Process 3 of two nodes is the second of its node. Of what JAX connects nothing is there."""
    slurm = dict(JOB_ID=7, STEP_NODELIST="node[1-2]", NTASKS=4, PROCID=3, LOCALID=1)
    for name, value in ({f"SLURM_{key}": str(v) for key, v in slurm.items()} | given).items():
        monkeypatch.setenv(name, value)
    met, state, found = [], distributed.State(), {}
    monkeypatch.setattr(rendezvous, "meet", lambda *given: met.append(given[:3]))
    monkeypatch.setattr(state, "initialize_preemption_sync_manager", lambda: None)
    monkeypatch.setattr(distributed, "global_state", state)
    monkeypatch.setattr(distributed._jax, "get_distributed_runtime_client", mock.Mock())
    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(distributed.config, "update", found.__setitem__)
    parallel.start_distributed()
    assert met == [(f"node1:{7 + 61440}", 4, 3)]
    assert (state.process_id, state.num_processes) == (3, 4)
    assert found["jax_cuda_visible_devices"] == found["jax_rocm_visible_devices"] == visible


def test_a_single_process_does_not_wait(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    parallel.start_distributed()
    rendezvous.meet("localhost:1", 1, 0, "")
