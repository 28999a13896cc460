"""Job files and their submission, through submitit's executor.

A job's record is the folder of its array, not a pickle: it does not need its launcher to survive.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import submitit

from harness.distributed.rendezvous import job_port
from model.config_validation import ConfigError
from sweeps.backends.job_array import JOBS, TASK, JobArray, array_folder, read_submitted
from sweeps.backends.registry import JOB_BACKEND
from sweeps.backends.slurm.states import STARTED
from sweeps.config.cluster import ClusterConfig, Resources
from sweeps.config.shell import quote


class Executor(submitit.SlurmExecutor):
    """submitit's SLURM executor, submitting a command instead of a pickle."""

    def __init__(self, folder: Path, command: str) -> None:
        super().__init__(folder=folder)
        self._command = command

    @classmethod
    def name(cls) -> str:
        return "slurm"

    @classmethod
    def affinity(cls) -> int:
        """Return that SLURM is here: job files are shown on machines without it too."""
        return 2

    @property
    def text(self) -> str:
        """Return the job file."""
        return str(self._make_submission_file_text(self._command, ""))

    def submit_array(self) -> str:
        """Submit and return the id of the array."""
        return str(self._submit_command(self._command).job_id)


def executor_for(config: ClusterConfig, sweep: Path, array: JobArray, version: str) -> Executor:
    """Return the executor that submits `array`; `version` of the code is handed to the jobs."""
    folder = array_folder(sweep.resolve(), array)
    if "%" in str(folder):
        raise ConfigError(f"{sweep.resolve()}: SLURM replaces % in the paths of logs; choose another root")
    resources = array.resources
    torchrun = resources.ranks == "torchrun"
    command = _torchrun(config, array, folder) if torchrun else _task(config, array, folder)
    executor = Executor(folder, command)
    options: dict[str, Any] = {key.replace("_", "-"): value for key, value in resources.options.items()}
    if array.after:  # if that fails, the array is cancelled instead of waiting, and launch submits it again
        options["kill-on-invalid-dep"] = "yes"
    if config.requeue is not None:
        options["requeue" if config.requeue else "no-requeue"] = True
    if torchrun:  # it passes on SIGTERM and dies of SIGUSR2
        options["signal"] = f"TERM@{config.signal_s}"
    stated = {
        "partition": resources.partition,
        "qos": resources.qos,
        "account": resources.account,
        "constraint": resources.constraint,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem": f"{round(resources.memory_gb * 1024)}M" if resources.memory_gb else None,
        "exclude": ",".join(array.exclude) or None,
        "dependency": _dependency(sweep, array),
        "srun_args": _srun_options(resources) or None,
    }
    executor.update_parameters(
        job_name=array.name,
        time=resources.time_min,
        nodes=resources.nodes,
        ntasks_per_node=1 if torchrun else resources.tasks_per_node,
        signal_delay_s=config.signal_s,
        array_parallelism=array.array_parallelism,
        stderr_to_stdout=True,
        setup=[
            f'echo "{STARTED}$SLURMD_NODENAME"',
            *config.setup,
            *_environment(config, sweep, array, version),
        ],
        additional_parameters=options,
        **{key: value for key, value in stated.items() if value is not None},
    )
    executor.parameters["map_count"] = len(array.elements)
    return executor


def _srun_options(resources: Resources) -> list[str]:
    options = []
    if resources.world_size > 1:  # ranks that lost one would wait for it until a timeout
        options.append("--kill-on-bad-exit=1")
    if resources.cpus_per_task:  # since SLURM 22.05 srun does not take this over from the job
        options.append(f"--cpus-per-task={resources.cpus_per_task}")
    return options


def _dependency(sweep: Path, array: JobArray) -> str | None:
    """Return what an array waits for: element by element for another array, or for one element of it."""
    if not array.after:
        return None
    submitted = read_submitted(sweep / JOBS / array.after)
    job = submitted.job_id if submitted else f"JOB_OF_{array.after}"  # not known yet in a dry run
    if array.module != TASK:
        return f"afterany:{job}"
    return f"aftercorr:{job}" if array.after_index is None else f"afterok:{job}_{array.after_index}"


def _environment(config: ClusterConfig, sweep: Path, array: JobArray, version: str) -> list[str]:
    code = quote((sweep / array.snapshot).resolve())
    return [
        f"cd {code}",
        f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        f"export LOOPSCALE_CODE_VERSION={quote(version)}",
        f"export {JOB_BACKEND}=slurm",
        f"export OMP_NUM_THREADS={config.threads_per_run}",
        # Data and tokenizer were checked before submission; compute nodes may have no internet.
        "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1",
    ]


def _task(config: ClusterConfig, array: JobArray, folder: Path) -> str:
    return f"{_python(config)} -u -m {array.module} {quote(folder)}"


def _torchrun(config: ClusterConfig, array: JobArray, folder: Path) -> str:
    script = (
        f"exec {_python(config)} -m torch.distributed.run --nnodes=$SLURM_JOB_NUM_NODES "
        f"--nproc-per-node={array.resources.tasks_per_node} --node-rank=$SLURM_NODEID "
        '--master-addr=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) '
        f"--master-port={job_port(array.token)} -m {TASK} {quote(folder)}"
    )
    return f"bash -c {quote(script)}"


def _python(config: ClusterConfig) -> str:
    """Return the shell words that start the interpreter; a profile may give several."""
    return config.python or quote(sys.executable)
