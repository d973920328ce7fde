#!/bin/sh
# usage: tcprun.sh RANKS PROGRAM [ARGUMENT]...
# Runs a program on RANKS processes of this machine that find one another by BIFOCAL_* variables, without MPI.
export BIFOCAL_RANKS="$1" BIFOCAL_MASTER="127.0.0.1:$((20000 + $$ % 12000))"
shift
processes=
rank=0
while [ $rank -lt "$BIFOCAL_RANKS" ]; do
    BIFOCAL_RANK=$rank "$@" &
    processes="$processes $!"
    rank=$((rank + 1))
done
status=0
for process in $processes; do wait "$process" || status=$?; done
exit $status
