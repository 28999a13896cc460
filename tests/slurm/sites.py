"""The site of the tests' SLURM cluster: what the environment asks for, and its folders and files."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path

GPUS = 2  # per node; device files that no driver answers for
NVIDIA_MAJOR = 195


@dataclass(frozen=True, kw_only=True)
class Site:
    """What the environment asks for."""

    root: Path
    port: int
    accounting: bool
    cgroup: bool
    strict: bool  # see `slurm_conf`

    @classmethod
    def from_environment(cls) -> Site:
        """Read the SITE_* variables."""
        get = os.environ.get
        return cls(
            root=Path(get("SITE_ROOT", "/tmp/loopscale-slurm")),
            port=int(get("SITE_PORT", "47300")),
            accounting=get("SITE_ACCOUNTING", "1") == "1",
            cgroup=get("SITE_CGROUP", "0") == "1",
            strict=False,
        )

    def second(self) -> Site:
        """Return the strict site beside this one."""
        root = self.root.with_name(f"{self.root.name}-strict")
        return replace(self, root=root, port=self.port + 100, accounting=False, strict=True)

    @property
    def nodes(self) -> list[str]:
        return [f"loop{number}" for number in range(1, 9 if self.strict else 5)]

    @property
    def name(self) -> str:
        return self.root.name.replace("-", "_")

    @property
    def conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def socket(self) -> Path:
        return self.root / "munge.socket"

    def log(self, daemon: str) -> Path:
        return self.root / "log" / f"{daemon}.log"


def name_nodes(nodes: list[str]) -> None:
    """Make the node names and this host's own resolve to loopback: ranks meet at the first node's name."""
    for name in (socket.gethostname().split(".")[0], *nodes):
        try:
            known = socket.gethostbyname(name).startswith("127.")
        except OSError:
            known = False
        if not known:
            with Path("/etc/hosts").open("a") as hosts:
                hosts.write(f"127.0.0.1 {name}\n")


def write_files(site: Site) -> None:
    """Write the site's folders, keys, device files and configuration."""
    for folder in ("etc", "log", "pids", "state", *(f"spool/{node}" for node in site.nodes)):
        (site.root / folder).mkdir(parents=True, exist_ok=True)
    key = site.root / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
    for node in site.nodes:
        for number in range(GPUS):
            device = site.root / "spool" / node / f"gpu{number}"
            if not device.exists():
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(NVIDIA_MAJOR, number))
    site.conf.write_text(slurm_conf(site))
    devices = f"gpu[0-{GPUS - 1}]"
    lines = [f"NodeName={n} Name=gpu Type=none File={site.root}/spool/{n}/{devices}" for n in site.nodes]
    (site.root / "etc" / "gres.conf").write_text("\n".join(lines) + "\n")
    if site.cgroup:
        (site.root / "etc" / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainRAMSpace=yes\n"
        )
    if site.accounting:
        path = site.root / "etc" / "slurmdbd.conf"
        path.touch(mode=0o600)
        path.write_text(slurmdbd_conf(site))


def slurm_conf(site: Site) -> str:
    """Return slurm.conf: nodes that claim more than the host has, partitions that preempt each other.

    A strict site forgets ended jobs in seconds, takes short arrays and short jobs, queues no job again that
    did not ask for it, kills what uses more memory than it asked for, and preempts without a warning.
    """
    host = socket.gethostname().split(".")[0]
    track = ("cgroup", "cgroup") if site.cgroup else ("linuxproc", "none")
    accounting = (
        f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
        f"AccountingStoragePort={site.port + 1}\nAccountingStoragePass={site.socket}\n"
        f"AccountingStorageTRES=gres/gpu\nAccountingStorageEnforce=limits,qos\n"
        f"JobAcctGatherType=jobacct_gather/linux"
        if site.accounting
        else "AccountingStorageType=accounting_storage/none"
    )
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={site.port + 10 + number}"
        for number, node in enumerate(site.nodes)
    )
    limits = (
        "JobRequeue=0\nMaxArraySize=11\nMinJobAge=5\nJobAcctGatherParams=OverMemoryKill\n"
        "JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=task=1"
        if site.strict
        else "JobRequeue=1\nMaxArraySize=2001"
    )
    grace = 0 if site.strict else 20
    memory_mb = 2048 if site.strict else 512  # what is asked for by default, and enforced on a strict site
    partitions = (
        "PartitionName=scrap Nodes=ALL DefaultTime=10 PriorityTier=1 PreemptMode=CANCEL\n"
        f"PartitionName=brief Nodes=ALL MaxTime=2 DefaultTime=2 PriorityTier=1\n"
        f"PartitionName=single Nodes={site.nodes[-1]} DefaultTime=10 PriorityTier=1\n"
        if site.strict
        else ""
    )
    # cred_expire: a requeued job waits that long before it starts again; 120 s by default, 5 at least.
    return f"""ClusterName={site.name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={site.port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={site.socket},cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={site.root}/state
SlurmdSpoolDir={site.root}/spool/%n
SlurmctldPidFile={site.root}/slurmctld.pid
SlurmdPidFile={site.root}/slurmd.%n.pid
SlurmctldLogFile={site.log("slurmctld")}
SlurmdLogFile={site.root}/log/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/{track[0]}
TaskPlugin=task/{track[1]}
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={memory_mb}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_min_interval=100000,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{limits}
MaxJobCount=50000
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=10
KillWait=5
{accounting}
GresTypes=gpu
NodeName=DEFAULT CPUs=8 RealMemory=16384 Gres=gpu:none:{GPUS} State=UNKNOWN
{nodes}
PartitionName=batch Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
{partitions}"""


def slurmdbd_conf(site: Site) -> str:
    return f"""AuthType=auth/munge
AuthInfo=socket={site.socket}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={site.port + 1}
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile={site.root}/slurmdbd.pid
LogFile={site.log("slurmdbd")}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={site.port + 2}
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounting
"""
