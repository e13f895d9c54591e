"""Calls in child processes, so that a file that crashes a library does not end the run.

HDF5, LibRaw and other decoders are written in C: a damaged file may end the process that looks at
it. Whatever opens an input therefore runs in a child, forked from this process: it has everything
imported and shares its memory. A keeper, forked while nothing runs, forks the children and
replaces those that die, so that no child is ever forked from a process with working threads.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import threading
import traceback
import warnings
from contextlib import suppress
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, NoReturn, Self

from calibdask.errors import CalibdaskError, CorruptedInput, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = ["Crashed", "Guard", "Unforeseen", "unreadable"]


class Crashed(Exception):
    """A call ended its process.

    Attributes
    ----------
    exit_code : int
        Code of the process; negative for a signal.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"killed by {_signal_name(-exit_code)}" if exit_code < 0 else "exited")

    @property
    def out_of_memory(self) -> bool:
        """Whether the process was killed from outside, as by a system that is out of memory."""
        return self.exit_code == -signal.SIGKILL


class Unforeseen(CalibdaskError):
    """A call raised an exception that is not one of this package: a bug, or damage nobody foresaw.

    Attributes
    ----------
    kind : str
        Name of the exception.
    trace : str
        Its traceback, for the log.
    """

    def __init__(self, message: str, kind: str = "", trace: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.trace = trace


def unreadable(where: str, crash: Crashed) -> CorruptedInput:
    """Return the error of an input whose reading ended the process that read it."""
    return CorruptedInput(
        f"{where}: damaged: what reads it was {crash}; copy or produce it again, or leave it out"
    )


class Guard:
    """A function whose calls run in child processes.

    Parameters
    ----------
    function : callable
        What is called. It is inherited by the children, so it may be a closure.
    children : int
        How many calls run at a time.
    prepare : callable
        Called before the first child is forked: what it loads is loaded once for all.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        children: int = 1,
        *,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._prepare = prepare
        self._function = function
        self._keeper: int | None = None
        self._busy = 0
        self._closed = False
        self._idle: list[Connection[Any, Any]] = []
        self._change = threading.Condition()
        self._children = children

    def start(self) -> None:
        """Fork the keeper, if that was not done before.

        Raises
        ------
        TransientError
            The system does not allow another process.
        """
        if self._keeper is not None:
            return
        self._prepare()
        pairs = [Pipe() for _ in range(self._children)]
        gc.freeze()  # else a collection in a child copies what is shared
        try:
            self._keeper = _fork()
        except OSError as error:
            raise TransientError(
                f"cannot start a process to look at the inputs: {error.strerror}; end some others"
                " or raise the limit (ulimit -u), then run the same command again"
            ) from error
        if self._keeper == 0:
            _keep(self._function, pairs)
        gc.unfreeze()
        with suppress(OSError):  # the child may have done so first
            os.setpgid(self._keeper, self._keeper)
        for _, theirs in pairs:
            theirs.close()
        self._idle = [ours for ours, _ in pairs]

    def __call__(self, *arguments: Any) -> Any:
        """Call the function in a child, and give what it returns.

        Raises
        ------
        CalibdaskError
            As the function does.
        Unforeseen
            The function raised anything else.
        Crashed
            The child ended.
        """
        with self._change:
            while not self._closed and self._keeper is not None and not self._idle:
                self._change.wait()
            if self._closed:  # by a thread that was interrupted
                raise TransientError("inputs are not opened any more: the run ends")
            self.start()
            connection = self._idle.pop()
            self._busy += 1
        try:
            connection.send(arguments)
            what, value = connection.recv()
        except (EOFError, BrokenPipeError) as error:
            raise TransientError(
                "the process that opens inputs was ended from outside: run the same command again"
            ) from error
        with self._change:
            self._idle.append(connection)
            self._busy -= 1
            self._change.notify()
        match what:
            case "crashed":
                raise Crashed(value)
            case "raised":
                raise value
            case "unforeseen":
                raise Unforeseen(*value)
            case "here":  # what cannot be sent did not crash the child, and will not crash us
                return self._function(*arguments)
        return value

    def close(self) -> None:
        """End the children, at once where one is at work; no call is made any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._keeper is None:
            return
        if self._busy:
            with suppress(ProcessLookupError):
                os.killpg(self._keeper, signal.SIGKILL)
        for connection in self._idle:
            connection.close()
        with suppress(ChildProcessError):
            os.waitpid(self._keeper, 0)
        self._keeper, self._busy, self._idle = None, 0, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns where this process has threads. Those that live while a guard starts write
        # progress and heartbeats; their locks are of no use to the children.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _keep(
    function: Callable[..., Any],
    pairs: list[tuple[Connection[Any, Any], Connection[Any, Any]]],
) -> NoReturn:
    """Have a child for each pair of connections until their other ends are closed."""
    try:
        os.setpgid(0, 0)  # Ctrl-C is for the process that called, which ends its children
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        faulthandler.disable()
        logging.disable(logging.CRITICAL)  # a handler's lock may have been held in the fork
        for ours, _ in pairs:
            ours.close()
        children: dict[int, int] = {}

        def start(place: int) -> None:
            child = _fork()
            if child == 0:
                _serve(function, pairs[place][1])
            children[child] = place

        for place in range(len(pairs)):
            start(place)
        while children:
            child, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            place = children.pop(child)
            if code:
                pairs[place][1].send(("crashed", code))
                start(place)
    finally:
        os._exit(0)


def _serve(function: Callable[..., Any], connection: Connection[Any, Any]) -> NoReturn:
    code = 1
    try:
        while True:
            try:
                arguments = connection.recv()
            except EOFError:
                code = 0
                break
            answer = _answer(function, arguments)
            try:
                connection.send(answer)
            except Exception:  # noqa: BLE001  whatever keeps an object from being sent
                connection.send(("here", None))
    finally:
        os._exit(code)


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "returned", function(*arguments)
    except CalibdaskError as error:
        return "raised", error
    except Exception as error:  # noqa: BLE001  told in the parent, with its traceback
        trace = "".join(traceback.format_exception(error))
        return "unforeseen", (str(error), type(error).__name__, trace)
