#!/usr/bin/env bash
# Start a real SLURM with several nodes on this one machine, to try things on before going to a site.
#
#   slurm/one-machine/start.sh
#
# Run as root (a container will do). No systemd, no cgroups, no configured SLURM is needed.
# Starting again brings dead daemons and nodes that are down back, and leaves the others alone.
# Set these in the environment to change what is started for the first time:
#   PREFIX     everything lives here           /var/lib/calibdask-slurm
#              (made by this script, below directories that only root can write to)
#   NODES      number of nodes                 3
#   CPUS, MEM  what each node claims to have   4, 6000 (MiB)
#   PORT       the controller's; nodes follow  16817
#   OOMKILL=1  kill jobs that take more memory than they asked for
set -euo pipefail

if [ "$(id -u)" != 0 ]; then
  echo 'start.sh: must run as root: SLURM starts jobs as their users' >&2
  exit 1
fi
SCRIPT=start.sh
# shellcheck source-path=SCRIPTDIR source=prefix.sh
. "$(dirname "${BASH_SOURCE[0]}")/prefix.sh"
NODES=${NODES:-3}
CPUS=${CPUS:-4}
MEM=${MEM:-6000}
PORT=${PORT:-16817}
OOMKILL=${OOMKILL:-}
SOCKET=$PREFIX/run/munge.socket

umask 022
if ! is_ours; then
  only_roots "$(dirname "$PREFIX")"
  mkdir "$PREFIX" || fail "somebody else makes $PREFIX at this moment"
  printf '%s\n' "$MARK" >"$CONF"
fi
mkdir -p "$PREFIX"/{state,log,run}

# root's programs are looked for even where a user's PATH came along.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=
for program in slurmctld slurmd munged sbatch srun; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null || fail "first install SLURM and munge: missing$missing"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi

# uname gives what gethostname() gives, which is what the daemons compare with;
# `hostname -s` asks the resolver and fails where the name is in no table.
HOST=$(uname -n)
HOST=${HOST%%.*}

# The configuration under running daemons is not changed: clients and daemons must read the same.
if alive slurmctld "$PREFIX/run/slurmctld.pid"; then
  NODES=$(grep -c '^NodeName=' "$CONF")
else
  {
    cat <<END
$MARK
ClusterName=emul
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SOCKET
StateSaveLocation=$PREFIX/state
SlurmdSpoolDir=$PREFIX/spool.%n
SlurmctldPidFile=$PREFIX/run/slurmctld.pid
SlurmdPidFile=$PREFIX/run/slurmd.%n.pid
SlurmctldLogFile=$PREFIX/log/slurmctld.log
SlurmdLogFile=$PREFIX/log/slurmd.%n.log

# No cgroups: a container often has none to give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
${OOMKILL:+JobAcctGatherParams=OverMemoryKill}
MpiDefault=none

# The nodes claim more than the machine has, and share it.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500

# Quick, for tests: starting, noticing a dead node, killing.
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdTimeout=15
KillWait=5
ReturnToService=2

# Jobs of "urgent" take the place of others, which go back to the queue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1

# There is no accounting: finished jobs are remembered for ten minutes, and listed in a file.
MinJobAge=600
JobCompType=jobcomp/filetxt
JobCompLoc=$PREFIX/log/jobcomp.log

END
    for ((i = 0; i < NODES; i++)); do
      echo "NodeName=n$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1 + i)) CPUs=$CPUS RealMemory=$MEM"
    done
    cat <<END
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 PriorityTier=1
PartitionName=short Nodes=ALL MaxTime=2 DefaultTime=1 PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=off
END
  } >"$CONF.new"
  chmod 644 "$CONF.new"
  mv "$CONF.new" "$CONF"
fi
export SLURM_CONF=$CONF

if ! alive munged "$PREFIX/run/munged.pid"; then
  KEY=$PREFIX/munge.key
  [ -s "$KEY" ] || (umask 077 && head -c 1024 /dev/urandom >"$KEY")
  # --force: munged would not run as root, nor below a directory that all may write into.
  munged --force --key-file="$KEY" --socket="$SOCKET" --pid-file="$PREFIX/run/munged.pid" \
    --log-file="$PREFIX/log/munged.log" --seed-file="$PREFIX/munge.seed" 2>>"$PREFIX/log/munged.log" ||
    fail "munged does not start: see $PREFIX/log/munged.log"
fi
alive slurmctld "$PREFIX/run/slurmctld.pid" || slurmctld || fail "see $PREFIX/log/slurmctld.log"
for ((i = 0; i < NODES; i++)); do
  mkdir -p "$PREFIX/spool.n$i"
  alive slurmd "$PREFIX/run/slurmd.n$i.pid" || slurmd -N "n$i" || fail "see $PREFIX/log/slurmd.n$i.log"
done

ready() { # number of nodes that take jobs
  timeout 5 scontrol -o show nodes 2>/dev/null |
    grep -cE ' State=(IDLE|MIXED|ALLOCATED)(\+PLANNED)? ' || true
}
wait_ready() { # SECONDS
  local end=$((SECONDS + $1))
  until [ "$(ready)" = "$NODES" ]; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}
if ! wait_ready 8; then
  # Down or drained since some fault: nothing but us will bring it back.
  timeout 5 scontrol update NodeName=ALL State=RESUME 2>/dev/null || true
  if ! wait_ready 20; then
    timeout 5 sinfo -N -l >&2 || true
    grep -hE 'error|fatal' "$PREFIX"/log/slurm*.log | tail -n 5 >&2 || true
    fail "$(ready) of $NODES nodes take jobs; see $PREFIX/log"
  fi
fi

# Only a link that is ours, or no file at all, gives way.
if [ ! -e "$LINK" ] && [ ! -L "$LINK" ]; then
  mkdir -p "${LINK%/*}"
  ln -s "$CONF" "$LINK"
fi
sinfo
if [ "$(readlink -f "$LINK")" = "$(readlink -f "$CONF")" ]; then
  echo "Ready: sinfo, sbatch, squeue find it by $LINK. Elsewhere, or in a container of its own:"
else
  echo "Ready. $LINK belongs to something else, so say first:"
fi
echo "  export SLURM_CONF=$CONF"
