"""The command line, which may import everything else.

SIGUSR1, by which SLURM announces the end of a job's time, ends a process without a handler for it. It is blocked here,
before the imports that take seconds, and delivered when training starts
(foundation/training/fault_tolerance/preemption.py).
"""

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
