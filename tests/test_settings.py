"""Settings have ranges, in one place, which hold from Python and from the command line alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Interval

from everlearn import backbones, methods, run, streams
from everlearn.cli import main
from everlearn.command_line import parse
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.settings import Count, Index, Rate, Seed, arguments, checked, convert, described

COUNT, NATURAL = "give a whole number from 1 to 1,000,000,000", "give a whole number from 0 to 1,000,000,000"
SIZE, LARGE = "give a whole number from 1 to 10,000", "give a whole number from 1 to 100,000"
RATE, STRENGTH = "give a number above 0 and at most 1,000", "give a number from 0 to 1,000,000,000"
FACTOR, BLOCKS = "give a number from 1e-06 to 1,000,000", "give a list of whole numbers from 0 to 999"
SEED = "give a whole number from 0 to 9,223,372,036,854,775,807"
EVEN = "give a whole number from 2 to 10,000 in steps of 2"

NONSENSE: list[tuple[str, str, Any, str]] = [
    ("er", "batch_size", -1000, COUNT), ("er", "batch_size", 0, COUNT), ("finetune", "batch_size", 10**12, COUNT),
    ("er", "epochs", 0, COUNT), ("er", "epochs", -1, COUNT), ("er", "epochs", 1.5, COUNT),
    ("er", "epochs", True, COUNT),
    ("er", "lr", 0.0, RATE), ("er", "lr", -1e-3, RATE), ("er", "lr", 1e9, RATE), ("vpt", "lr", -1.0, RATE),
    ("finetune", "head_lr", 0, RATE), ("task_adapters", "head_lr", -1, RATE), ("ewc", "head_lr", 2000, RATE),
    ("er", "memory_size", -1, NATURAL), ("er", "memory_size", 0.5, NATURAL), ("er", "memory_size", 2**70, NATURAL),
    ("er", "replay_batch_size", 0, COUNT), ("er", "replay_batch_size", -5, COUNT),
    ("ewc", "strength", -1, STRENGTH), ("ewc", "strength", 1e10, STRENGTH), ("lwf", "strength", -0.1, STRENGTH),
    ("ewc", "decay", 1.5, "give a number from 0 to 1"), ("ewc", "decay", -0.5, "give a number from 0 to 1"),
    ("ewc", "fisher_examples", 0, COUNT), ("lwf", "temperature", 0, FACTOR), ("lwf", "temperature", -2.0, FACTOR),
    ("aper", "weight_decay", -1.0, STRENGTH), ("aper", "train", "lora(5)", "is not an insertion"),
    ("coda_prompt", "components", 0, SIZE), ("coda_prompt", "components", 10**6, SIZE),
    ("coda_prompt", "length", 7, EVEN), ("coda_prompt", "length", 0, EVEN), ("coda_prompt", "blocks", 0, COUNT),
    ("coda_prompt", "kept", 0, COUNT), ("coda_prompt", "orthogonality", -1.0, STRENGTH),
    ("coda_prompt", "attention", "sparse", "give one of 'dense', 'topk', 'sparsemax'"),
    ("dap", "length", 0, SIZE), ("dap", "positions", 0, LARGE), ("dap", "positions", 10**7, LARGE),
    ("dap", "pull", -1.0, STRENGTH),
    ("dual_prompt", "general_length", 0, SIZE), ("dual_prompt", "expert_length", -4, SIZE),
    ("dual_prompt", "general_blocks", [-1], BLOCKS), ("dual_prompt", "expert_blocks", [0, 1000], BLOCKS),
    ("dual_prompt", "expert_blocks", [0.5], BLOCKS), ("dual_prompt", "pull", -1.0, STRENGTH),
    ("dual_prompt", "general_blocks", [0, 0], "give each block once"),
    ("dual_prompt", "general_length", 5, "give even lengths"),
    ("fecam", "power", 0, "give a number above 0 and at most 10"), ("fecam", "gamma1", 0, FACTOR),
    ("fecam", "gamma2", -1.0, STRENGTH), ("fecam", "gamma2", 2.0, "gamma2 is from 0 to gamma1"),
    ("klda", "rff", 0, LARGE), ("klda", "rff", -100, LARGE), ("klda", "rff", 10**9, LARGE),
    ("klda", "gamma", 0, FACTOR), ("klda", "members", 0, SIZE),
    ("klda", "shrinkage", 0, "give a number from 1e-06 to 1 or 'oas'"),
    ("lda", "shrinkage", 2.0, "give a number from 1e-06 to 1 or 'oas'"),
    ("lda", "shrinkage", "osa", "give a number from 1e-06 to 1 or 'oas'"),
    ("l2p", "pool_size", 0, SIZE), ("l2p", "selected", -1, SIZE), ("l2p", "selected", 11, "give at most pool_size"),
    ("l2p", "length", 0, SIZE), ("l2p", "grow", -1, "give a whole number from 0 to 10,000"),
    ("l2p", "pull", -0.5, STRENGTH), ("l2p", "paper_compat", "perhaps", "give true or false"),
    ("ranpac", "width", -1, "give a whole number from 0 to 100,000"),
    ("ranpac", "width", 10**9, "give a whole number from 0 to 100,000"),
    ("ranpac", "first_session", 2, "give true or false"),
    ("slca", "head_lr", 0, RATE), ("slca", "alignment_epochs", -1, NATURAL), ("slca", "samples", 0, LARGE),
    ("er", "train", "lora(size=0)", SIZE), ("er", "train", "lora(size=-3)", SIZE),
    ("er", "train", "mam(size=9999999)", SIZE),
    ("er", "train", "lora(size=4, size=5)", "give it once"), ("er", "train", "loar", "did you mean 'lora'"),
    ("task_adapters", "train", "lora(scale=0)", FACTOR), ("task_adapters", "train", "full", "unknown insertion 'full'"),
    ("er", "memry_size", 5, "did you mean 'memory_size'"),
]  # fmt: skip

NONSENSE_STREAMS: list[tuple[str, Any, str]] = [
    ("tasks", 0, COUNT), ("tasks", -5, COUNT), ("tasks", 2.5, COUNT), ("tasks", 10**10, COUNT), ("base", 0, COUNT),
    ("increment", -1, COUNT), ("class_seed", -1, "give a whole number from 0 to 4,294,967,295"),
    ("class_seed", 2**32, "give a whole number from 0 to 4,294,967,295"),
    ("split_seed", 2**40, "give a whole number from 0 to 4,294,967,295"),
    ("old", -0.5, "give a number from 0 to 1"), ("batch_size", 0, COUNT), ("batch_size", 10.5, COUNT),
    ("test", 1.0, "give a number of at least 0 and below 1 or a text"),
    ("test", -0.1, "give a number of at least 0 and below 1 or a text"),
    ("validation", 7, "give a number of at least 0 and below 1 or a text"),
    ("max_train_per_class", 0, COUNT), ("max_test_per_class", -1, COUNT), ("titles", 2, "give true or false"),
]  # fmt: skip


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EverlearnError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def refused_by_command(capsys, *options: str) -> str:
    code = main(["run", "--backbone", "tiny", "--recipe", "none", *options])
    told = capsys.readouterr().err
    assert code == 2 and told.startswith("everlearn: ") and told.count("\n") == 1
    return told


@pytest.mark.parametrize(("method", "setting", "value", "remedy"), NONSENSE)
def test_nonsense_is_refused_from_python_and_from_the_command_line(method, setting, value, remedy, capsys, tmp_path):
    cls, told = methods.get(method), {"name": method, setting: value}
    assert remedy in refused(lambda: cls(backbones.load("tiny"), **{setting: value}))
    assert remedy in refused(lambda: run(told, "digits", backbone="tiny", out=tmp_path / "run"))
    given = ("--stream", "digits", "--method", method, "--out", str(tmp_path / "run"))
    assert remedy in refused_by_command(capsys, *given, f"--method.{setting}", str(value).lower())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("setting", "value", "remedy"), NONSENSE_STREAMS)
def test_nonsense_settings_of_a_stream_too(setting, value, remedy, capsys, tmp_path):
    given = ("--stream", "digits", "--out", str(tmp_path / "run"), f"--stream.{setting}", str(value).lower())
    for told in (refused(lambda: streams.load("digits", **{setting: value})), refused_by_command(capsys, *given)):
        assert f"stream.{setting}: " in told and remedy in told


@pytest.mark.parametrize("name", sorted(methods.names()))
def test_every_default_is_in_its_range_and_every_number_has_one(name):
    for key, argument in arguments(methods.get(name)).items():
        checked(key, argument.default, argument.type)
        if not isinstance(argument.default, (str, bool)) and argument.type_name != "a text or none":
            assert any(word in argument.type_name for word in ("from ", "above ", "at least ")), f"{key} has no range"


def test_every_default_of_a_stream_is_in_its_range():
    for key, argument in arguments(streams.load).items():
        checked(key, argument.default, argument.type)
    numbers = [argument.type_name for argument in arguments(streams.load).values() if "number" in argument.type_name]
    assert len(numbers) == 12
    assert all("from " in text or "at least " in text for text in numbers)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0", None, np.int64(3)])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    assert SEED in refused(lambda: methods.get("ranpac")(backbones.load("tiny"), width=8, seed=seed))


@pytest.mark.parametrize("name", ["ranpac", "er", "klda", "l2p", "coda_prompt", "dap", "dual_prompt", "slca"])
def test_the_largest_seeds_work(name):
    small = {"ranpac": {"width": 8}, "klda": {"rff": 8}}.get(name, {})
    settings = {"epochs": 1} if name not in ("klda", "ranpac") else {}
    largest = {"name": "digits", "tasks": 5, "max_train_per_class": 2, "max_test_per_class": 2}
    seeds = {"class_seed": 2**32 - 1, "split_seed": 2**32 - 1}
    result = run({"name": name, **small, **settings}, {**largest, **seeds}, backbone="tiny", seed=2**63 - 1)
    assert len(result.accuracy_matrix) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_out_of_every_range(value):
    for type_ in (Rate, float, Rate | None, Annotated[float, Interval(ge=0)]):
        assert "is out of range" in refused(lambda: checked("lr", value, type_))  # noqa: B023
    assert RATE in refused(lambda: convert("lr", str(value), Rate))


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (Count, "5", 5), (Rate, "1e-3", 0.001), (Rate, "1", 1.0), (Rate | None, "none", None), (bool, "yes", True),
        (tuple[Index, ...], "[0, 5]", [0, 5]), (Literal["none", "all"], "none", "none"), (str | None, "12", "12"),
        (str | None, "yes", "yes"), (str | None, "a: b", "a: b"), (str | list[str], "[a, b]", ["a", "b"]),
        (str | None, "", ""), (Any, "[1, {a: 2}]", [1, {"a": 2}]),
    ],
)  # fmt: skip
def test_text_of_the_command_line_is_read_according_to_the_type(type_, text, value):
    assert convert("key", text, type_) == value
    assert type(convert("key", text, type_)) is type(value)


def test_a_value_from_python_is_no_text():
    assert "'5' is not of type int: " + COUNT in refused(lambda: checked("key", "5", Count))


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, 1 + 2j, np.float32(1), [[]], 10**5000, "\ud800"], ids=lambda value: type(value).__name__
)
def test_a_value_that_no_configuration_can_hold_is_refused_in_one_line(value):
    for type_ in (Count, Rate | None, tuple[Index, ...], Literal["a"]):
        message = refused(lambda: checked("key", value, type_))  # noqa: B023
        assert message.startswith("key: ") and len(message) < 400


def test_a_type_in_words():
    words = {
        Count: "a whole number from 1 to 1,000,000,000",
        Rate | None: "a number above 0 and at most 1,000 or none",
        Literal["a", "b"]: "one of 'a', 'b'",
        str | list[str]: "a text or a list of texts",
        tuple[Index, ...]: "a list of whole numbers from 0 to 999",
        bool: "true or false",
        int: "a whole number",
    }
    assert {type_: described(type_) for type_ in words} == words


def test_help_shows_ranges(capsys):
    assert main(["run", "--method", "l2p", "--stream", "digits", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--method.pool_size (a whole number from 1 to 10,000, default 10)" in shown
    assert "--stream.class_seed (a whole number from 0 to 4,294,967,295, default 1993)" in shown
    assert "Annotated" not in shown and "Interval" not in shown


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--method.lr", "1", "--method.lr", "2"], "--method.lr"),
        (["--method.lr=1", "--method.lr", "1"], "--method.lr"),
        (["--stream.kind", "online", "--stream.kind=online"], "--stream.kind"),
        (["--tasks", "3", "--stream.tasks", "4"], "--tasks or --stream.tasks"),
        (["--tasks", "3", "--tasks=4"], "--tasks or --stream.tasks"),
        (["--method", "er", "--method.name", "ewc"], "--method or --method.name"),
        (["--stream", "digits", "--stream.name=clinc150"], "--stream or --stream.name"),
        (["--seed", "1", "--seed", "2"], "--seed"),
    ],
)
def test_an_option_given_twice_is_refused(options, named):
    assert refused(lambda: parse(["run", *options])) == f"{named} is given twice: give it once"


class Own(Method):
    """A method with plain types, as somebody may write one."""

    def __init__(self, backbone, *, size: int = 3, ratio: float = 0.5, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.size, self.ratio = size, ratio


def test_plain_types_are_checked_without_a_range():
    assert Own(backbones.load("tiny"), size=-4, ratio=2).settings == {"size": -4, "ratio": 2}
    assert "size: 0.5 is not of type int: give a whole number" in refused(lambda: Own(backbones.load("tiny"), size=0.5))
    assert COUNT in refused(lambda: Own(backbones.load("tiny"), batch_size=0))
    assert "did you mean 'ratio'" in refused(lambda: Own(backbones.load("tiny"), ration=1.0))


def test_a_signature_shows_the_names_of_the_types():
    assert str(inspect.signature(Own).parameters["epochs"]) == "epochs: 'Count' = 1"
    assert arguments(Own)["seed"].type == Seed


def test_a_constructor_may_pass_everything_on():
    class PassesOn(Own):
        def __init__(self, *backbone: Any, **settings: Any) -> None:
            super().__init__(*backbone, **settings)

    assert list(inspect.signature(PassesOn).parameters) == list(inspect.signature(Own).parameters)
    assert PassesOn(backbones.load("tiny"), size=4).size == 4


def test_an_input_that_is_longer_than_the_positions_of_dap_is_refused():
    message = refused(lambda: run({"name": "dap", "positions": 3}, "digits", backbone="tiny"))
    assert "method.positions: an input has " in message and "reads 3: give at least " in message
