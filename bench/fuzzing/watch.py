"""Runs one input and watches it: errors that escape, messages of more than one line, code of the input that runs,
files outside of the own folder, memory and time.

What happens is seen by an audit hook (PEP 578), which Python calls before it opens a file, imports a module or starts
a process. Libraries in C or Rust can write files unseen; for those the files of another user are out of reach, and a
folder of canaries is compared by the caller.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import re
import resource
import shlex
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from everlearn.errors import EverlearnError

SECONDS, GIB = 20, 2**30
MOST_BYTES = 2 * GIB
LEARNING_SECONDS = 3
"""A run that is learning is interrupted after this time: a long training is what the user asked for, and no hang."""
LONGEST = 1300
"""Characters of a message."""
CONTROLS, DIRECTIONS = ("Cc", "Cs", "Zl", "Zp"), ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Characters that change how a terminal shows others: their categories, and their classes of writing direction."""
EXIT_CODES = (0, 1, 2, 130)

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.fork")
CHANGES = {
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 2,
    "os.symlink": 2,
    "os.truncate": None,
    "os.chmod": 2,
    "os.chown": 3,
    "os.utime": 3,
}
"""Audit events that change the file system, and which of their arguments is the folder's descriptor."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = ("/dev/null", "/dev/tty", "/proc/", "/nonexistent")


@dataclass
class Case:
    """One input.

    Args:
        call: arguments of the command `everlearn`, or a Python function that reads the input.
        told: what it does, for the list of failures.
        environment: variables that are set for it.
        cwd: the working folder.
    """

    call: Sequence[str] | Callable[[], Any]
    told: str
    cwd: Path
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """One failure: its kind, what identifies it, and what is known beside that."""

    kind: str
    key: str
    detail: str


class Guard:
    """Collects what an input must not do. There is one for each process: a hook cannot be removed."""

    def __init__(self, own: Path) -> None:
        self.own = f"{os.path.realpath(own)}/"
        self.found: list[Failure] = []
        self.watching = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        self.watching = False  # the checks below open nothing, but may raise events of their own
        try:
            if problem := self._problem(event, args):
                kind, what = problem
                self.found.append(Failure(kind, f"{event} at {_place(_frames(sys._getframe()))}", what))
        finally:
            self.watching = True

    def _problem(self, event: str, args: tuple[Any, ...]) -> tuple[str, str] | None:
        if event in STARTS:
            return "code_run", repr(args)[:200]
        if event == "exec" and self._is_own(getattr(args[0], "co_filename", "")):
            return "code_run", f"code of {args[0].co_filename} ran"
        if event in ("import", "ctypes.dlopen"):
            files = [part for part in args[:2] if isinstance(part, str) and "/" in part]
            return next((("code_run", f"{file} was loaded") for file in files if self._is_own(file)), None)
        if event == "pickle.find_class":
            return "code_run", f"a pickle named {args[0]}.{args[1]}"
        if event == "builtins.input":
            return "hangs", "a question was asked"
        if event in ("socket.connect", "socket.getaddrinfo"):
            return "outside", f"network: {args[1:]!r}"[:200]
        for path in _changed(event, args):
            if not self._is_own(path) and not path.startswith(HARMLESS):
                return "outside", path
        return None

    def _is_own(self, path: str) -> bool:
        return f"{os.path.normpath(path)}/".startswith(self.own)


def _changed(event: str, args: tuple[Any, ...]) -> Iterator[str]:
    """The real paths of the files that the event writes to, creates or removes."""
    if event == "open":
        path, _, flags = args
        if not isinstance(path, int) and isinstance(flags, int) and flags & WRITING:
            yield os.path.realpath(os.fsdecode(path))
    elif event in ("os.rename", "os.link"):
        yield from (_entry(args[0], args[2]), _entry(args[1], args[3]))
    elif event in CHANGES and not isinstance(args[0], int):
        at = CHANGES[event]
        path = args[1] if event == "os.symlink" else args[0]
        yield _entry(path, args[at] if at is not None else -1)


def _entry(path: Any, descriptor: int) -> str:
    """The real path of an entry of a folder; the entry itself may be a link, and is not followed."""
    path = os.fsdecode(path)
    if descriptor not in (-1, None):
        path = os.path.join(f"/proc/self/fd/{descriptor}", path)
    folder, name = os.path.split(path.rstrip("/"))
    return os.path.join(os.path.realpath(folder), name)


def attempt(case: Case, guard: Guard, dump: TextIO) -> tuple[str, list[Failure]]:
    """Run the case and return the message of everlearn, empty if it accepted the input, and what went wrong.

    A crash, or more than 20 seconds, end the process.
    """
    guard.found.clear()
    before, path, modules = dict(os.environ), list(sys.path), set(sys.modules)
    os.environ.update(case.environment)
    os.chdir(case.cwd)
    _reset_peak()
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=dump)
    guard.watching = True
    try:
        with _learning_ends():
            said, failures = _command(case.call) if not callable(case.call) else _function(case.call)
    finally:
        guard.watching = False
        faulthandler.cancel_dump_traceback_later()
        os.chdir("/")
        os.environ.clear()
        os.environ.update(before)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if guard._is_own(getattr(sys.modules[name], "__file__", None) or "/"):
                del sys.modules[name]
    failures += guard.found
    if _peak() > MOST_BYTES:
        failures.append(Failure("over_2_gib", f"memory in {case.told.split()[0]}", f"{_peak() / GIB:.1f} GiB"))
    return said, failures


def _command(argv: Sequence[str]) -> tuple[str, list[Failure]]:
    from everlearn.cli import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="\n")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: Any = main(list(argv))
            out.flush()
    except KeyboardInterrupt:  # by `_learning_ends`
        return "", []
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException as error:
        return "", [_escaped(error)]
    err.flush()
    said = err.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]
    return said[said.rfind("everlearn: ") :].strip() if code == 2 else "", _judged(code, said)


def _judged(code: Any, said: str) -> list[Failure]:
    """What is wrong with an exit code and the text on standard error."""
    if code not in EXIT_CODES:
        return [Failure("tracebacks", f"exit code {code!r}", said[-300:])]
    if "Traceback (most recent call last)" in said:
        frames = re.findall(r'everlearn/([\w/]+\.py)", line \d+, in (\w+)', said)
        where = ":".join(frames[-1]) if frames else "elsewhere"
        return [Failure("tracebacks", f"printed {said.splitlines()[-1][:60]!r} at {where}", said[-300:])]
    if hidden := re.search(r"failed: (\w+(?:Error|Exception)): .*", said):  # by a comparison, which goes on
        return [Failure("tracebacks", f"a method failed with {hidden[1]}", hidden[0][:300])]
    start = said.find("everlearn: ")
    if code == 2 and start < 0:
        return [Failure("tracebacks", "exit code 2 without a message", said[-300:])]
    return _message(said[start:].removesuffix("\n")) if code == 2 else []


def _message(message: str) -> list[Failure]:
    """What is wrong with a message to the user: it must be one line of bounded length that any terminal can show."""
    head = re.sub(r"'.*|/\S*|\d+", "", message)[:60]
    if any(unicodedata.category(c) in CONTROLS or unicodedata.bidirectional(c) in DIRECTIONS for c in message):
        return [Failure("tracebacks", f"several lines or control characters: {head!r}", repr(message)[:400])]
    if len(message) > LONGEST:
        return [Failure("tracebacks", f"message too long: {head!r}", f"{len(message)} characters")]
    if re.search(r"MemoryError|can't allocate|bad_alloc|malloc of size|out of memory", message):
        return [Failure("over_2_gib", f"refused memory: {head!r}", message[:300])]
    return []


def _function(call: Callable[[], Any]) -> tuple[str, list[Failure]]:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            call()
    except EverlearnError as error:
        return str(error), _message(str(error))
    except KeyboardInterrupt:  # by `_learning_ends`
        return "", []
    except BaseException as error:
        return "", [_escaped(error)]
    return "", []


def _escaped(error: BaseException) -> Failure:
    frames = [(frame.filename, frame.name) for frame in reversed(traceback.extract_tb(error.__traceback__))]
    kind = "over_2_gib" if isinstance(error, MemoryError) or "can't allocate" in str(error) else "tracebacks"
    text = " ".join(str(error).split())[:200]
    deepest = Path(frames[0][0]).name if frames else ""
    return Failure(kind, f"{type(error).__name__} at {_place(frames)}", f"{text} (raised in {deepest})")


def _frames(frame: FrameType | None) -> list[tuple[str, str]]:
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    return found


def _place(frames: Sequence[tuple[str, str]]) -> str:
    """The innermost frame in everlearn: file and function."""
    for file, function in frames:
        if "/everlearn/" in file and "/site-packages/everlearn/" not in file:
            return f"everlearn/{file.rpartition('/everlearn/')[2]}:{function}"
    return f"{Path(frames[0][0]).name}:{frames[0][1]}" if frames else "nowhere"


def place_of_dump(dump: str) -> str:
    """The innermost frame in everlearn of what faulthandler has written."""
    return _place(re.findall(r'File "([^"]+)", line \d+ in (\S+)', dump))


@contextlib.contextmanager
def _learning_ends() -> Iterator[None]:
    """Inside the block a training is stopped as Ctrl-C stops it, so that long trainings cost no time here."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if any(file.endswith("/everlearn/engine.py") for file, _ in _frames(frame)):
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LEARNING_SECONDS, LEARNING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Refuse this process more than 4 GiB beyond what it has, so that no input can exhaust the machine's memory."""
    import everlearn.session

    everlearn.session.reset_peak_memory = lambda: None  # it would hide from us what was needed before
    now = 1024 * _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (now + 4 * GIB, now + 4 * GIB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) if found else 0


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    return 1024 * _status("VmHWM")


def spoken(argv: Sequence[str]) -> str:
    """The command as it may be typed, on one line."""
    return " ".join(shlex.quote(ascii(word)[1:-1] if not word.isprintable() else word) for word in argv)
