# What deepspeed.sbatch runs on each node: DeepSpeed's launcher for the ranks of this node.

source launch/slurm/common.sh || exit 2

# The launcher numbers GPUs from 0, whichever ones SLURM gave.
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ] && [ "$CUDA_VISIBLE_DEVICES" != "$(seq -s, 0 "$(tr -cd , <<< "$CUDA_VISIBLE_DEVICES" | wc -c)")" ]; then
    echo "Node $SLURM_NODEID got the GPUs $CUDA_VISIBLE_DEVICES, but DeepSpeed's launcher would take the first ones of the node;" \
        "use launch/slurm/srun.sbatch, which takes those that it gets." >&2
    exit 2
fi

# SLURM signals this shell, and on some clusters all that it starts. The launcher and the ranks are of its process group: the launcher does not listen, the ranks do,
# once they are up; so they are signalled until they end.
pass_on() {
    signalled=1
    trap '' USR1 TERM
    while kill -0 "$launcher" 2> /dev/null; do
        kill -USR1 0
        sleep 2
    done
}

# shellcheck disable=SC2086  # the wrapper may be several words
(trap '' USR1 TERM && exec ${PDFX_WRAPPER:-} "$PDFX_PYTHON" -m deepspeed.launcher.runner --hostfile "$HOSTFILE" --no_ssh --node_rank "$SLURM_NODEID" \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --module pdfx.train "$@") &
launcher=$!
trap pass_on USR1 TERM
wait_through_signals $launcher
exit "$code"
