"""Checkpoints: whole or not at all, checked when read, never unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from everlearn import checkpoint, methods
from everlearn.backbones.tiny import TinyBackbone
from everlearn.checkpoint import Checkpoint, load, newest, save
from everlearn.errors import EverlearnError
from everlearn.files import write_whole
from everlearn.testing import session, toy_stream


def example(value=1.0):
    method = {"head.weight": torch.full((3, 4), value), "seen": torch.tensor(7), "none": torch.empty(0)}
    training = {"random": torch.get_rng_state(), "optimizer.0.exp_avg": torch.randn(3, 4)}
    return Checkpoint({"task": 1, "step": 5, "score": 0.1 + 0.2, "nothing": None}, method, training)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- round trips -------------------------------------------------------------------------------
def test_what_is_saved_is_loaded_to_the_bit(tmp_path):
    saved = example()
    save(tmp_path, "task-001-step-000005", saved)
    found = load(tmp_path, "task-001-step-000005")
    assert equal(found.method, saved.method) and equal(found.training, saved.training)
    files = found.state.pop("files")
    assert found.state == {"format": 4, **saved.state}
    assert set(files) == {"held_out.safetensors", "method.safetensors", "training.safetensors"}
    names = sorted(path.name for path in (tmp_path / "task-001-step-000005").iterdir())
    assert names == ["held_out.safetensors", "method.safetensors", "state.json", "training.safetensors"]


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path, length):
    """Safetensors begin with the length of their header: one of 640 bytes begins with the bytes 80 02."""
    saved = example()
    tensors = next(
        tensors for padding in range(length)
        if (tensors := {"w" + "x" * padding: torch.ones(2)})
        and int.from_bytes(safetensors_bytes(tensors)[:8], "little") == length
    )  # fmt: skip
    save(tmp_path, "task-001-step-000005", Checkpoint(saved.state, tensors, {}))
    assert equal(load(tmp_path, "task-001-step-000005").method, tensors)


def test_tensors_that_share_memory_or_are_views_are_saved(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "half": whole.bfloat16()}
    save(tmp_path, "task-001-step-000000", Checkpoint({}, tensors, {}))
    assert equal(load(tmp_path, "task-001-step-000000").method, tensors)


def test_the_newest_two_are_kept(tmp_path):
    assert newest(tmp_path) is None
    for task, step in ((0, 900), (0, 1000), (1, 0), (1, 20)):
        save(tmp_path, f"task-{task:03d}-step-{step:06d}", example())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task-001-step-000000", "task-001-step-000020"]
    assert newest(tmp_path) == "task-001-step-000020"


@pytest.mark.parametrize("before, after", [
    ("task-999-step-000000", "task-1000-step-000000"), ("task-000-step-999999", "task-000-step-1000000"),
])  # fmt: skip
def test_the_order_of_checkpoints_is_that_of_their_numbers(tmp_path, before, after):
    for name in ("task-000-step-000001", before, after):
        save(tmp_path, name, example())
    assert newest(tmp_path) == after
    assert {path.name for path in tmp_path.iterdir()} == {before, after}


@pytest.mark.parametrize("name", [
    "task-x-step-y", "task-9999-step-1", "task-0999-step-000000", "task-999-step-000000.bak", "my-task-999-step-000000",
    "task-٩٩٩-step-٩٩٩٩٩٩", ".task-x", ".task-999-step-000000.old",
])  # fmt: skip
def test_what_only_resembles_a_checkpoint_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "task-999-step-999999").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "task-998-step-000000").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".task-998-step-000000.7").symlink_to(tmp_path / "elsewhere")
    for step in (1, 2, 3):
        save(tmp_path, f"task-000-step-{step:06d}", example())
    assert newest(tmp_path) == "task-000-step-000003"
    assert {path.name for path in tmp_path.iterdir()} == {
        name, "elsewhere", "task-999-step-999999", "task-998-step-000000", ".task-998-step-000000.7",
        "task-000-step-000002", "task-000-step-000003",
    }  # fmt: skip


def test_a_last_save_may_keep_one(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, f"task-000-step-{step:06d}", example())
    save(tmp_path, "task-001-step-000000", example(), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["task-001-step-000000"]
    save(tmp_path, "task-001-step-000000", example(2.0), keep=1)
    assert load(tmp_path, "task-001-step-000000").method["head.weight"][0, 0] == 2.0


def test_a_checkpoint_of_the_same_name_is_there_again_where_the_last_rename_fails(tmp_path, monkeypatch):
    save(tmp_path, "task-001-step-000000", example(1.0))
    rename = os.replace

    def last_rename(source, target):
        if os.path.basename(target) == "task-001-step-000000" and not str(source).endswith(".old"):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(EverlearnError, match="No space left"):
        patch.setattr(os, "replace", last_rename)
        save(tmp_path, "task-001-step-000000", example(2.0))
    assert load(tmp_path, "task-001-step-000000").method["head.weight"][0, 0] == 1.0
    save(tmp_path, "task-001-step-000000", example(3.0))
    assert load(tmp_path, "task-001-step-000000").method["head.weight"][0, 0] == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["task-001-step-000000"]


def test_the_pretrained_weights_are_not_in_a_checkpoint_and_changed_ones_are():
    frozen = methods.get("simplecil")(TinyBackbone())
    assert not [name for name in checkpoint.method_state(frozen) if name.startswith("backbone.")]
    with torch.no_grad():
        frozen.backbone.cls.add_(1)
    assert [name for name in checkpoint.method_state(frozen) if name.startswith("backbone.")] == ["backbone.cls"]
    trained = checkpoint.method_state(methods.get("finetune")(TinyBackbone()))
    assert {f"backbone.{name}" for name in TinyBackbone().state_dict()} <= set(trained)


SMALL = {"er": {"epochs": 1}, "ewc": {"epochs": 1}, "l2p": {"epochs": 1}, "lora": {"epochs": 1},
         "ranpac": {"width": 64, "epochs": 1}, "simplecil": {}}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_method_state_is_all_that_a_fresh_method_needs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    stream = toy_stream(tasks=2)
    method = methods.get(name)(TinyBackbone(), **SMALL[name], seed=3)
    session(method, stream).learn()
    save(tmp_path, "task-002-step-000000", Checkpoint({}, checkpoint.method_state(method), {}))
    fresh = methods.get(name)(TinyBackbone(), **SMALL[name], seed=3)
    for task in stream:
        fresh.begin_task(task.sealed())
    checkpoint.load_method_state(fresh, load(tmp_path, "task-002-step-000000").method)
    with torch.no_grad():
        assert torch.equal(fresh.eval().predict(stream[1].test.inputs), method.eval().predict(stream[1].test.inputs))


def test_a_state_of_another_method_or_size_is_refused():
    tiny, task = TinyBackbone(), toy_stream()[0]
    lora = methods.get("lora")(tiny, train="lora(size=2)")
    lora.begin_task(task.sealed())
    state = checkpoint.method_state(lora)
    for name, settings, reason in (
        ("finetune", {}, "unexpected"),
        ("lora", {"train": "lora(size=4)"}, "expected"),
    ):
        other = methods.get(name)(TinyBackbone(), **settings)
        other.begin_task(task.sealed())
        with pytest.raises(EverlearnError, match=f"does not fit the method.*{reason}") as error:
            checkpoint.load_method_state(other, state)
        assert "\n" not in str(error.value)
    with pytest.raises(EverlearnError, match=r"missing \['head.weight'"):
        checkpoint.load_method_state(lora, {n: t for n, t in state.items() if n != "head.weight"})


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.9), amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD without state": lambda p: torch.optim.SGD(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_to_the_same_bits(name, tmp_path):
    def start(values):
        parameters = [torch.nn.Parameter(value.clone()) for value in values]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.01}]
        return parameters, OPTIMIZERS[name](groups)

    def steps(parameters, optimizer, rounds):
        for number in rounds:
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * number)
            optimizer.step()

    parameters, optimizer = start([torch.ones(3), torch.ones(2, 2)])
    steps(parameters, optimizer, range(1, 4))
    tensors, plain = checkpoint.optimizer_state(optimizer)
    save(tmp_path, "task-000-step-000003", Checkpoint({"plain": plain}, {}, tensors))
    again, resumed = start(parameters)
    found = load(tmp_path, "task-000-step-000003")
    checkpoint.load_optimizer_state(resumed, found.training, found.state["plain"])
    for pair in ((parameters, optimizer), (again, resumed)):
        steps(*pair, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
    assert [group["lr"] for group in resumed.param_groups] == [0.1, 0.01]


# -- whole or not at all -----------------------------------------------------------------------
@pytest.mark.parametrize("call", ["checkpoint.save_file", "os.replace", "os.fsync", "checkpoint._sha256"])
def test_a_failed_save_leaves_the_old_checkpoint_and_no_remains(tmp_path, monkeypatch, call):
    save(tmp_path, "task-000-step-000005", example())

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("task-000-step-000010", "task-000-step-000005"):
        with monkeypatch.context() as patch:
            patch.setattr(f"everlearn.{call}" if call.startswith("checkpoint") else call, full)
            with pytest.raises(EverlearnError, match=r"No space left.*earlier checkpoints are untouched") as error:
                save(tmp_path, name, example(2.0))
        assert "\n" not in str(error.value)
        assert load(tmp_path, "task-000-step-000005").method["head.weight"][0, 0] == 1.0
        assert [path.name for path in tmp_path.iterdir()] == ["task-000-step-000005"]


def test_a_position_saved_again_replaces_what_was_there(tmp_path):
    for value in (1.0, 2.0):
        save(tmp_path, "task-000-step-000005", example(value))
        assert load(tmp_path, "task-000-step-000005").method["head.weight"][0, 0] == value
    assert [path.name for path in tmp_path.iterdir()] == ["task-000-step-000005"]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(EverlearnError, match="could not be written"):
        save(tmp_path / "checkpoints", "task-000-step-000005", example())


@pytest.mark.parametrize("call", ["everlearn.checkpoint.save_file", "os.replace", "os.fsync", "shutil.rmtree"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_killed_save_leaves_a_checkpoint_that_loads(tmp_path, call, number):
    for name, value in (("task-000-step-000005", 1.0), ("task-000-step-000010", 2.0)):
        save(tmp_path, name, example(value))
    child = os.fork()
    if child == 0:
        calls, original = [], _resolve(call)

        def kill(*arguments, **more):
            calls.append(arguments)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **more)

        pytest.MonkeyPatch().setattr(call, kill)
        save(tmp_path, "task-000-step-000015", example(3.0))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or (call, number) == ("os.replace", 2)  # there is only one renaming
    name = newest(tmp_path)
    assert name is not None
    expected = {"task-000-step-000010": 2.0, "task-000-step-000015": 3.0}[name]
    assert load(tmp_path, name).method["head.weight"][0, 0] == expected
    save(tmp_path, "task-000-step-000020", example(4.0))
    assert newest(tmp_path) == "task-000-step-000020"
    assert len(list(tmp_path.iterdir())) == 2  # what the killed save left is gone


def _resolve(path):
    import importlib

    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_an_error_of_writing_names_the_file_that_the_user_knows(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_whole(tmp_path / "nowhere" / "notes.txt", "new")
    assert error.value.filename == str(tmp_path / "nowhere" / "notes.txt")


def test_write_whole_keeps_the_old_text_when_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_whole(file, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(file, "new")
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["results.json"]


# -- damage is told, never guessed -------------------------------------------------------------
class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


def damage(place, how):
    file = place / "method.safetensors"
    data = file.read_bytes()
    state = json.loads((place / "state.json").read_text())
    if how == "truncated":
        file.write_bytes(data[:-1])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "absent":
        file.unlink()
    elif how == "altered":
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif how == "state truncated":
        (place / "state.json").write_text((place / "state.json").read_text()[:-40])
    elif how == "state altered":
        (place / "state.json").write_text((place / "state.json").read_text().replace('"step": 5', '"step": 6'))
    elif how == "state absent":
        (place / "state.json").unlink()
    elif how == "state of another kind":
        (place / "state.json").write_text("[1, 2]")
    elif how == "file not listed":
        (place / "state.json").write_text(json.dumps({**state, "files": {}}))
    elif how == "pickle beside":
        torch.save(Bomb(), place / "method.pt")
    elif how == "torch.save renamed":
        torch.save({"head.weight": Bomb()}, file)
    elif how == "bare pickle renamed":
        file.write_bytes(pickle.dumps(Bomb()))


DAMAGE = {
    "truncated": "truncated", "empty": "truncated", "absent": "damaged", "altered": "altered",
    "state truncated": "damaged", "state altered": "altered", "state absent": "damaged",
    "state of another kind": "damaged", "file not listed": "altered", "pickle beside": "pickle format",
    "torch.save renamed": "pickle format", "bare pickle renamed": "pickle format",
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_one_clear_line_and_nothing_is_unpickled(tmp_path, monkeypatch, how):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    folder = tmp_path / "checkpoints"
    save(folder, "task-000-step-000005", example())
    damage(folder / "task-000-step-000005", how)
    with pytest.raises(EverlearnError, match=DAMAGE[how]) as error:
        load(folder, "task-000-step-000005")
    assert "\n" not in str(error.value) and "task-000-step-000005" in str(error.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("written", "told"), [(None, 1), (1, 1), (2, 2)])
def test_another_format_is_one_clear_line(tmp_path, written, told):
    save(tmp_path, "task-000-step-000005", example())
    file = tmp_path / "task-000-step-000005" / "state.json"
    state = json.loads(file.read_text())
    assert state["format"] == checkpoint.FORMAT == 4
    other = {key: value for key, value in state.items() if key not in ("sha256", "format")}
    other = other if written is None else {"format": written, **other}
    digest = hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, **other}))
    with pytest.raises(EverlearnError, match=rf"task-000-step-000005 was written by another version .*format {told}, "
                                             "this one reads 3 and 4.: learn the run again") as error:  # fmt: skip
        load(tmp_path, "task-000-step-000005")
    assert "\n" not in str(error.value)


def test_a_copied_checkpoint_still_loads(tmp_path):
    save(tmp_path, "task-000-step-000005", example())
    shutil.copytree(tmp_path / "task-000-step-000005", tmp_path / "elsewhere" / "task-000-step-000005")
    assert load(tmp_path / "elsewhere", "task-000-step-000005").state["task"] == 1


def tasks_of(count):
    """Metadata of tasks that bring ten classes each."""
    names = [f"a class of the number {number}" for number in range(10 * count)]
    return [
        {"index": t, "name": f"task {t}", "classes": list(range(10 * t, 10 * t + 10)), "input": "text",
         "class_names": names[: 10 * t + 10], "goal": "classes", "batch_size": None, "augment": False}
        for t in range(count)
    ]  # fmt: skip


def test_every_name_of_a_class_is_stored_once(tmp_path):
    sizes = []
    for count in (10, 100):
        saved = example()
        saved.state["tasks"] = tasks_of(count)
        save(tmp_path / str(count), "task-000-step-000005", saved)
        file = tmp_path / str(count) / "task-000-step-000005" / "state.json"
        assert file.read_text().count('"a class of the number 3"') == 1
        sizes.append(file.stat().st_size)
        assert load(tmp_path / str(count), "task-000-step-000005").state["tasks"] == tasks_of(count)
    assert sizes[1] < 10 * sizes[0]  # and not a hundred times


def test_names_that_are_repeated_in_every_task_are_read_too(tmp_path):
    """As the format before wrote them."""
    save(tmp_path, "task-000-step-000005", example())
    file = tmp_path / "task-000-step-000005" / "state.json"
    state = {**json.loads(file.read_text()), "format": 3, "tasks": tasks_of(3)}
    del state["sha256"]
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, **state}))
    assert load(tmp_path, "task-000-step-000005").state["tasks"] == tasks_of(3)


def test_a_small_file_does_not_become_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_NAMES", 1000)
    saved = example()
    saved.state["tasks"] = tasks_of(20)
    save(tmp_path, "task-000-step-000005", saved)
    with pytest.raises(EverlearnError, match="more than 1,000 names of classes together") as error:
        load(tmp_path, "task-000-step-000005")
    assert "\n" not in str(error.value)
