"""A real SLURM on one machine: a controller and four nodes on the loopback interface, with its own folder and ports."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

NODES = ("n0", "n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SrunPortRange={first_srun_port}-{last_srun_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmctldDebug=debug2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,bf_interval=2,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=3600
SlurmdTimeout=300
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
"""
TIME_LIMITS_TESTED = "Testing job time limits"
"""What the controller logs when it looks for jobs whose time is up."""
TIME_LIMITS_PERIOD = 30
"""How often it does. [s]"""


def why_not() -> str | None:
    """Return why a SLURM cannot be started here."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"SLURM is not installed: no {', '.join(missing)}; `apt-get install slurm-wlm munge` installs it"
    return None if os.geteuid() == 0 else "only root can start the daemons of SLURM"


class Slurm:
    """The cluster; a context manager."""

    def __init__(self) -> None:
        # sockets live here, whose paths may not be long
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.configuration = self.root / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.configuration)}
        self.subreaper: subprocess.Popen | None = None

    def __enter__(self) -> "Slurm":
        self._configure()
        subreaper = [sys.executable, str(Path(__file__).with_name("subreaper.py")), str(self.root)]
        self.subreaper = subprocess.Popen(
            subreaper, stdin=subprocess.PIPE, text=True, env=self.environment, start_new_session=True
        )
        files = {name: str(self.root / f"munge.{name}") for name in ("key", "socket", "pid", "log", "seed")}
        self.keep("munged", "--foreground", "--force", "--num-threads=2", f"--key-file={files['key']}",
                  f"--socket={files['socket']}", f"--pid-file={files['pid']}", f"--log-file={files['log']}",
                  f"--seed-file={files['seed']}")  # fmt: skip
        wait_until(Path(files["socket"]).exists, 10)
        self.keep("slurmctld", "-D", "-c")
        for node in NODES:
            self.keep("slurmd", "-D", "-N", node)
        wait_until(lambda: self.idle_nodes() == list(NODES), 120)
        return self

    def __exit__(self, *error: object) -> None:
        assert self.subreaper is not None
        assert self.subreaper.stdin is not None
        self.subreaper.stdin.close()
        self.subreaper.wait(30)

    def _configure(self) -> None:
        host, port = socket.gethostname().split(".")[0], free_ports(2 + len(NODES))
        text = CONFIGURATION.format(
            host=host,
            root=self.root,
            port=port,
            slurmd_port=port + 1,
            first_srun_port=port + 100,
            last_srun_port=port + 299,
        )
        for number, node in enumerate(NODES):
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 2 + number} CPUs=2\n"
        text += f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n"
        self.configuration.write_text(text)
        for folder in ("state", *(f"spool-{node}" for node in NODES)):
            (self.root / folder).mkdir()
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def keep(self, *command: str) -> None:
        """Start a daemon that ends with the tests."""
        assert self.subreaper is not None
        assert self.subreaper.stdin is not None
        print(json.dumps(command), file=self.subreaper.stdin, flush=True)

    def run(self, *command: str) -> str:
        """Run a command of SLURM and return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def idle_nodes(self) -> list[str]:
        """Return the nodes that wait for work."""
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"],
            env=self.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return sorted(done.stdout.split())

    def job(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, job: str, timeout: float = 300) -> dict[str, str]:
        """Return what SLURM knows of a job that has ended; one that is back in the queue waits there for a moment only.

        Left alone it is two minutes, in which the end of the last start is sure to be reported: a report that comes
        after the next start ends that one.
        """

        def ended() -> bool:
            facts = self.job(job)
            if facts["JobState"] == "PENDING" and facts["Reason"] == "BeginTime":
                time.sleep(2)
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            return facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

        wait_until(ended, timeout)
        return self.job(job)

    def nodes_of(self, job: str) -> list[str]:
        """Return the nodes that a job runs on, or ran on last, rank zero's first."""
        return self.run("scontrol", "show", "hostnames", self.job(job)["NodeList"]).split()

    def wait_for_time_limits(self, ahead: float) -> None:
        """Return so many seconds before the controller looks for jobs whose time is up."""
        log = self.root / "slurmctld.log"
        wait_until(lambda: TIME_LIMITS_TESTED in log.read_text(), 40)
        (stamp,) = re.findall(rf"\[(\S+)\] .*{TIME_LIMITS_TESTED}", log.read_text())[-1:]
        last = datetime.fromisoformat(stamp).timestamp()
        time.sleep((last - ahead - time.time()) % TIME_LIMITS_PERIOD)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and its tasks, as a power cut does, and tell the controller."""
        os.kill(int((self.root / f"slurmd-{node}.pid").read_text()), 9)
        for pid in tasks_of(node):
            step = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(step, 9)
            os.kill(pid, 9)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")


def tasks_of(node: str) -> list[int]:
    """Return the processes of a node that srun started, the first of each task."""
    found = {}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = environment.read_bytes().split(b"\0")
            parent = int(environment.with_name("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended, or is not ours
            continue
        if f"SLURMD_NODENAME={node}".encode() in words and any(word.startswith(b"SLURM_STEP_ID=") for word in words):
            found[int(environment.parent.name)] = parent
    return [pid for pid, parent in found.items() if parent not in found]


def free_ports(count: int) -> int:
    """Return the first of so many neighbouring ports that nobody uses, in another range than other test processes."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    step = 400 * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for first in range(17000 + 400 * process, 30000, step):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports")


def wait_until(condition: Callable[[], object], timeout: float) -> None:
    """Return once a condition holds.

    Raises:
        TimeoutError: it does not, for too long.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited for {timeout} s")
        time.sleep(0.1)
