"""Run a command as process 1 of a container, which becomes the parent of every orphan process."""

import contextlib
import os
import signal
import sys
from types import FrameType

_INIT_PID = 1


def run_in_child() -> None:
    """Continue in a child process if this is process 1. Process 1 reaps ended processes and forwards signals.

    Without this, ended orphans would stay as zombies until no new process can start. Process 1 exits with
    the status of the child.
    """
    if os.getpid() != _INIT_PID:
        return
    # Do not forward signals that no process can handle, and signals that concern process 1 itself.
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU}
    kept |= {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    forwarded = {number for number in signal.valid_signals() - kept if signal.getsignal(number) is not None}
    # The kernel keeps signals until this process can forward them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    child = os.fork()
    if child == 0:
        _lead_own_group()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def forward(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in forwarded:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            sys.exit(code if code >= 0 else 128 - code)


def _lead_own_group() -> None:
    """Let the terminal send Ctrl-C to this process only. Otherwise process 1 would forward it again."""
    os.setpgid(0, 0)
    if os.isatty(0):
        previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, previous)
