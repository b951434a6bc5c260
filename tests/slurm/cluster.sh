#!/bin/bash
# One Slurm node on this machine, from Debian's packages, with a GPU that is /dev/null: cluster.sh up | down. As root, for tests.
set -eu
HERE=/var/tmp/msmix-slurm

up() {
    if ! command -v slurmctld slurmd sbatch munged > /dev/null; then
        apt-get update -qq || true
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurmd slurmctld slurm-client munge > /dev/null
    fi
    down
    mkdir -p "$HERE/state" "$HERE/spool" /etc/slurm /run/munge
    chown munge: /run/munge /var/lib/munge /var/log/munge
    [ -f /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none; chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
    local name memory; name=$(hostname -s); memory=$(awk '/MemTotal/ {print int($2/1024*0.9)}' /proc/meminfo)
    cat > /etc/slurm/slurm.conf <<END
ClusterName=msmix
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$HERE/state
SlurmdSpoolDir=$HERE/spool
SlurmctldPidFile=$HERE/slurmctld.pid
SlurmdPidFile=$HERE/slurmd.pid
SlurmctldLogFile=$HERE/slurmctld.log
SlurmdLogFile=$HERE/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=2
MinJobAge=600
GresTypes=gpu
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory Gres=gpu:1
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP
END
    echo "NodeName=$name Name=gpu File=/dev/null" > /etc/slurm/gres.conf
    runuser -u munge -- munged
    slurmctld
    slurmd
    for _ in $(seq 60); do sinfo -h -o %t 2> /dev/null | grep -q '^idle' && return; sleep 1; done
    echo 'the node did not come up:' >&2; tail -n 20 "$HERE"/*.log >&2; exit 1
}

down() {
    for o in slurmd slurmctld; do
        [ -f "$HERE/$o.pid" ] && kill "$(cat "$HERE/$o.pid")" 2> /dev/null && sleep 1
    done
    [ -f /run/munge/munged.pid ] && kill "$(cat /run/munge/munged.pid)" 2> /dev/null && sleep 1
    rm -rf "$HERE" /etc/slurm/slurm.conf /etc/slurm/gres.conf
}

"$1"
