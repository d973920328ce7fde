#!/bin/sh
# usage: mpirun.sh RANKS PROGRAM [ARGUMENT]...
# Runs a test program on RANKS processes of this machine, more than it has cores if need be. 77 where there is no mpirun.
ranks=$1
shift
command -v mpirun >/dev/null || {
    echo "skipped: there is no mpirun"
    exit 77
}
# MPI itself leaks at its end; what it keeps is none of ours.
export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
case $(mpirun --version) in
*'Open MPI'*) exec mpirun --oversubscribe --mca mpi_yield_when_idle 1 -np "$ranks" "$@" ;;
*) exec mpirun -np "$ranks" "$@" ;;
esac
