#!/bin/bash
# Two hosts on one machine: network namespaces with host names of their own, on a bridge. A run over both trains, the
# link of one goes down in the middle: all processes end within the limit, saying why; the link comes up, the run goes
# on, and its losses are those of a run that was left alone. Then a rank is killed. Wants root, and the packages
# openmpi-bin and iproute2.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/common.sh"
BIFOCAL=$(readlink -f "${1:?usage: two_hosts.sh BIFOCAL}")

[ "$(id -u)" = 0 ] || skip "only root can make network namespaces"
for program in mpirun ip unshare; do
    command -v "$program" >/dev/null || skip "$program is missing (Debian: apt install openmpi-bin iproute2 util-linux)"
done

readonly STEPS=600 WATCHDOG=5 NET=10.213.77
id=bf$$
work=$(mktemp -d /tmp/bifocal-hosts-XXXXXX)
cleanup() {
    local status=$?
    [ $status = 0 ] || tail -n 20 "$work"/*.log "$work"/cut/log.txt "$work"/cut/logs/* >&2 || true
    for n in 1 2; do
        ip netns pids "$id-$n" 2>/dev/null | xargs -r kill -9 || true
        ip netns del "$id-$n" 2>/dev/null || true
    done
    ip link del "$id" 2>/dev/null || true
    rm -rf "$work"
    exit $status
}
trap cleanup EXIT
cd "$work"

# ---- two hosts ----

ip link add "$id" type bridge 2>/dev/null || skip "no network bridge can be made here"
ip link set "$id" up
for n in 1 2; do
    ip netns add "$id-$n" || skip "no network namespace can be made here"
    ip link add "$id$n" type veth peer name eth0 netns "$id-$n"
    ip link set "$id$n" master "$id" up
    ip -n "$id-$n" addr add "$NET.$n/24" dev eth0
    ip -n "$id-$n" link set eth0 up
    ip -n "$id-$n" link set lo up
done
cat >on_host <<AGENT
#!/bin/sh
# on_host ADDRESS COMMAND...: what ssh would be on real machines
n=\${1##*.}
shift
exec ip netns exec $id-\$n unshare --uts sh -c "hostname host\$n && cd $work && \$*"
AGENT
chmod +x on_host
export OMPI_MCA_plm_rsh_agent=$work/on_host OMPI_MCA_oob_tcp_if_include=$NET.0/24
export OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_tcp_if_include=$NET.0/24

train() { # RUN [ARGUMENT]...
    local run=$1
    shift
    ./on_host $NET.1 "$BIFOCAL" launch -n 2 --hosts $NET.1:1,$NET.2:1 train config.yaml --run "$run" \
        train.steps=$STEPS checkpoint.every=50 parallel.watchdog=$WATCHDOG "$@" >>"$run.log" 2>&1
}
no_process() { [ -z "$(ip netns pids "$id-1")$(ip netns pids "$id-2")" ]; }

# ---- runs ----

make_project "$BIFOCAL"
train whole || fail "a run over two hosts does not get to its end"
grep -q "1  host2" whole/log.txt || fail "rank 1 was not on the second host"
echo "whole: $STEPS steps over 2 hosts"

train cut &
launch=$!
wait_for 60 has_steps cut 200 || fail "cut does not train"
ip link set "${id}2" down
start=$SECONDS
wait_for $((WATCHDOG + 40)) no_process || fail "processes are left $((SECONDS - start)) s after the link went down"
! wait $launch || fail "a run whose link went down says that it is done"
echo "cut: all processes ended within $((SECONDS - start)) s of the link going down (parallel.watchdog: $WATCHDOG s)"
grep -h "no sign of life" cut/log.txt cut/logs/* || fail "no rank says that the other one is out of reach"

ip link set "${id}2" up
reachable() { # a closed port of the first host says so; a host out of reach says nothing
    local said
    said=$(ip netns exec "$id-2" timeout 1 bash -c "exec 3<>/dev/tcp/$NET.1/9" 2>&1) || true
    [[ $said == *refused* ]]
}
wait_for 20 reachable || fail "the link does not come up again"
train cut --resume || fail "the run does not go on"
same_losses whole cut $STEPS || fail "the losses are not those of the run that was left alone"
echo "cut: resumed, as the undisturbed run"

train bereft &
launch=$!
wait_for 60 has_steps bereft 200 || fail "bereft does not train"
for process in $(ip netns pids "$id-2"); do
    [ "$(readlink "/proc/$process/exe")" != "$BIFOCAL" ] || victim=$process
done
kill -9 "$victim"
! wait $launch || fail "a run that lost a rank says that it is done"
wait_for 10 no_process || fail "processes are left after the death of a rank"
grep -h "rank 1 (host2, process $victim) died" bereft/log.txt || fail "rank 0 does not say who died"
