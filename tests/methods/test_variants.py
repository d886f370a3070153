"""The contract's hardest promises for the options of a method that build something else than its defaults."""

from __future__ import annotations

import pytest

from everlearn import methods
from everlearn.testing import check_method

VARIANTS = [
    ("aper", {"train": "full"}), ("aper", {"train": "deep_prompt"}), ("aper", {"train": "ssf"}),
    ("sequential", {"train": "prefix_mlp"}), ("task_adapters", {"train": "mam"}), ("vpt", {"train": "prompt"}),
    ("coda_prompt", {"attention": "topk", "components": 4}),
    ("coda_prompt", {"attention": "sparsemax", "components": 4, "orthogonality": 0.1}),
    ("dual_prompt", {"form": "prompt", "general_length": 6, "expert_length": 6}),
    ("l2p", {"diversify": "frequency", "grow": 2}), ("l2p", {"diversify": "mask"}),
    ("l2p", {"readout": "pooled"}),
    ("ranpac", {"width": 0, "first_session": False}), ("klda", {"members": 2, "rff": 64}),
    ("ranpac", {"width": 40, "train": "full", "epochs": 2}), ("ranpac", {"width": 40, "train": "ssf", "epochs": 2}),
    ("finetune", {"train": "head"}), ("finetune", {"train": "mam"}), ("er", {"train": "lora(size=2)"}),
    ("ewc", {"train": "lora"}), ("lwf", {"train": "houlsby"}), ("joint", {"train": "deep_prompt(length=2)"}),
    ("ewc", {"train": "head", "fisher": "exact"}), ("ewc", {"train": "head", "fisher": "empirical"}),
    ("si", {"train": "lora"}), ("mas", {"train": "houlsby"}), ("l2_sp", {"train": "lora"}),
    ("feature_distillation", {"train": "houlsby"}), ("a_gem", {"train": "head"}), ("gem", {"train": "lora"}),
    ("slca", {"train": "lora"}), ("slca", {"train": "head"}), ("cofima", {"train": "head", "fisher_examples": 4}),
    ("lora", {"train": "full"}),
    ("extra_layers", {"layer": "transformer", "hidden": 16}), ("extra_layers", {"blocks": "per task", "hidden": 16}),
    ("retrieval_augmented", {"train": "head"}),
    ("packnet", {"train": "full"}), ("packnet", {"train": "lora", "retraining": 0.0}),
    ("packnet", {"train": "houlsby", "retraining": 0.5}),
    ("hat", {"train": "full"}), ("hat", {"train": "lora"}), ("hat", {"train": "adaptformer"}),
    ("prompt_fusion", {"boosted": 0.5, "context": 2, "length": 2}),
]  # fmt: skip


CHECKS = ("resumes_exactly", "a_prediction_depends_on_its_example_alone", "frozen_stays_frozen")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_variant(name: str, settings: dict, check: str) -> None:
    quick = {} if name in ("ranpac", "klda") else {"epochs": 2, "batch_size": 8, "lr": 0.01}
    check_method(methods.get(name), only=check, **quick, **settings)
