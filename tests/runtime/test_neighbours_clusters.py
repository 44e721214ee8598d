"""A single process that inherits some of a cluster's variables: one line, and no long wait."""

import pytest

from vitdiff_jax.runtime import parallel
from vitdiff_jax.runtime.processes import StartError

SLURM = dict(SLURM_JOB_ID="7", SLURM_PROCID="1", SLURM_LOCALID="0", SLURM_STEP_NODELIST="node[1-2]")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", *SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parallel.rendezvous, "meet", None)  # nothing here may come this far


@pytest.mark.parametrize(
    "variables",
    [
        dict(SLURM_NTASKS="2"),
        dict(SLURM_NTASKS="2", SLURM_JOB_ID="7", SLURM_PROCID="0"),  # sbatch without srun
        dict(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0"),  # Open MPI 5 tells JAX nothing
    ],
)
def test_a_process_that_runs_alone_says_so(monkeypatch, capsys, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    parallel.start_distributed()
    said = capsys.readouterr().out
    assert said.startswith(f"warning: {next(iter(variables))}=2, but no other variable says")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "variables",
    [
        SLURM | dict(SLURM_NTASKS="4(x2)"),
        SLURM | dict(SLURM_NTASKS="2", SLURM_JOB_ID="7.batch"),
        SLURM | dict(SLURM_NTASKS="2", SLURM_PROCID=""),
        dict(OMPI_COMM_WORLD_SIZE="2", OMPI_MCA_orte_hnp_uri="garbage"),
        dict(OMPI_COMM_WORLD_SIZE="2", OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.0.0.1:34911"),
    ],
)
def test_variables_that_do_not_fit_together_are_one_line(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=r"are missing or damaged .*; unset \w+ for a single") as e:
        parallel.start_distributed()
    assert "\n" not in str(e.value)
