# What the job scripts of this folder share; they read it from the folder that the job was submitted from.
#
# Variables that steer it, all optional:
#   PDFX_PYTHON      the interpreter (.venv/bin/python where that exists, else python3)
#   PDFX_WRAPPER     words before the interpreter, such as "apptainer exec --nv pdfx.sif"
#   PDFX_SRUN        further options of srun, such as "--container-image=pdfx.sqsh"
#   PDFX_RESTARTS    times that SLURM may start the job again after a rank hung or vanished (3)
#   PDFX_MAX_EXIT    seconds until srun ends the other tasks after the first one has ended (60)

if [ -z "${PDFX_PYTHON:-}" ]; then
    PDFX_PYTHON=python3
    if [ -x .venv/bin/python ]; then PDFX_PYTHON=.venv/bin/python; fi
fi

STOPPED=75     # the run saved a checkpoint because it was asked to stop
UNPREPARED=138 # it was asked to stop before it listened, and so had nothing to save
# A rank hung or vanished, or a signal ended it (SIGABRT, SIGBUS, SIGKILL mostly for want of memory, SIGSEGV), as srun or DeepSpeed reports it.
LOST="76|13[4579]|24[579]|250"

# Where rank 0 will be: an address and not a name, which need not resolve inside of jobs and containers.
master_address() {
    local first address
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | head -n 1)
    echo "${address:-$first}"
}

# Jobs that share a node get ports of their own, and a job that is started again another one than before.
master_port() {
    echo $((10000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000))
}

announce() {
    echo "Job $SLURM_JOB_ID (start $((${SLURM_RESTART_COUNT:-0} + 1))) on $SLURM_JOB_NODELIST, $(date '+%Y-%m-%d %H:%M:%S')."
    echo "GPUs of a node: ${SLURM_GPUS_ON_NODE:-0}. Rank 0 at $MASTER_ADDR:$MASTER_PORT. Interpreter: ${PDFX_WRAPPER:+$PDFX_WRAPPER }$PDFX_PYTHON"
}

# Wait until a process has ended, whatever signals this shell handles meanwhile, each of which sets "signalled"; "code" is the process's then.
wait_through_signals() {
    local result
    signalled=1 code=127
    while [ "$signalled" = 1 ]; do
        signalled=0
        wait "$1"
        result=$?
        # 127: there is nothing to wait for, because the signal came after the end.
        if [ "$result" != 127 ]; then code=$result; fi
    done
}

# Run the given srun command to its end and end with its code. SIGUSR1, which SLURM sends to the job script before the time is up
# (--signal=B:USR1@SECONDS), is handed on to the ranks: they save a checkpoint and stop, and the job goes back into the queue. So it does where SLURM itself asked
# the ranks to stop, to give their nodes to another job; and where a rank hung or vanished, but not for ever.
run_and_requeue() {
    local asked=0 step losses=lost-$SLURM_JOB_ID count
    "$@" &
    step=$!
    trap 'asked=1; signalled=1; echo "Asked to stop by SIGUSR1; the ranks save a checkpoint."; kill -USR1 $step' USR1
    wait_through_signals $step
    trap - USR1
    echo "The ranks ended with code $code, $(date '+%Y-%m-%d %H:%M:%S')."
    count=$(cat "$losses" 2> /dev/null || echo 0)
    if [[ "$code" =~ ^($STOPPED|$UNPREPARED)$ ]] && [ "$asked" = 1 ]; then
        requeue
    elif [ "$code" != 0 ] && is_preempted; then
        requeue
    elif [[ "$code" =~ ^($LOST)$ ]] && [ "$count" -lt "${PDFX_RESTARTS:-3}" ]; then
        echo $((count + 1)) > "$losses"
        requeue
    fi
    rm -f "$losses"
    exit "$code"
}

is_preempted() {
    scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q " PreemptTime=[0-9]"
}

# SLURM ends this job in the course of it, and starts it again with the same number.
requeue() {
    echo "Putting job $SLURM_JOB_ID back into the queue; it resumes from the newest checkpoint."
    scontrol requeue "$SLURM_JOB_ID" && sleep 120
}
