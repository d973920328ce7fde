#!/bin/bash
# A Bifocal run under Slurm that outlives its time limit, preemption and lost nodes:
#
#     sbatch slurm.sh CONFIG RUN [section.key=value]...
#
# A task is a rank. Three minutes before the time limit, or on `scancel --signal=USR1 JOB`, Slurm signals the ranks: they
# agree on a step, save and leave, and the job queues itself again and goes on from there. A job that Slurm preempts or
# requeues by itself goes on likewise. CONFIG, RUN and the data must lie where every node sees them.

#SBATCH --job-name=bifocal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=bifocal-%j.log

config=${1:?usage: sbatch slurm.sh CONFIG RUN [section.key=value]...}
run=${2:?usage: sbatch slurm.sh CONFIG RUN [section.key=value]...}
shift 2

# srun tells MPI how the ranks find one another: `srun --mpi=list` names pmix where it can. Where it does not, or where
# there is no MPI, --mpi=none in its place lets the ranks find one another by Slurm's variables and talk over TCP.
# --resume starts from the beginning where there is no checkpoint yet.
srun --mpi=pmix --kill-on-bad-exit=1 "${BIFOCAL:-bifocal}" train "$config" --run "$run" --resume "$@"
status=$?

case $status in
0 | 2 | 143) # done; wrong usage or configuration, which would not get better; asked to stop by SIGTERM
    exit "$status"
    ;;
138) # SIGUSR1: saved, there is more to do
    ;;
*) # a rank or its node was lost
    [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] || exit "$status"
    ;;
esac
echo "slurm.sh: srun ended with status $status; queued again" >&2
exec scontrol requeue "$SLURM_JOB_ID"
