"""A real SLURM on this machine: munged, slurmctld and four slurmd in a temporary directory.

It needs root and the packages that `make slurm` installs; it disturbs no SLURM that is there, since ports, sockets and
files are its own.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "setpriv")
NODES = 4
PATIENCE_SECONDS = 60
# How long a requeued job waits: 120 s by default.
REQUEUE_SECONDS = 5
CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire={requeue}
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
KillOnBadExit=1
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


class CannotStart(RuntimeError):
    """SLURM cannot be started here; says why."""


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """Starts SLURM, and ends it with all of its jobs; in between, its commands speak with it (by SLURM_CONF).

    Yields:
        the directory of its logs.

    Raises:
        CannotStart: there is no SLURM to start, this is not root, or it does not come up.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise CannotStart(f"{', '.join(missing)} not installed (make slurm)")
    if os.geteuid() != 0:
        raise CannotStart("SLURM's daemons need root")
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    before = os.environ.get("SLURM_CONF")
    with contextlib.ExitStack() as open_things:
        open_things.callback(shutil.rmtree, root, ignore_errors=True)
        os.environ["SLURM_CONF"] = str(_configure(root))
        open_things.callback(_restore, before)
        open_things.callback(_end_steps, os.environ["SLURM_CONF"])
        _start(root, open_things)
        open_things.callback(_cancel_all)
        yield root


def _configure(root: Path) -> Path:
    root.chmod(0o755)
    (root / "state").mkdir()
    (root / "spool").mkdir()
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    controller, *ports = _free_ports(NODES + 1)
    nodes = "\n".join(
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN"
        for i, port in enumerate(ports)
    )
    conf = root / "slurm.conf"
    conf.write_text(CONF.format(host=host, root=root, controller=controller, nodes=nodes, requeue=REQUEUE_SECONDS))
    return conf


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(root: Path, open_things: contextlib.ExitStack) -> None:
    munge = (f"--{name}={root}/munge.{name[:3]}" for name in ("key-file", "pid-file", "log-file", "seed-file"))
    _daemon(root, open_things, "munged", "--foreground", "--force", f"--socket={root}/munge.socket", *munge)
    _until((root / "munge.socket").exists, root)
    _daemon(root, open_things, "slurmctld", "-D", "-c")
    for i in range(NODES):
        (root / "spool" / f"n{i}").mkdir()
        _daemon(root, open_things, "slurmd", "-D", "-N", f"n{i}")
    _until(
        lambda: ask("sinfo", "--noheader", "--partition=debug", "--format=%T %D").split() == ["idle", str(NODES)], root
    )


def _daemon(root: Path, open_things: contextlib.ExitStack, *command: str) -> None:
    """Starts a daemon that ends with this process, however this one ends."""
    log = open_things.enter_context((root / f"{command[0]}.out").open("a"))
    daemon = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL
    )
    open_things.callback(_end, daemon)


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _until(reached, root: Path) -> None:
    for _ in range(PATIENCE_SECONDS * 10):
        if reached():
            return
        time.sleep(0.1)
    log = root / "slurmctld.log"
    said = log.read_text().splitlines()[-3:] if log.exists() else []
    raise CannotStart(f"it was not ready within {PATIENCE_SECONDS} s: {' / '.join(said)}")


def ask(*command: str) -> str:
    """What a command of SLURM says; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def _cancel_all() -> None:
    subprocess.run(["scancel", "--quiet", "--me"], capture_output=True)
    subprocess.run(["scancel", "--quiet", "--me", "--full", "--signal=KILL"], capture_output=True)
    for _ in range(100):
        if not ask("squeue", "--noheader", "--format=%i"):
            return
        time.sleep(0.1)


def _end_steps(conf: str) -> None:
    """Ends what is left of jobs: whatever has this SLURM in its environment."""
    wanted = f"SLURM_CONF={conf}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(process.name) != os.getpid() and wanted in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _restore(before: str | None) -> None:
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before
