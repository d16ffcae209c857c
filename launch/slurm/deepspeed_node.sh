# What deepspeed.sbatch runs on each node: DeepSpeed's launcher for the ranks of this node.
#
# The launcher would be killed by the SIGUSR1 that reaches all processes of the job; ignored here, the signal still reaches the ranks, which listen to it.
trap '' USR1
# shellcheck disable=SC2086  # the wrapper may be several words
exec ${PDFX_WRAPPER:-} "$PDFX_PYTHON" -m deepspeed.launcher.runner --hostfile "$HOSTFILE" --no_ssh --node_rank "$SLURM_NODEID" \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" launch/train.py "$@"
