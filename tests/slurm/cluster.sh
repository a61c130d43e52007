#!/usr/bin/env bash
# A real Slurm of two nodes on this host, for the tests, and of two more whose daemons the tests kill.
#
#   cluster.sh start DIR     writes DIR/slurm.conf, starts munged, slurmctld and a slurmd for each node, waits until all are idle
#   cluster.sh node DIR n1   starts one slurmd again
#   cluster.sh stop DIR      stops what was started
#
# After `start`, everything that talks to the cluster needs SLURM_CONF=DIR/slurm.conf. Needs root, slurm-wlm and munge
# (Debian). Waits that are minutes on a real cluster are seconds here: a requeued job is held back for the life of its
# credential, a node counts as down after SlurmdTimeout, a job is killed KillWait after it was asked to end.
set -euo pipefail

usage() { sed -n '2,10p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
command="$1"
mkdir -p "$2"
dir="$(cd "$2" && pwd)"
export SLURM_CONF="$dir/slurm.conf"
host="$(hostname -s)"

# Two ports for the nodes and one for the controller, away from those of an installed Slurm.
port_base="${DAY0_SLURM_PORT:-17817}"
cpus="${DAY0_SLURM_CPUS:-8}"
nodes="n1 n2 f1 f2"

write_conf() {
  cat > "$SLURM_CONF" <<CONF
ClusterName=day0
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.sock,cred_expire=5
SlurmctldPort=$port_base
SlurmdPort=$((port_base + 1))
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=2
InactiveLimit=0
MinJobAge=300
MessageTimeout=10
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port_base + 1)) CPUs=$cpus RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port_base + 2)) CPUs=$cpus RealMemory=4000 State=UNKNOWN
NodeName=f1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port_base + 3)) CPUs=$cpus RealMemory=4000 State=UNKNOWN
NodeName=f2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port_base + 4)) CPUs=$cpus RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 LLN=YES Default=YES MaxTime=INFINITE State=UP
PartitionName=frail Nodes=f1,f2 LLN=YES MaxTime=INFINITE State=UP
CONF
}

start_node() {
  mkdir -p "$dir/spool.$1"
  slurmd -N "$1" -f "$SLURM_CONF"
}

wait_idle() {
  for _ in $(seq 150); do
    if [ "$(sinfo -h -N -o %t 2>/dev/null | grep -c '^idle$')" = 4 ]; then return 0; fi
    sleep 0.1
  done
  echo "the cluster did not come up; see $dir/*.log" >&2
  tail -n 5 "$dir"/*.log >&2 || true
  return 1
}

kill_file() {
  [ -f "$1" ] || return 0
  local pid
  pid="$(cat "$1")"
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 50); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
}

case "$command" in
  start)
    [ "$(id -u)" = 0 ] || { echo "a Slurm of its own needs root" >&2; exit 1; }
    mkdir -p "$dir/state"
    chmod 755 "$dir"
    dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 status=none
    chmod 600 "$dir/munge.key"
    write_conf
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
      --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    slurmctld -f "$SLURM_CONF"
    for node in $nodes; do start_node "$node"; done
    wait_idle
    ;;
  node)
    [ $# -eq 3 ] || usage
    start_node "$3"
    ;;
  stop)
    scancel --state=PENDING,RUNNING,SUSPENDED --user=root 2>/dev/null || true
    for node in $nodes; do kill_file "$dir/slurmd.$node.pid"; done
    kill_file "$dir/slurmctld.pid"
    kill_file "$dir/munged.pid"
    ;;
  *) usage ;;
esac
