#!/bin/sh
# Train on all GPUs of this machine:
#
#   examples/cluster/one_node.sh pretrain --data DATA --init ENCODERS --output runs/pretrain
#
# The same command continues an interrupted run: after a reboot, or after a signal, on which the run
# saves its step and exits with code 75. Closing the terminal is such a signal; under setsid or tmux
# the run goes on.
set -eu

# One process per GPU, or PROCESSES of them. --resume starts from step 0 if there is no checkpoint,
# so that first and later starts are one command. A process that dies is restarted 3 times.
# exec: a signal to this script is one to fiber.
exec fiber train "$@" --resume --processes "${PROCESSES:-auto}" --restarts 3
