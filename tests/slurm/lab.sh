#!/usr/bin/env bash
# A SLURM of two nodes, n1 and n2, on this one machine, for tests: its own munge, controller and daemons, no systemd. Needs root, slurm-wlm and munge.
#   lab.sh start FOLDER    prints nothing and returns when both nodes are idle; afterwards: export SLURM_CONF=FOLDER/slurm.conf
#   lab.sh node FOLDER n2  starts the daemon of a node again
#   lab.sh stop FOLDER
set -euo pipefail
action=$1
lab=$(readlink -f "$2")
export SLURM_CONF=$lab/slurm.conf

write_configuration() {
    local port cores
    # Three free ports in a row.
    port=$(python3 -c 'import random; print(random.randrange(30000, 50000, 4))')
    cores=$(($(nproc) > 4 ? $(nproc) : 4))
    cat > "$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$lab/munge/socket
SlurmctldPort=$port
SlurmctldPidFile=$lab/controller.pid
SlurmdPidFile=$lab/%n.pid
SlurmctldLogFile=$lab/controller.log
SlurmdLogFile=$lab/%n.log
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool.%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SlurmdTimeout=8
KillWait=5
NodeName=n[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=$cores RealMemory=2000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=lab Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
}

start() {
    mkdir -p "$lab"/{state,munge,spool.n1,spool.n2}
    chmod 755 "$lab" "$lab/munge"
    write_configuration
    head -c 128 /dev/urandom > "$lab/munge/key"
    chmod 400 "$lab/munge/key"
    chown -R munge:munge "$lab/munge"
    runuser -u munge -- munged --key-file="$lab/munge/key" --socket="$lab/munge/socket" --pid-file="$lab/munge/pid" --log-file="$lab/munge/log" \
        --seed-file="$lab/munge/seed"
    slurmctld -c -f "$SLURM_CONF"
    slurmd -N n1 -f "$SLURM_CONF"
    slurmd -N n2 -f "$SLURM_CONF"
    for _ in $(seq 120); do
        if [ "$(sinfo -h -N -o %T 2>/dev/null | sort -u)" = idle ]; then return; fi
        sleep 0.25
    done
    echo "The nodes did not come up; see the logs in $lab." >&2
    exit 1
}

stop() {
    for file in "$lab"/n2.pid "$lab"/n1.pid "$lab"/controller.pid "$lab"/munge/pid; do
        if [ -s "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi
    done
}

case $action in
    start) start ;;
    node) slurmd -N "$3" -f "$SLURM_CONF" ;;
    stop) stop ;;
    *) echo "lab.sh start|node|stop FOLDER" >&2; exit 2 ;;
esac
