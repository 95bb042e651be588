"""The command line: everything that may import the rest.

SIGUSR1, with which SLURM says that a job's time is nearly up, ends a process that has no handler for it. It is held
back here, before the imports that take seconds, and delivered when training starts
(foundation/training/fault_tolerance/preemption.py).
"""

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
