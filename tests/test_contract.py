"""Every method holds every promise of the contract, and methods that break one are caught by name."""

from __future__ import annotations

import pytest

from everlearn import methods
from everlearn.testing import CHECKS, check_method

# Settings that make a method small and quick; the paper's values are for large data.
SETTINGS: dict[str, dict] = {
    "coda_prompt": {"epochs": 16, "batch_size": 8, "components": 4, "lr": 0.01},
    "cofima": {"fisher_examples": 4},
    "a_gem": {"epochs": 8, "memory_size": 20, "replay_batch_size": 8, "batch_size": 8, "lr": 1e-3},
    "gem": {"epochs": 8, "memory_size": 20, "replay_batch_size": 8, "batch_size": 8, "lr": 1e-3},
    "si": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "mas": {"epochs": 8, "examples": 4, "batch_size": 8, "lr": 1e-3},
    "l2_sp": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "feature_distillation": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "aper": {"epochs": 8, "batch_size": 8, "lr": 0.1},
    "packnet": {"epochs": 10, "batch_size": 8, "lr": 1e-3},
    "piggyback": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "dap": {"epochs": 8, "batch_size": 8, "lr": 0.01},
    "sequential": {"epochs": 8, "batch_size": 8, "lr": 0.01},
    "task_adapters": {"epochs": 8, "batch_size": 8, "lr": 0.01},
    "vpt": {"epochs": 8, "batch_size": 8, "lr": 0.03},
    "zscl": {"epochs": 6, "batch_size": 8, "lr": 3e-4, "every": 12, "strength": 0.1, "pull": 0.01},
    "der": {"epochs": 8, "memory_size": 20, "batch_size": 8, "lr": 1e-3},
    "der_pp": {"epochs": 8, "memory_size": 20, "batch_size": 8, "lr": 1e-3},
    "dual_prompt": {"epochs": 8, "batch_size": 8, "lr": 0.01},
    "er": {"epochs": 8, "memory_size": 20, "batch_size": 8, "lr": 1e-3},
    "er_ace": {"epochs": 8, "memory_size": 20, "batch_size": 8, "lr": 1e-3},
    "esn": {"epochs": 8, "batch_size": 8, "length": 4, "lr": 0.03},
    "ewc": {"epochs": 8, "fisher_examples": 4, "batch_size": 8, "lr": 1e-3},
    "extra_layers": {"epochs": 8, "hidden": 16, "batch_size": 8, "lr": 0.01},
    "feature_replay": {"epochs": 8, "memory_size": 20, "batch_size": 8},
    "finetune": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "gdumb": {"epochs": 8, "memory_size": 40, "batch_size": 8, "lr": 1e-3},
    "hat": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "icarl": {"epochs": 8, "memory_size": 20, "batch_size": 8, "lr": 1e-3},
    "joint": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "l2p": {"epochs": 8, "batch_size": 8, "lr": 0.01},
    "l2r": {"epochs": 8, "memory_size": 20, "replay_batch_size": 8, "batch_size": 8, "lr": 1e-3},
    "lae": {"epochs": 12, "batch_size": 8, "lr": 0.01},
    "lora": {"epochs": 8, "batch_size": 8, "lr": 0.01},
    "mir": {"epochs": 8, "memory_size": 20, "replay_batch_size": 8, "candidates": 12, "batch_size": 8, "lr": 1e-3},
    "lwf": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "interpolate": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "proof": {"epochs": 8, "batch_size": 8, "lr": 0.02, "memory_size": 20},
    "prompt_fusion": {"epochs": 8, "batch_size": 8, "lr": 0.02, "context": 2, "length": 2, "memory_size": 20},
    "prompt_retriever": {"epochs": 8, "batch_size": 8, "lr": 0.03, "length": 1, "selected": 1, "pool_size": 8},
    "qdc": {"epochs": 8, "batch_size": 8, "lr": 1e-3},
    "retrieval_augmented": {"epochs": 8, "batch_size": 8, "lr": 0.01, "neighbours": 2},
    "ranpac": {"epochs": 2, "width": 64},
    "setfit": {"pairs": 4, "memory_per_class": 4, "lr": 1e-3},
}

# (method, check): why the promise cannot hold. Each row must fail, or it is out of date.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("frozen", "learns_the_first_task"): "it does not learn; random weights cannot read class names",
}


@pytest.mark.filterwarnings("error:.* was not checked in a fresh process")
@pytest.mark.parametrize("check", [name for name, _ in CHECKS])
@pytest.mark.parametrize("name", sorted(methods.names()))
def test_contract(name: str, check: str, request: pytest.FixtureRequest) -> None:
    if (name, check) in EXCEPTIONS:
        request.applymarker(pytest.mark.xfail(reason=EXCEPTIONS[name, check], strict=True))
    settings = SETTINGS.get(name, {})
    if check != "learns_the_first_task" and "epochs" in settings:
        settings = {**settings, "epochs": 2}  # long training decides only whether a method learns
    check_method(methods.get(name), only=check, **settings)
