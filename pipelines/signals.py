"""How a command ends that is told to, by Ctrl-C or SIGTERM: in one line, its tables put back."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """The command is to end; what is on the way out puts back what it has begun."""


class Signals:
    """Handlers of SIGINT and SIGTERM for a process that runs one command.

    The first signal raises :class:`Interrupted` in the main thread, after Spark's jobs are
    cancelled; a further one, or one after the command's end, ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        #: Whether the command is over, so that nothing has to be put back.
        self.over = False

    def install(self) -> None:
        """Handle the signals, but for those that the process was started without, as by nohup."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def leave(self) -> NoReturn:
        """End the process as what has received the signal, with nothing more said.

        Exit hooks would wait for threads that wait for Spark. The JVM ends when its input does.
        """
        assert self.received is not None
        print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = number
        if self.over or not first:
            self.leave()
        # What breaks because of it is no news.
        logging.disable()
        sys.unraisablehook = lambda unraisable: None
        _cancel_jobs()
        raise Interrupted


def _cancel_jobs() -> None:
    """Cancel Spark's jobs, if it runs, on a connection of its own.

    The answer to the call that was broken off is still to come on the main thread's connection: no
    later call may take it for its own.
    """
    # Spark may be amid its import or its start.
    contexts = getattr(sys.modules.get("pyspark"), "SparkContext", None)
    context = getattr(contexts, "_active_spark_context", None)
    if context is None or getattr(context, "_jsc", None) is None:
        return
    client = context._gateway._gateway_client
    if hasattr(client, "thread_connection"):  # else each call takes one that no other has
        client.thread_connection.connection = None
    try:
        context.cancelAllJobs()
    except Exception:  # the JVM may have been told to end, too
        return
