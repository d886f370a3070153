"""A session: one run in progress, task after task, evaluated, saved as it goes and resumed to the same bits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from everlearn import calibration, checkpoint
from everlearn.backbones.backbone import Backbone
from everlearn.engine import Learning, Listener, Training, learn, replay
from everlearn.errors import EverlearnError, EverlearnWarning, as_word, near, one_line
from everlearn.evaluation import Evaluation
from everlearn.features import default_store
from everlearn.files import append_lines, rewrite_lines
from everlearn.held_out import KEEP, HeldOut
from everlearn.interrupts import Interrupted, Stop
from everlearn.listeners import Bar, Clock, Log, encoding
from everlearn.method import Method
from everlearn.presentations import FILE, Presentations
from everlearn.progress import Progress
from everlearn.results import Measured, Result, assemble, reset_peak_memory, rounding, write_results
from everlearn.schemas.logs import read_log, read_presentations
from everlearn.schemas.states import State
from everlearn.schemas.values import valid
from everlearn.streams.stream import Stream, Task

SOON = 20.0  # seconds: a task boundary this close to the last checkpoint is cheaper to repeat than to save


@dataclass
class Session(Listener):
    """One run in progress.

    Args:
        folder: the run's folder; None keeps nothing on disk.
        save_minutes: a checkpoint at least this often while a task is trained. save_steps: and every so many steps.
        progress: whether to show progress bars.
        keep: how many held-out examples the folder keeps.
        validate: whether the validation examples are scored at the end.
        task_index, step: where in the stream the run is.
        measured: what it has found out so far.
    """

    method: Method
    stream: Stream
    config: dict[str, Any]
    folder: Path | None
    save_minutes: float
    save_steps: int | None
    progress: bool
    keep: int = KEEP
    validate: bool = False
    task_index: int = 0
    step: int = 0
    measured: Measured = field(default_factory=Measured)
    stop: Stop = field(default_factory=Stop)
    logs: list[Log | Presentations] = field(default_factory=list)
    temperature: float | None = None
    _training: Training | None = None
    _last_save: float = field(default_factory=time.monotonic)
    _counted: dict[str, float] = field(default_factory=dict)
    _clock: Clock | None = None

    def learn(self) -> Result:
        """Every task that is left, then the results."""
        reset_peak_memory()
        self._counted = _work_of_encoders()
        evaluation = Evaluation(self.stream, self.method, self.folder, self.keep)
        doing = f"{self.config['method']['name']} on {near(self.stream.name)}"
        progress = Progress(len(self.stream), doing, self.progress, self.task_index)
        with self._interruptible(), self._warnings(), progress as bar:
            for task in self.stream.tasks[self.task_index :]:
                self._learn_task(task, evaluation)
                bar.advance(1, f"score {self.measured.rows[-1]['all']:.3f}")
            held_out = self._hold_out()
            scores = self._scores(evaluation)
            calibrated = self._calibrate(held_out, scores)
            known = evaluation.among_known(self.measured.rows[-1]["scores"], scores)
            validation = self._validate(evaluation)
            if self.folder:
                self._save(keep=1, held_out=held_out)
        searched = evaluation.searched(self.measured.recall_before)
        self._count_work()
        kept = held_out.stored_bytes() if self.keep else 0
        rate = evaluation.domains.documents_per_second
        results = assemble(self.method, self.stream, self.config, self.measured, rate, calibrated, kept,
                           evaluation.answers(), searched, known, validation)  # fmt: skip
        if self.folder:
            write_results(self.folder, results)
        return Result(results, self.folder)

    def _learn_task(self, task: Task, evaluation: Evaluation) -> None:
        measured = self.measured
        if self.step == 0:
            measured.seconds = [*measured.seconds[: task.index], {}]
        self._clock = clock = Clock(measured.seconds[-1])
        if self.step == 0:
            if task.index == 0:
                measured.initial, measured.untouched = evaluation.initial(), evaluation.unseen.untouched()
                measured.general = evaluation.general.untouched()
            measured.before = evaluation.before(task)
            measured.recall_before = evaluation.recall_before
            clock.stop("evaluate")
        bar = Bar(f"task {task.index + 1} of {len(self.stream)}", self.progress)
        self.logs = [] if self.folder is None else [
            Log(self.folder / "metrics.jsonl"), Presentations(self.folder, self.method)
        ]  # fmt: skip
        listeners = [clock, bar, *self.logs, self]
        training, self._training = self._training, None
        try:
            learn(self.method, task, *listeners, step=self.step, training=training)
        except BaseException as error:
            bar.close(type(error))
            self.method.presented = None
            raise
        measured.rows.append({
            **evaluation.after(task), "before": measured.before, "stored_bytes": checkpoint.stored_bytes(self.method),
        })  # fmt: skip
        clock.stop("evaluate")
        self.task_index, self.step = task.index + 1, 0
        if self.folder:
            line = {"task": task.index, "step": None, "score": measured.rows[-1]["all"],
                    "seconds": measured.seconds[-1]}  # fmt: skip
            append_lines(self.folder / "metrics.jsonl", [line])
            if self.stop.asked or self.save_steps or time.monotonic() - self._last_save > SOON:
                self._save()
        self._stop_if_asked()

    def stepped(self, learning: Learning) -> None:
        """Save where it is time to, and stop where that was asked."""
        self.step = learning.step
        self.measured.trainable = max(self.measured.trainable, learning.trainable)
        if learning.step == learning.steps:
            return
        by_steps = self.save_steps is not None and self.step % self.save_steps == 0
        is_due = by_steps or time.monotonic() - self._last_save > 60 * self.save_minutes
        if self.folder and (is_due or self.stop.asked):
            assert self._clock is not None
            self._clock.stop("train")  # so that a resumed run counts these seconds too
            self._save(learning.training())
        self._stop_if_asked()

    # -- held out ------------------------------------------------------------------------------
    def _hold_out(self) -> HeldOut:
        """What the temperature is fitted on, and a sample of the test examples for updates, of every task."""
        held_out = HeldOut(self.keep or KEEP)
        for task in self.stream if self.stream.goal == "classes" else ():
            held_out.calibration.add(calibration.held_out_of(self.method, task))
            held_out.add_test(task.test)
        return held_out

    def _scores(self, evaluation: Evaluation) -> torch.Tensor | None:
        """The scores (n, classes) of all test examples at the end; None where the goal is ranking, or the method must
        be told the task."""
        if self.stream.goal != "classes" or self.method.tags.task_at_test == "needed":
            return None
        clock = Clock(self.measured.seconds[-1])
        scores = evaluation.scores()
        clock.stop("calibrate")
        return scores

    def _validate(self, evaluation: Evaluation) -> dict[str, Any] | None:
        if not self.validate:
            return None
        clock = Clock(self.measured.seconds[-1])
        found = evaluation.on_validation()
        clock.stop("evaluate")
        return found

    def _calibrate(self, held_out: HeldOut, scores: torch.Tensor | None) -> dict[str, Any] | None:
        """Fit the temperature, and say how well the probabilities of the test examples then tell how often they are
        right; None where there are no scores of the kind."""
        if scores is None:
            return None
        clock, examples = Clock(self.measured.seconds[-1]), held_out.calibration.examples()
        self.temperature = calibration.fitted_temperature(self.method, examples)
        labels = torch.cat([task.test.labels for task in self.stream])
        clock.stop("calibrate")
        return calibration.measured(scores, labels, self.temperature, len(examples))

    def _count_work(self) -> None:
        """Add what encoders have done since this was called last, so that a resumed run counts what came before."""
        before, self._counted = self._counted, _work_of_encoders()
        for name, now in self._counted.items():
            setattr(self.measured, name, getattr(self.measured, name) + now - before[name])

    # -- saving and resuming -------------------------------------------------------------------
    @cached_property
    def _fingerprint(self) -> str:
        """That of the stream, for which every example is read, images from their files: once, and not at every save."""
        return self.stream.fingerprint()

    def _save(
        self, training: Training | None = None, keep: int = checkpoint.KEEP, held_out: HeldOut | None = None
    ) -> None:
        assert self.folder is not None
        self._count_work()
        for log in self.logs:
            log.flush()  # first: resume drops lines beyond the checkpoint, but cannot write one again
        tensors, plain = training or ({}, {})
        seen = self.stream.tasks[: self.task_index + bool(self.step)]
        state = {
            "task": self.task_index, "step": self.step, "measured": asdict(self.measured), "training": plain,
            "fingerprint": self._fingerprint, "backbone": self.method.backbone.settings, "rounding": rounding(),
            "origin": checkpoint.origin_hash(self.method), "tasks": [task.metadata() for task in seen],
            "temperature": self.temperature,
        }  # fmt: skip
        name = f"task-{self.task_index:03d}-step-{self.step:06d}"
        kept = held_out.state_dict() if held_out and self.keep else {}
        saved = checkpoint.Checkpoint(state, checkpoint.method_state(self.method), tensors, kept)
        checkpoint.save(self.folder / "checkpoints", name, saved, keep)
        self._last_save = time.monotonic()

    def restore(self) -> None:
        """Load the newest checkpoint of the folder; without one the run starts from its beginning."""
        assert self.folder is not None
        log, presentations = self.folder / "metrics.jsonl", self.folder / FILE
        checkpoint.put_back(self.folder / "checkpoints")
        name = checkpoint.newest(self.folder / "checkpoints")
        if name is None:
            rewrite_lines(log, [])
            presentations.unlink(missing_ok=True)
            return
        saved = load_saved(self.folder / "checkpoints", name)
        state = saved.state
        if state["fingerprint"] != self._fingerprint:
            raise EverlearnError(
                f"the data of stream '{self.stream.name}' has changed since {self.folder} was saved: "
                "restore the data, or start a new run"
            )
        restore_method(self.method, saved)
        if (other := state["rounding"]) != rounding():
            warning = f"begun with {other} and resumed with {rounding()}: the last digits may differ from one run"
            state["measured"]["warned"].append(warning)
        self.task_index, self.step, self.measured = state["task"], state["step"], Measured(**state["measured"])
        if self.step:
            self._training = saved.training, state["training"]
        position = (self.task_index, self.step)
        rewrite_lines(log, (line for line in read_log(log) if _position(line) <= position))
        if presentations.exists():
            kept = (line for line in read_presentations(presentations) if _position(line) <= position)
            rewrite_lines(presentations, kept)

    # -- stopping ------------------------------------------------------------------------------
    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Inside the block Ctrl-C saves and stops, also while the feature store encodes."""
        with (
            self.stop.on_ctrl_c() as is_main_thread,
            encoding(self.progress, self._stop_if_asked) if is_main_thread else nullcontext(),
        ):
            yield

    def _stop_if_asked(self) -> None:
        if self.stop.asked:
            name = self.config["method"]["name"]
            own = f" --method {as_word(name)}" if ":" in name else ""  # a folder never names code to run
            again = f"go on with: everlearn resume {as_word(self.folder)}{own}"
            how = again if self.folder else "nothing was kept: no folder given"
            inside = f"at step {self.step} of task {self.task_index + 1}"
            raise Interrupted(f"stopped {inside if self.step else f'after task {self.task_index}'}; {how}")

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        """Collect our own warnings for the report; everybody else's go where they went before."""
        show = warnings.showwarning

        def collect(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if issubclass(category, EverlearnWarning):
                if str(message) not in self.measured.warned:
                    self.measured.warned.append(str(message))
            else:
                show(message, category, *rest, **more)

        with warnings.catch_warnings():
            warnings.simplefilter("always", EverlearnWarning)
            warnings.showwarning = collect
            yield


def _work_of_encoders() -> dict[str, float]:
    """What encoders have done in this process, by the names that `Measured` has for it."""
    store = default_store()
    return {"passes": Backbone.passed, "encoded": store.encoded, "served": store.served,
            "encode_seconds": store.seconds, "pretrained_seconds": store.pretrained_seconds}  # fmt: skip


def load_saved(folder: Path, name: str) -> checkpoint.Checkpoint:
    """A checkpoint of a run, whose state is what a session saves.

    Raises:
        EverlearnError: it is damaged, or not of a run.
    """
    saved = checkpoint.load(folder, name)
    valid(saved.state, State, folder / name / "state.json", f"remove {folder / name}, or learn the run again")
    return saved


def restore_method(method: Method, saved: checkpoint.Checkpoint) -> None:
    """Replay the structure of the tasks seen, then load what was learned."""
    if saved.state["origin"] != checkpoint.origin_hash(method):
        raise EverlearnError(
            f"backbone '{method.backbone.name}' is not the one that the checkpoint was made with "
            "(its pre-trained weights differ): give the same weights"
        )
    with one_line("the checkpoint", "it does not belong to this method; learn the run again", EverlearnError):
        replay(method, [Task.from_metadata(metadata) for metadata in saved.state["tasks"]])
        # Between two tasks a method has no helpers, and those that an older checkpoint holds are not needed.
        helpers = () if saved.training else method.drop_helpers()
        state = {name: tensor for name, tensor in saved.method.items() if not name.startswith(helpers)}
        checkpoint.load_method_state(method, state)


def _position(line: dict[str, Any]) -> tuple[int, int]:
    """Where in the stream a line of metrics.jsonl was written: (tasks finished, steps in the next)."""
    return (line["task"] + 1, 0) if line["step"] is None else (line["task"], line["step"])
