"""Two real SLURM clusters on this one machine: several slurmd, accounting, preemption, GPUs in name.

python tests/slurm/cluster.py up | down | wipe | env

The first is a generous site; the second forgets, limits and refuses what sites may (`sites.slurm_conf`).
`up` starts what does not run yet (on Debian it first installs what is missing, as root), `down` stops what
`up` started, `wipe` also deletes its files, `env` prints the line that points a shell at the first.
Everything listens on 127.0.0.1 and lives under two folders. Environment variables, with their defaults,
change the first site: SITE_ROOT=/tmp/loopscale-slurm SITE_PORT=47300 SITE_ACCOUNTING=1 SITE_CGROUP=0.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.slurm.sites import Site, name_nodes, write_files

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
STARTED: list[subprocess.Popen[bytes]] = []  # kept, because they outlive whoever started them
POLICY = Path("/usr/sbin/policy-rc.d")  # while it says 101, installing a package starts no daemon


class Daemons:
    """The processes of a site: started detached, remembered by pid and start time, stopped by those alone."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.folder = site.root / "pids"

    def pid(self, name: str) -> int | None:
        """Return the pid of the daemon of this name, None when it does not run."""
        path = self.folder / name
        if not path.exists():
            return None
        pid, started = path.read_text().split()
        return int(pid) if start_time(int(pid)) == started else None

    def start(self, name: str, *command: str | Path) -> bool:
        """Start a daemon unless it runs; says whether it was started."""
        if self.pid(name) is not None:
            return False
        # A shell inside a job must not hand the job's variables to the daemons.
        foreign = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        with (self.site.root / "log" / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=environment | {"SLURM_CONF": str(self.site.conf)},
                cwd=self.site.root,  # where a daemon that dies leaves its core file
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        STARTED.append(process)
        (self.folder / name).write_text(f"{process.pid} {start_time(process.pid)}")
        return True

    def stop(self, name: str, seconds: float = 20, number: int = signal.SIGTERM) -> None:
        """Stop a daemon with a signal, with SIGKILL when it does not listen."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, number)
            if not became(lambda: self.pid(name) is None, seconds):
                os.kill(pid, signal.SIGKILL)
                became(lambda: self.pid(name) is None, 5)
        (self.folder / name).unlink(missing_ok=True)

    def start_controller(self) -> None:
        """Start slurmctld; a stopped one remembers its jobs."""
        self.start("slurmctld", "slurmctld", "-D", "-f", self.site.conf)
        wait_for("slurmctld", lambda: listens(self.site.port), 30)

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node."""
        self.start(f"slurmd.{node}", "slurmd", "-D", "-N", node, "-f", self.site.conf)


def start_time(pid: int) -> str:
    """Return the kernel's start time of a process, "" when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def became(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for `condition`; says whether it came true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    if not became(condition, seconds):
        sys.exit(f"{what} did not come up within {seconds:g} s; see {Site.from_environment().root}/log")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def install(site: Site) -> None:
    """Install the Debian packages whose programs are missing; without root, say which they are."""
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if site.accounting else {})
    missing = [package for program, package in wanted.items() if shutil.which(program) is None]
    if not missing:
        return
    # Under the lock of `make browser`: apt waits for its lock of packages, not for that of its lists.
    command = ["flock", "/var/lock/loopscale-apt", "apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq"]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"SLURM is not installed here: as root on Debian, apt-get install {' '.join(missing)}")
    with no_autostart():
        subprocess.run([*command, "update"], check=True, stdout=sys.stderr)
        subprocess.run(
            [*command, "install", "-y", "--no-install-recommends", *missing],
            check=True,
            stdout=sys.stderr,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )


@contextlib.contextmanager
def no_autostart() -> Iterator[None]:
    """Keep packages from starting the distribution's own daemons."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink()


def start_accounting(site: Site, daemons: Daemons) -> None:
    """Start the database and slurmdbd, and enter the cluster into it."""
    data = site.root / "database"
    if not (data / "ready").exists():
        shutil.rmtree(data, ignore_errors=True)
        with site.log("database-install").open("wb") as log:
            subprocess.run(
                ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
                 "--auth-root-authentication-method=normal"],
                check=True, stdout=log, stderr=log,
            )  # fmt: skip
        (data / "ready").touch()
    grants = site.root / "etc" / "grants.sql"
    grants.write_text(
        "CREATE DATABASE IF NOT EXISTS accounting;\n"
        "CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';\n"
        "GRANT ALL ON accounting.* TO 'slurm'@'127.0.0.1';\n"
    )
    daemons.start(
        "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}",
        f"--socket={data}/socket", f"--pid-file={data}/pid", "--bind-address=127.0.0.1",
        f"--port={site.port + 2}", "--skip-name-resolve",
        f"--init-file={grants}", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M",
        "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
    )  # fmt: skip
    wait_for("mariadbd", lambda: listens(site.port + 2), 60)
    daemons.start("slurmdbd", "slurmdbd", "-D")
    wait_for("slurmdbd", lambda: listens(site.port + 1), 60)
    if site.name not in slurm(site, "sacctmgr", "-nP", "show", "cluster", "format=cluster").split():
        slurm(site, "sacctmgr", "-i", "add", "cluster", site.name)
        slurm(site, "sacctmgr", "-i", "add", "qos", "narrow", "set", "MaxSubmitJobsPerUser=2")
        slurm(site, "sacctmgr", "-i", "add", "account", "project")
        slurm(site, "sacctmgr", "-i", "add", "user", "root", "account=project", "qos=normal,narrow")


def slurm(site: Site, *command: str) -> str:
    """Return what a SLURM command prints, "" when it fails."""
    environment = os.environ | {"SLURM_CONF": str(site.conf)}
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def up(site: Site) -> None:
    """Bring every daemon of the site up and wait until all nodes take jobs."""
    install(site)
    site.root.mkdir(parents=True, exist_ok=True)
    with (site.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        name_nodes(site.nodes)
        write_files(site)
        daemons = Daemons(site)
        daemons.start(
            "munged", "munged", "--foreground", "--force", f"--key-file={site.root}/munge.key",
            f"--socket={site.socket}", f"--pid-file={site.root}/munged.pid",
            f"--log-file={site.log('munged')}", f"--seed-file={site.root}/munged.seed", "--num-threads=4",
        )  # fmt: skip
        wait_for("munged", site.socket.exists, 20)
        if site.accounting:
            start_accounting(site, daemons)
        daemons.start_controller()
        for node in site.nodes:
            daemons.start_node(node)
        wait_for("the nodes", lambda: usable(site) == len(site.nodes), 60)
    print(f"{len(site.nodes)} nodes up; {environment_line(site)}")


def usable(site: Site) -> int:
    """Return how many nodes take jobs; a node that was set down is resumed."""
    states = [
        line.split() for line in slurm(site, "sinfo", "-h", "-N", "-p", "batch", "-o", "%N %T").splitlines()
    ]
    for node, state in states:
        if state.startswith(("down", "drain")):
            slurm(site, "scontrol", "update", f"nodename={node}", "state=resume")
    return sum(state in ("idle", "mixed", "allocated") for _, state in states)


def down(site: Site) -> None:
    """Cancel what runs and stop every daemon that `up` started."""
    daemons = Daemons(site)
    if daemons.pid("slurmctld") is not None:
        jobs = sorted(set(slurm(site, "squeue", "-h", "-o", "%A").split()))
        if jobs:
            slurm(site, "scancel", *jobs)
            became(lambda: not slurm(site, "squeue", "-h", "-t", "R,CG,S"), 20)
    for node in site.nodes:
        daemons.stop(f"slurmd.{node}")
    for pid in step_daemons(site):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
        daemons.stop(name)


def step_daemons(site: Site, node: str = "") -> list[int]:
    """Return the step daemons of a site, or of a node: known by the log of theirs that they hold open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "exe").readlink().name.startswith("slurmstepd"):
                files = {str(link.readlink()) for link in (process / "fd").iterdir()}
                if any(name.startswith(f"{site.root}/log/slurmd.{node}") for name in files):
                    found.append(int(process.name))
    return found


def environment_line(site: Site) -> str:
    return f"export SLURM_CONF={site.conf}"


def main(command: str) -> None:
    """Run one of up, down, wipe and env."""
    first = Site.from_environment()
    sites = (first, first.second())
    if command == "up":
        for site in sites:
            up(site)
    elif command in ("down", "wipe"):
        for site in sites:
            down(site)
            if command == "wipe":
                shutil.rmtree(site.root, ignore_errors=True)
    elif command == "env":
        print(environment_line(first))
    else:
        sys.exit(f"unknown command {command!r} (choose from up, down, wipe, env)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
