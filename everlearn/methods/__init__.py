"""One paper, one file. The registry is the imports below; `names()` reads the files without importing them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.errors import EverlearnError, shown, unknown

if TYPE_CHECKING:
    from everlearn.method import Method
    from everlearn.methods.a_gem import AGEM as AGEM
    from everlearn.methods.aper import APER as APER
    from everlearn.methods.coda_prompt import CODAPrompt as CODAPrompt
    from everlearn.methods.cofima import CoFiMA as CoFiMA
    from everlearn.methods.dap import DAP as DAP
    from everlearn.methods.der import DER as DER
    from everlearn.methods.der_pp import DERpp as DERpp
    from everlearn.methods.dual_prompt import DualPrompt as DualPrompt
    from everlearn.methods.er import ER as ER
    from everlearn.methods.er_ace import ERACE as ERACE
    from everlearn.methods.esn import ESN as ESN
    from everlearn.methods.ewc import EWC as EWC
    from everlearn.methods.extra_layers import ExtraLayers as ExtraLayers
    from everlearn.methods.feature_distillation import FeatureDistillation as FeatureDistillation
    from everlearn.methods.feature_replay import FeatureReplay as FeatureReplay
    from everlearn.methods.fecam import FeCAM as FeCAM
    from everlearn.methods.finetune import Finetune as Finetune
    from everlearn.methods.frozen import Frozen as Frozen
    from everlearn.methods.gdumb import GDumb as GDumb
    from everlearn.methods.gem import GEM as GEM
    from everlearn.methods.hat import HAT as HAT
    from everlearn.methods.icarl import ICaRL as ICaRL
    from everlearn.methods.interpolate import Interpolate as Interpolate
    from everlearn.methods.joint import Joint as Joint
    from everlearn.methods.klda import KLDA as KLDA
    from everlearn.methods.knn import KNN as KNN
    from everlearn.methods.l2_sp import L2SP as L2SP
    from everlearn.methods.l2p import L2P as L2P
    from everlearn.methods.l2r import L2R as L2R
    from everlearn.methods.lae import LAE as LAE
    from everlearn.methods.lda import LDA as LDA
    from everlearn.methods.logistic import Logistic as Logistic
    from everlearn.methods.lora import SequentialLoRA as SequentialLoRA
    from everlearn.methods.lwf import LwF as LwF
    from everlearn.methods.mas import MAS as MAS
    from everlearn.methods.mir import MIR as MIR
    from everlearn.methods.packnet import PackNet as PackNet
    from everlearn.methods.piggyback import Piggyback as Piggyback
    from everlearn.methods.prompt_fusion import PromptFusion as PromptFusion
    from everlearn.methods.prompt_retriever import PromptRetriever as PromptRetriever
    from everlearn.methods.proof import PROOF as PROOF
    from everlearn.methods.qdc import QDC as QDC
    from everlearn.methods.ranpac import RanPAC as RanPAC
    from everlearn.methods.retrieval_augmented import RetrievalAugmented as RetrievalAugmented
    from everlearn.methods.sequential import Sequential as Sequential
    from everlearn.methods.setfit import SetFit as SetFit
    from everlearn.methods.si import SI as SI
    from everlearn.methods.simplecil import SimpleCIL as SimpleCIL
    from everlearn.methods.slca import SLCA as SLCA
    from everlearn.methods.task_adapters import TaskAdapters as TaskAdapters
    from everlearn.methods.vpt import VPT as VPT
    from everlearn.methods.zscl import ZSCL as ZSCL

_PREFIX = "everlearn.methods."


def _registry() -> dict[str, str]:
    """File name to class name, from the import lines above."""
    lines = ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    return {
        (node.module or "").removeprefix(_PREFIX): node.names[0].name
        for node in lines
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PREFIX)
    }  # fmt: skip


def names() -> dict[str, str]:
    """Every method and the first line of its docstring, without importing torch.

    >>> names()["simplecil"]
    'SimpleCIL: class means of frozen features, and nothing else (Zhou et al., 2024).'
    """
    folder = Path(__file__).parent
    summaries = {}
    for name in sorted(_registry()):
        text = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) or ""
        summaries[name] = text.split("\n", 1)[0]
    return summaries


def get(name: str) -> type[Method]:
    """The class of a method by its file's name, or of your own as ``package.module:Class``.

    Raises:
        EverlearnError: there is no such method.

    >>> get("simplecil").__name__
    'SimpleCIL'
    """
    from everlearn.method import Method

    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except Exception as error:  # the module is somebody's code and may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise EverlearnError(f"method '{name}' cannot be imported ({reason}): give package.module:Class") from error
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise EverlearnError(f"method '{name}' is not a subclass of everlearn.Method")
        return found
    registry = _registry()
    if name not in registry:
        raise unknown("method", name, registry)
    return getattr(importlib.import_module(_PREFIX + name), registry[name])


def named_by(file: object, name: str, expected: str | type[Method] | None = None) -> type[Method]:
    """The class of the method that a file names. A file decides between the methods of this package; code outside
    of it is imported only if the caller names it.

    Args:
        file: where the name was read; for the message.
        name: what the file says.
        expected: the method that the caller expects there, by its name or class.

    Raises:
        EverlearnError: the file names a class outside of the package that the caller does not, or another method
            than the caller expects.
    """
    if not isinstance(expected, str | type | None):
        raise EverlearnError(f"method: {shown(expected)} is neither the name of a method nor its class: give one")
    wanted = expected if expected is None or isinstance(expected, str) else name_of(expected)
    if wanted is None and ":" in name:
        raise EverlearnError(f"{file} names the method {name}, which is code outside of everlearn, and code is never "
                             f"taken from a file: if you trust it, name it yourself with --method {name} "
                             f"(in Python method={name!r})")  # fmt: skip
    if wanted not in (None, name):
        raise EverlearnError(f"{file} holds the method {name}, not {wanted}: name that method, or give another folder")
    return expected if isinstance(expected, type) else get(name)


def name_of(method: type[Method]) -> str:
    """What `get` finds the class by."""
    module, _, file = method.__module__.rpartition(".")
    return file if f"{module}." == _PREFIX else f"{method.__module__}:{method.__qualname__}"


def is_own(method: type[Method]) -> bool:
    """Whether it is a method of this package, whose code is tested to leave frozen weights alone."""
    return method.__module__.startswith(_PREFIX)


def __getattr__(name: str) -> Any:
    for file, class_name in _registry().items():
        if class_name == name:
            return getattr(importlib.import_module(_PREFIX + file), name)
    raise AttributeError(f"module 'everlearn.methods' has no attribute '{name}'")
