"""A fresh Python process with another PYTHONHASHSEED, in which a method goes on from its checkpoint.

What a method keeps in a class or a module is not lost while its process lives; here it is. The new process gets the
same import path, and nothing is imported from the working directory before that is set.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import inspect
import os
import pickle
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from everlearn import checkpoint
from everlearn.errors import ContractError, EverlearnError, printable
from everlearn.features import FeatureStore, using_store
from everlearn.method import Method
from everlearn.session import restore_method
from everlearn.streams.inputs import Input
from everlearn.testing.case import Case, ask_all, lasting, session, snapshot

LONGEST = 600
"""Seconds for one method; toy streams take a few."""

START = "import sys; sys.path[:] = sys.argv[1].split(chr(10)); from everlearn.testing.fresh import serve; serve()"

FORKS = sys.platform == "linux"
"""Whether a process that has imported torch can be forked: elsewhere its libraries may not survive that."""

ANSWERS, STATE, RESULTS = "answers ", "state ", "results"
"""How the names of the tensors begin: the finished run's answers, and at the end of the stopped run its state and its
results."""

UNBUILT = 3
"""The exit code where the class could not be built, so that nothing was checked."""

is_fresh = False
"""Whether this process is such a process."""


class Unbuilt(Exception):
    """The class cannot be built in another process."""


@dataclass(frozen=True)
class Origin:
    """Where a class was defined, so that another process can define it again.

    Args:
        module: its name there. file: and its source file.
        path: the class's qualified name.
        source: of a class that is defined in a function, and that nothing can import.
    """

    module: str
    file: str | None
    path: str = ""
    source: str | None = None

    @staticmethod
    def of(cls: type[Method]) -> Origin:
        module = sys.modules.get(cls.__module__)
        spec = getattr(module, "__spec__", None)  # of a program that was started by `python -m`
        name = spec.name if cls.__module__ == "__main__" and spec else cls.__module__
        source = None
        if "<locals>" in cls.__qualname__:
            functions = [value for value in vars(cls).values() if isinstance(value, FunctionType)]
            outside = {name for f in functions for name in f.__code__.co_freevars} - {"__class__"}
            if outside:
                raise Unbuilt(f"it is defined in a function and uses the function's {', '.join(sorted(outside))}")
            with suppress(OSError, TypeError):
                source = textwrap.dedent(inspect.getsource(cls))
        file = getattr(module, "__file__", None)
        if source is None and ("<locals>" in cls.__qualname__ or (name == "__main__" and file is None)):
            raise Unbuilt("it is defined in an interactive session, and no file holds its source")
        return Origin(name, os.path.abspath(file) if file else None, cls.__qualname__, source)

    def find(self) -> type[Method]:
        """The class, in a process that has not imported it yet."""
        module = self.imported()
        if self.source is None:
            return attrgetter(self.path)(module)
        exec(compile(self.source, self.file or self.module, "exec"), vars(module))
        return vars(module)[self.path.rpartition(".")[2]]

    def imported(self) -> Any:
        """The module, imported by its name, or from its file where that name finds another one or nothing."""
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(self.module) if self.module != "__main__" else None
            if spec and (self.file is None or spec.origin in (None, self.file)):
                return importlib.import_module(self.module)
        # A program is not run again: its name is another one, as where multiprocessing starts a process.
        name = self.module.replace("__main__", "__fresh_main__")
        spec = importlib.util.spec_from_file_location(name, self.file) if self.file else None
        if spec is None or spec.loader is None:
            raise Unbuilt(f"its module {self.module} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = sys.modules[self.module] = module
        spec.loader.exec_module(module)
        return module


@dataclass(frozen=True)
class Request:
    """What a fresh process shall do with a method that is not in it yet.

    Args:
        goal: of the toy stream.
        finished: a run's folder: its last checkpoint is loaded and asked. None learns the stream from its beginning.
        stopped: the folder of a run that was stopped, to be resumed.
        asked: the test inputs of every task, without labels and ids.
        store: the folder of the feature store.
        since: when the check began, in seconds since 1970.
        into: the file for the results.
    """

    goal: str
    finished: Path | None
    stopped: Path | None
    asked: list[list[Input]]
    store: Path
    since: float
    into: Path


class FreshProcess:
    """A process in which a method has never been. It imports torch from now on, and works when it is asked.

    Raises:
        Unbuilt: the class, its settings or its backbone cannot be sent to another process.
    """

    def __init__(self, cls: type[Method], settings: dict[str, Any], backbone: Callable[[], Any]) -> None:
        origins = [Origin.of(cls)]
        function: Any = backbone.func if isinstance(backbone, partial) else backbone
        try:
            given = pickle.dumps((settings, backbone))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Unbuilt(f"its settings or its backbone cannot be sent there ({printable(error)})") from error
        if function.__module__ != cls.__module__:
            origins.append(Origin(function.__module__, getattr(sys.modules[function.__module__], "__file__", None)))
        around = list(sys.path), os.getcwd(), dict(os.environ), torch.get_num_threads()
        self.head = pickle.dumps((origins, given, around))
        _server()

    def carry_out(self, requests: list[Request]) -> list[dict[str, torch.Tensor]]:
        """For each request the answers by task, and the state after the resumed run.

        Raises:
            ContractError: the method fails there.
            Unbuilt: the class cannot be imported there.
        """
        server, words = _server(), requests[0].into.with_suffix(".txt")
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            pickle.dump((self.head, requests, words), server.stdin)
            server.stdin.flush()
            code = int(server.stdout.readline())
            if not FORKS:
                server.wait()
        except (OSError, ValueError) as error:
            raise Unbuilt("a second Python process ended without an answer") from error
        except BaseException:  # Ctrl-C: the answer that is still to come is not that of the next request
            server.kill()
            server.wait()
            raise
        said = printable(words.read_text(encoding="utf-8"), 600) if words.exists() else f"ended with code {code}"
        if code == UNBUILT:
            raise Unbuilt(said)
        if code:
            raise ContractError(f"in a fresh process it fails: {said}")
        return [load_file(request.into) for request in requests]


_running: subprocess.Popen[bytes] | None = None


def _server() -> subprocess.Popen[bytes]:
    """The process that has imported torch and everlearn, and forks a fresh process for each check; it is started with
    the first check. Where forking is not safe, it does one check itself, and is started again."""
    global _running
    if _running is None or _running.poll() is not None:
        seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        _running = subprocess.Popen(
            [sys.executable, "-c", START, "\n".join(map(str, sys.path))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": seed}, start_new_session=True,
        )  # fmt: skip
        atexit.register(_running.communicate)  # which closes its input: that ends it
    return _running


# -- in the other process ----------------------------------------------------------------------
def serve() -> None:
    """Carry out what comes from standard input, until that is closed."""
    global is_fresh
    is_fresh = True
    answers, nothing = os.fdopen(os.dup(1), "w"), os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # what a method prints is no answer
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)  # from the process that started this one, through a pipe
        except EOFError:
            return
        if not FORKS:
            print(_work(*message), file=answers, flush=True)
            return
        child = os.fork()
        if not child:
            os.dup2(nothing, 0)
            os.dup2(nothing, 2)
            signal.alarm(LONGEST)
            os._exit(_work(*message))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _work(head: bytes, requests: list[Request], words: Path) -> int:
    """Carry out the requests and return the exit code: what went wrong is written to the file `words`."""
    code = UNBUILT
    try:
        origins, given, (sys.path[:], folder, environment, threads) = pickle.loads(head)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        importlib.invalidate_caches()
        for origin in origins[1:]:
            origin.imported()
        cls = origins[0].find()
        case = Case(cls, *pickle.loads(given))
        code = 1
        read = read_since(requests[0].since, [requests[0].store, *(request.into.parent for request in requests)])
        with using_store(FeatureStore(requests[0].store)):
            for request in requests:
                found = _carry_out(case, request)
                save_file({name: tensor.clone().contiguous() for name, tensor in found.items()}, request.into)
        if read:
            raise ContractError(f"it reads {read[0]}, which was written while it learned: keep state in the state "
                                "dict, not in files")  # fmt: skip
    except BaseException as error:
        reason = str(error) if isinstance(error, EverlearnError) else f"{type(error).__name__}: {error}"
        words.write_text(reason, encoding="utf-8")
        return code
    return 0


def _carry_out(case: Case, request: Request) -> dict[str, torch.Tensor]:
    method = case.build()
    if request.finished is None:
        return _answers(case.teach(method, case.toy(request.goal).tasks), request.asked)
    folder = request.finished / "checkpoints"
    name = checkpoint.newest(folder)
    assert name is not None
    restore_method(method, checkpoint.load(folder, name))
    # First, while no stream with labels exists in this process.
    found = _answers(method, request.asked)
    resumed = session(case.build(), case.toy(request.goal), request.stopped)
    resumed.restore()
    result = resumed.learn()
    state = {STATE + name: tensor for name, tensor in snapshot(resumed.method).items()}
    return {**found, **state, RESULTS: as_tensor(lasting(result))}


def _answers(method: Method, asked: list[list[Input]]) -> dict[str, torch.Tensor]:
    return {ANSWERS + name: tensor for name, tensor in ask_all(method, asked).items()}


def as_tensor(text: str) -> torch.Tensor:
    """The bytes of a text."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def read_since(since: float, allowed: Sequence[Path]) -> list[str]:
    """Files that this process reads from now on though they were written after `since`, not by itself and not in
    the allowed folders, and that are no source code. The list grows as they are read."""
    found: list[str] = []
    own: set[str] = set()
    apart = ("/proc/", "/sys/", "/dev/", *(f"{folder.resolve()}{os.sep}" for folder in allowed))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        file, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2]
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            own.add(file)
        elif file not in own and not file.startswith(apart) and not file.endswith((".py", ".pyc")):
            with suppress(OSError):
                status = os.stat(file)
                if stat.S_ISREG(status.st_mode) and status.st_mtime > since:
                    found.append(file)

    sys.addaudithook(hook)
    return found
