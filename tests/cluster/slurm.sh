#!/bin/bash
# docs/examples/slurm.sh under a real Slurm: a controller and two nodes on this machine, with a munge of their own. A run
# trains, is signalled, requeued and loses a rank in the middle; each time it goes on, and its losses are those of a run
# that was left alone. Wants root, and the packages slurm-wlm, munge and openmpi-bin.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/common.sh"
BIFOCAL=$(readlink -f "${1:?usage: slurm.sh BIFOCAL}")
export BIFOCAL

[ "$(id -u)" = 0 ] || skip "only root can start Slurm's daemons"
for program in munged slurmctld slurmd srun mpirun; do
    command -v "$program" >/dev/null || PATH=$PATH:/usr/sbin command -v "$program" >/dev/null ||
        skip "$program is missing (Debian: apt install slurm-wlm munge openmpi-bin)"
done
PATH=$PATH:/usr/sbin

readonly STEPS=1000
work=$(mktemp -d /tmp/bifocal-slurm-XXXXXX)
chmod 755 "$work"
daemons=()
cleanup() {
    local status=$?
    [ $status = 0 ] || tail -n 20 "$work"/*.log "$work"/log/slurmctld "$work"/log/n? >&2 || true
    squeue -h -o %i 2>/dev/null | xargs -r scancel || true
    sleep 1
    for process in "${daemons[@]}"; do kill "$process" 2>/dev/null || true; done
    [ ! -f "$work/munge/pid" ] || kill "$(cat "$work/munge/pid")" || true
    wait
    rm -rf "$work"
    exit $status
}
trap cleanup EXIT
cd "$work"

# ---- a cluster ----

mkdir -p munge log state spool-n1 spool-n2 tmp-n1 tmp-n2
head -c 1024 /dev/urandom >munge.key
chmod 600 munge.key
munged --force --key-file="$work/munge.key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --log-file="$work/log/munged" --seed-file="$work/munge/seed" 2>log/munged.out || skip "munged does not start"
port=$((20000 + RANDOM % 20000))
cat >slurm.conf <<CONF
ClusterName=tiny
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
AuthType=auth/munge
# what is requeued starts again when old credentials have expired: not two minutes, but some seconds
AuthInfo=socket=$work/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmctldPidFile=$work/state/slurmctld.pid
SlurmdPidFile=$work/state/%n.pid
SlurmdSpoolDir=$work/spool-%n
TmpFS=$work/tmp-%n
SlurmctldLogFile=$work/log/slurmctld
SlurmdLogFile=$work/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1
SchedulerType=sched/backfill
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=20
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=1
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES State=UP
CONF
export SLURM_CONF=$work/slurm.conf
slurmctld -D >log/slurmctld.out 2>&1 &
daemons+=($!)
for node in n1 n2; do
    slurmd -D -N $node >log/$node.out 2>&1 &
    daemons+=($!)
done
both_idle() { [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ]; }
wait_for 30 both_idle || skip "slurmctld and two slurmd do not come up here"
srun --mpi=list 2>&1 | grep -q pmix || skip "this Slurm has no PMIx (srun --mpi=list)"

# ---- runs ----

make_project "$BIFOCAL"
submit() { # RUN
    sbatch --parsable --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --time=30 "$here/../../docs/examples/slurm.sh" \
        config.yaml "$1" train.steps=$STEPS checkpoint.every=100
}
gone() { [ -z "$(squeue -h -j "$1" 2>/dev/null)" ]; }      # JOB
done_with() { grep -q 'done: ' "$1/log.txt" 2>/dev/null; } # RUN
finish() {                                                 # JOB RUN
    wait_for 240 gone "$1" || fail "job $1 ($2) does not end"
    done_with "$2" || fail "job $1 ended, but $2 did not get to its last step"
}
check() { # RUN, TEXT that its log must have
    grep -q "$2" "$1/log.txt" || fail "$1/log.txt does not say '$2'"
    grep -q "resuming after step" "$1/log.txt" || fail "$1 did not go on from a checkpoint"
    same_losses whole "$1" $STEPS || fail "the losses of $1 are not those of the run that was left alone"
    echo "$1: as the undisturbed run, $(grep -c 'resuming after step' "$1/log.txt") time(s) resumed"
}
is_rank() { [ "$(readlink "/proc/$1/exe")" = "$BIFOCAL" ]; }

job=$(submit whole)
finish "$job" whole
echo "whole: $STEPS steps over 2 nodes"

# Without MPI, by Slurm's variables over TCP.
srun --mpi=none --nodes=2 --ntasks=2 "$BIFOCAL" train config.yaml --run plain train.steps=$STEPS checkpoint.every=100 \
    >log/plain 2>&1 || fail "srun --mpi=none: $(tail -n 3 log/plain)"
same_losses whole plain $STEPS || fail "the losses of srun --mpi=none are not those of srun --mpi=pmix"
echo "plain: srun --mpi=none, the same losses"

job=$(submit signalled)
wait_for 120 has_steps signalled 300 || fail "signalled does not train"
scancel --signal=USR1 "$job"
finish "$job" signalled
check signalled "saved; go on with"

job=$(submit requeued)
wait_for 120 has_steps requeued 300 || fail "requeued does not train"
scontrol requeue "$job"
finish "$job" requeued
check requeued "saved; go on with"

job=$(submit bereft)
wait_for 120 has_steps bereft 300 || fail "bereft does not train"
for process in $(pgrep -f "train config.yaml --run bereft "); do
    ! is_rank "$process" || victim=$process
done
kill -9 "$victim"
finish "$job" bereft
check bereft "resuming"
