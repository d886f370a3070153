"""A folder that sentence-transformers has saved gives the features of that library, or is refused with the reason."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn import backbones, methods, streams
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.folder import FILES
from everlearn.backbones.sentences import pooled
from everlearn.backbones.two_towers import TwoTowers
from everlearn.engine import learn
from everlearn.errors import DataError, EverlearnError
from everlearn.streams.stream import Corpus, Examples, Task

TEXTS = ["word4 word5 word6", "word7", "word1 word2 word8 word9 word10 word11 word12", "WORD1 word2", ""]
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
SWITCHES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
SWITCH = {mode: f"pooling_mode_{switch}" for mode, switch in zip(POOLINGS, SWITCHES, strict=True)}


def fixed(weights: Path) -> None:
    """Replace the weights of a file by numbers that are the same with every release of every library."""
    held, draw = load_file(weights), np.random.RandomState(0)
    made = {name: draw.normal("Norm.weight" in name, 0.3, held[name].shape).astype(np.float32) for name in sorted(held)}
    save_file({name: torch.from_numpy(array) for name, array in made.items()}, weights, {"format": "pt"})


@pytest.fixture
def encoder(tmp_path, model_folder):
    """`encoder("bert")`: a folder of that model with fixed weights, without anything of sentence-transformers."""

    def make(kind: str = "bert") -> Path:
        folder = tmp_path / f"plain-{kind}"
        shutil.copytree(model_folder(kind), folder)
        fixed(folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def library():
    """The modules of sentence-transformers."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    return models


@pytest.fixture
def saved(tmp_path, library):
    """`saved(encoder, modules, …)`: the folder that the installed sentence-transformers saves, with these modules after
    the transformer."""
    from sentence_transformers import SentenceTransformer

    def save(encoder: Path, *after, transformer=None, half=None, **settings) -> Path:
        modules = [library.Transformer(str(encoder), **(transformer or {})), *after]
        model = SentenceTransformer(modules=modules, device="cpu", **settings)
        if half:
            model.to(half)
        model.save(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def load(folder: Path) -> Backbone:
    backbone = backbones.load(str(folder))
    backbone.precision = backbone.training_precision = "float32"
    return backbone


def same(folder: Path, verb: str = "encode", role=None, texts=TEXTS, **settings) -> torch.Tensor:
    """The features of everlearn, which are those of sentence-transformers, of any length."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", **settings)
    expected = getattr(model, verb)(texts, convert_to_tensor=True).float()
    backbone = load(folder)
    with backbone.reading(role):
        found = backbone.infer(texts)
    assert found.shape == expected.shape == (len(texts), backbone.width)
    assert torch.cosine_similarity(found, expected).min() >= 0.9999
    assert torch.allclose(found.norm(dim=1), expected.norm(dim=1), rtol=1e-2)
    return found


def pooling(library, *modes: str, width: int = 32, **settings):
    switches = {SWITCH[mode]: mode in modes for mode in POOLINGS}
    return library.Pooling(width, **switches, **settings)


# -- as the installed release saves it -----------------------------------------------------------------
@pytest.mark.parametrize("modes", [*((mode,) for mode in POOLINGS), ("cls", "max", "mean")], ids="+".join)
def test_each_pooling(modes, encoder, library, saved):
    same(saved(encoder(), pooling(library, *modes)))


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "distilbert", "modernbert"])
def test_each_architecture(kind, encoder, library, saved):
    same(saved(encoder(kind), pooling(library, "cls", "mean")))


def test_padding_on_the_left_changes_nothing(encoder, library, saved):
    """Otherwise the positions of a text, and so its feature, would depend on the longest text of its batch."""
    folder = encoder()
    edit(folder / "tokenizer_config.json", padding_side="left")
    folder = saved(folder, pooling(library, *POOLINGS))
    found = torch.cat([same(folder, texts=[text]) for text in TEXTS[:3]])
    assert torch.allclose(load(folder).infer(TEXTS)[:3], found, atol=1e-4)
    states = torch.randn(1, 5, 3)
    right, left = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 1, 1]])
    for first in (0, 1):
        ways = [pooled(states, right, POOLINGS, first), pooled(states.roll(2, 1), left, POOLINGS, first)]
        assert torch.allclose(*ways)


def test_layers_after_the_pooling(encoder, library, saved):
    torch.manual_seed(0)
    layers = [library.Dense(32, 16), library.LayerNorm(16), library.Dropout(0.5),
              library.Dense(16, 24, bias=False, activation_function=torch.nn.GELU()), library.Normalize()]  # fmt: skip
    folder = saved(encoder(), pooling(library, "mean"), *layers)
    assert same(folder).shape == (len(TEXTS), 24)
    kept = load(folder).identity()
    fixed(folder / "2_Dense" / "model.safetensors")
    assert load(folder).identity() != kept


def test_a_residual_connection(encoder, library, saved):
    folder = saved(encoder(), pooling(library, "mean"), library.Dense(32, 32))
    plain = load(folder)
    edit(folder / "2_Dense" / "config.json", use_residual=True)
    backbone = load(folder)
    assert torch.allclose(backbone.infer(TEXTS), plain.infer(TEXTS) + load_mean(folder).infer(TEXTS), atol=1e-5)
    assert backbone.identity() != plain.identity()


def load_mean(folder: Path) -> Backbone:
    """The same encoder without the layers after the pooling."""
    edit(folder / "modules.json", remove=2)
    return load(folder)


@pytest.mark.parametrize("cased", [True, False])
def test_a_shortened_length_and_lower_case(cased, encoder, library, saved):
    folder = saved(encoder(), pooling(library, "mean"), transformer={"max_seq_length": 6, "do_lower_case": not cased})
    features = same(folder)
    assert load(folder).prepare(TEXTS)["input_ids"].shape[1] == 6
    assert torch.allclose(features[3], load(folder).infer(["word1 word2"])[0], atol=1e-5) is not cased


@pytest.mark.parametrize("counted", [True, False])
def test_prompts(counted, encoder, library, saved):
    prompts = {"query": "word20 word21 ", "document": "word22 ", "classify": "word23 word24 word25 "}
    folder = saved(encoder(), pooling(library, "mean", "lasttoken", "max", "weightedmean", include_prompt=counted),
                   prompts=prompts, default_prompt_name="classify")  # fmt: skip
    found = [same(folder), same(folder, "encode_query", "query"), same(folder, "encode_document", "document")]
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(found, found[1:] + found[:1], strict=True))
    backbone = load(folder)
    with backbone.reading("query"):
        assert backbone.identity() != load(folder).identity()
    assert backbone.identity() == load(folder).identity()


def test_a_prompt_for_queries_alone(encoder, library, saved):
    folder = saved(encoder(), pooling(library, "mean"), prompts={"query": "word20 "}, default_prompt_name=None)
    none = same(folder)
    assert torch.equal(none, same(folder, "encode_document", "document"))
    assert not torch.allclose(none, same(folder, "encode_query", "query"), atol=1e-2)


def test_numbers_that_are_left_out(encoder, library, saved):
    folder = saved(encoder(), pooling(library, "mean"))
    edit(folder / "config_sentence_transformers.json", truncate_dim=8)
    assert same(folder, truncate_dim=8).shape == (len(TEXTS), 8)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(half, encoder, library, saved):
    plain = encoder()
    folder = saved(plain, pooling(library, "mean"), half=half)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {half}
    same(folder, model_kwargs={"dtype": torch.float32})
    assert all(p.dtype == torch.float32 for p in load(folder).parameters())
    assert load(folder).identity() != load(saved(plain, pooling(library, "mean"))).identity()


# -- as the oldest and the newest release write it, with the features that both gave -------------------
OLD = {  # sentence-transformers 5.2.2
    "modules.json": """[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]""",
    "1_Pooling/config.json": """{"word_embedding_dimension": 32, "pooling_mode_cls_token": false,
        "pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false, "pooling_mode_weightedmean_tokens": false,
        "pooling_mode_lasttoken": false, "include_prompt": true}""",
    "2_Dense/config.json": """{"in_features": 32, "out_features": 4, "bias": true,
        "activation_function": "torch.nn.modules.activation.Tanh"}""",
    "sentence_bert_config.json": '{"max_seq_length": 8, "do_lower_case": true}',
    "config_sentence_transformers.json": """{"model_type": "SentenceTransformer", "__version__":
        {"sentence_transformers": "5.2.2", "transformers": "5.0.0", "pytorch": "2.6.0+cu124"}, "prompts":
        {"query": "", "document": "", "classify": "word3 "}, "default_prompt_name": "classify",
        "similarity_fn_name": "cosine"}""",
}
NEW = {  # sentence-transformers 6.2.0
    "modules.json": """[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling",
         "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}]""",
    "1_Pooling/config.json": '{"embedding_dimension": 32, "pooling_mode": "MODE", "include_prompt": true}',
    "2_Dense/config.json": """{"in_features": 32, "out_features": 4, "bias": true, "activation_function":
        "torch.nn.modules.activation.Tanh", "module_input_name": "sentence_embedding", "module_output_name":
        "sentence_embedding"}""",
    "sentence_bert_config.json": """{"transformer_task": "feature-extraction", "modality_config": {"text":
        {"method": "forward", "method_output_name": "last_hidden_state"}}, "module_output_name": "token_embeddings"}""",
    "config_sentence_transformers.json": """{"__version__": {"pytorch": "2.14.1+cu130", "sentence_transformers":
        "6.2.0", "transformers": "5.24.0"}, "default_prompt_name": "classify", "model_type": "SentenceTransformer",
        "prompts": {"classify": "word3 ", "document": "", "query": ""}, "similarity_fn_name": "cosine"}""",
}
GAVE = {
    "cls": ([-0.9976, 0.9303, 0.9637, 0.2703], [-0.9952, 0.8337, 0.7374, -0.4442]),
    "max": ([-0.9840, -0.1475, 0.9626, 0.6603], [-0.9859, 0.5171, 0.7283, -0.1081]),
    "mean": ([-0.9913, 0.8060, 0.7947, -0.0570], [-0.9921, 0.8230, 0.5810, -0.5901]),
    "mean_sqrt_len_tokens": ([-1.0, 0.9881, 0.9771, -0.8056], [-1.0, 0.9763, 0.7756, -0.9659]),
    "weightedmean": ([-0.9857, 0.7815, 0.6187, -0.0960], [-0.9917, 0.8039, 0.5462, -0.6204]),
    "lasttoken": ([-0.9881, 0.9354, 0.7221, 0.1656], [-0.9915, 0.7294, 0.4312, -0.7132]),
}


@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("files", [OLD, NEW], ids=["5.2", "6.2"])
def test_both_formats_give_what_the_libraries_gave(files, mode, encoder):
    folder = described(encoder(), files, mode)
    found = load(folder).infer(["Word4 word5 word6", "word7"])
    assert torch.allclose(found, torch.tensor(GAVE[mode]), atol=1e-4)


def described(folder: Path, files: dict[str, str], mode: str = "mean") -> Path:
    """The folder with the files of a release of sentence-transformers."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(
            text.replace(f'"{SWITCH[mode]}": false', f'"{SWITCH[mode]}": true').replace("MODE", mode)
        )
    save_file(
        {"linear.weight": torch.zeros(4, 32), "linear.bias": torch.zeros(4)}, folder / "2_Dense/model.safetensors"
    )
    fixed(folder / "2_Dense" / "model.safetensors")
    if files is NEW:  # lower case and length are settings of the tokenizer there
        edit(folder / "tokenizer_config.json", model_max_length=8)
        edit(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]})
    return folder


def edit(file: Path, remove: int | None = None, **changes) -> None:
    told = json.loads(file.read_text())
    if remove is not None:
        del told[remove]
    file.write_text(json.dumps({**told, **changes} if isinstance(told, dict) else told))


def test_all_that_is_read_is_downloaded_from_the_hub(encoder, monkeypatch):
    folder, seen = described(encoder(), NEW), set()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **more: seen.add(path) or exists(path, **more))
    load(folder)
    read = {str(path.relative_to(folder)) for path in seen if folder in path.parents and path.is_file()}
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} <= read
    assert [name for name in read if not any(fnmatch(name, pattern) for pattern in FILES)] == []


# -- what is not computed is refused -------------------------------------------------------------------
def module(number: int, kind: str, path: str | None = None, **more) -> dict:
    path = f"{number}_{kind}" if path is None else path
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}", **more}


MEAN = [module(0, "Transformer", ""), module(1, "Pooling")]
REFUSED = {
    "a module after the pooling": ("modules.json", [*MEAN, module(2, "LSTM")], "'LSTM' after the pooling"),
    "a module before the pooling": ("modules.json", [MEAN[0], module(1, "WordWeights")], "modules Transformer and P"),
    "no transformer": ("modules.json", [module(0, "BoW", "")], "modules Transformer and Pooling"),
    "no pooling": ("modules.json", MEAN[:1], "modules Transformer and Pooling"),
    "code of its own": ("modules.json", [MEAN[0] | {"type": "custom_st.Transformer"}], "'custom_st.Transformer'"),
    "a folder outside": ("modules.json", [MEAN[0], module(1, "Pooling", "../1_Pooling")], "the folder '../1_Pooling'"),
    "a transformer below": ("modules.json", [module(0, "Transformer"), MEAN[1]], "the folder '0_Transformer'"),
    "no folder": ("modules.json", [MEAN[0], {"type": "sentence_transformers.models.Pooling"}], "the folder None"),
    "no module": ("modules.json", ["Transformer"], "the module None"),
    "arguments": ("modules.json", [MEAN[0], module(1, "Pooling", kwargs=["task"])], "a module that takes ['task']"),
    "a pooling": ("1_Pooling/config.json", {"pooling_mode": "median"}, "the pooling ['median']"),
    "one of several": ("1_Pooling/config.json", {"pooling_mode": ["mean", "median"]}, "the pooling ['mean', 'median']"),
    "how to pool": ("1_Pooling/config.json", {"pooling_mode": "mean", "layers": [1, 2]}, "'layers' [1, 2]"),
    "a switch": ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "yes"}, "'pooling_mode_mean_tokens' 'yes'"),
    "the first token": ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "without the prom"),
    "an activation": ("2_Dense/config.json", {"activation_function": "os.system"}, "'activation_function' 'os.system'"),
    "an input": ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "'module_input_name'"),
    "other sizes": ("2_Dense/config.json", {"in_features": 16}, "a layer from 16 to 4 numbers does not follow"),
    "no sizes": ("2_Dense/config.json", {"out_features": 0}, "to 0 numbers"),
    "other weights": ("2_Dense/config.json", {"out_features": 5}, "has the shape [4, 32]"),
    "no bias": ("2_Dense/config.json", {"bias": False}, "has no place for 1 of its tensors"),
    "another task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "'transformer_task' 'fill-mask'"),
    "another output": ("sentence_bert_config.json", {"modality_config": {"text": {"method": "get_text_features"}}},
                       "texts read as"),
    "arguments of a model": ("sentence_bert_config.json", {"model_args": {"dtype": "float16"}}, "'model_args'"),
    "expansion": ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "'query_expansion'"),
    "a length": ("sentence_bert_config.json", {"max_seq_length": 1}, "max_seq_length is 1"),
    "another kind": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "'model_type' 'SparseEnc"),
    "a similarity": ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "'similarity_fn_name'"),
    "no such prompt": ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name is 'x'"),
    "no prompts": ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "prompts is {'query': 3}"),
    "a size": ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim is 0"),
    "news": ("config_sentence_transformers.json", {"whiten": True}, "'whiten' True"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_computed_is_refused_with_the_reason(what, encoder):
    folder = described(encoder(), NEW)
    name, changes, told = REFUSED[what]
    if isinstance(changes, list):
        (folder / name).write_text(json.dumps(changes))
    else:
        edit(folder / name, **changes)
    line = refused(folder)
    assert told in line and str(folder / Path(name).parent) in line


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        backbones.load(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "told"), [
    ("2_Dense/model.safetensors", "save the model as safetensors"),
    ("modules.json", "modules.json does not exist, but 1_Pooling does"),
])  # fmt: skip
def test_a_file_that_is_missing_is_named(name, told, encoder):
    folder = described(encoder(), NEW)
    (folder / name).unlink()
    assert told in refused(folder)


def test_an_adapter_beside_the_encoder_is_refused(encoder):
    folder = described(encoder(), NEW)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "merge it into the encoder" in refused(folder)


# -- search and training -------------------------------------------------------------------------------
def ranking(queries: list[str], documents: list[str]) -> Task:
    examples = {
        "train": Examples(queries, torch.empty(0, dtype=torch.long), queries, positives=documents),
        "test": Examples(queries, torch.empty(0, dtype=torch.long), queries, relevant=[{"0": 1}] * len(queries)),
    }
    return Task(0, "domain", (), (), goal="ranking", examples=examples, corpus=Corpus(["0"], documents[:1]))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_search_and_training_compare_as_the_library_does(similarity, encoder, library, saved):
    from sentence_transformers import SentenceTransformer

    folder = saved(encoder(), pooling(library, "mean_sqrt_len_tokens"), similarity_fn_name=similarity,
                   prompts={"query": "word20 ", "document": "word21 word22 "})  # fmt: skip
    model = SentenceTransformer(str(folder), device="cpu")
    draw = np.random.RandomState(0)
    queries, documents = ([" ".join(f"word{k}" for k in draw.randint(0, 20, draw.randint(1, 12))) for _ in range(12)]
                          for _ in range(2))  # fmt: skip
    scores = model.similarity(model.encode_query(queries), model.encode_document(documents)).float()
    method = methods.get("finetune")(load(folder), train="head")
    assert method.search(queries, documents) == scores.argsort(dim=1, descending=True)[:, :10].tolist()
    losses = method.losses(ranking(queries, documents).train)
    scale = 20 if similarity == "cosine" else 1
    assert torch.allclose(losses, torch.nn.functional.cross_entropy(
        scale * scores, torch.arange(12), reduction="none"), rtol=1e-3, atol=1e-3)  # fmt: skip


def test_the_lengths_of_features_decide_nothing_where_the_similarity_is_the_cosine(encoder, library, saved):
    """The longest document came first for every query, while training compared by the cosine."""
    method = methods.get("frozen")(load(saved(encoder(), pooling(library, "mean_sqrt_len_tokens"))))
    documents = ["word1", "word2 " * 30]
    assert method.search(["word1"], documents) == [[0, 1]]


def test_a_distance_is_refused_for_rankings_alone(encoder, library, saved):
    folder = saved(encoder(), pooling(library, "mean"), similarity_fn_name="euclidean")
    method = methods.get("frozen")(load(folder))
    assert torch.isfinite(method.embed(TEXTS)).all()
    with pytest.raises(EverlearnError, match="by euclidean distance"):
        method.search(TEXTS, TEXTS)


# -- features of another size than the states of the tokens --------------------------------------------
SETTINGS = {
    "l2p": {"pool_size": 3, "length": 2, "selected": 2, "readout": "pooled"},
    "dap": {"positions": 64},
    "ranpac": {"width": 16},
    "dual_prompt": {"general_length": 2, "expert_length": 2},
    "coda_prompt": {"components": 2, "length": 2},
}


@pytest.mark.parametrize("name", ["l2p", "dual_prompt", "coda_prompt", "dap", "vpt", "lora", "task_adapters", "aper",
                                  "ranpac", "finetune"])  # fmt: skip
def test_methods_learn_on_features_of_another_size(name, encoder):
    method = methods.get(name)(load(described(encoder(), NEW)), **SETTINGS.get(name, {}), epochs=1)
    assert (method.backbone.width, method.backbone.hidden_width) == (4, 32)
    records = [streams.Record(f"word{i} word{i + 1}", "even" if i % 2 == 0 else "odd") for i in range(8)]
    learn(method, streams.task_from(records))
    assert torch.isfinite(method.predict(TEXTS)).all()


def test_the_outputs_of_prompts_do_not_stand_for_features_of_another_size(encoder):
    with pytest.raises(EverlearnError, match=r"method\.readout: the outputs of prompts have 32 numbers"):
        methods.get("l2p")(load(described(encoder(), NEW)))


def test_full_precision_is_that_of_every_tower_and_ends(encoder):
    towers = TwoTowers(first=load(encoder()), second=load(encoder("roberta")))
    for tower, precision in zip(towers.encoders(), ("bfloat16", "float32"), strict=True):
        tower.training_precision = precision
    with pytest.raises(KeyError), towers.full_precision():
        assert [tower.training_precision for tower in towers.encoders()] == ["float32", "float32"]
        raise KeyError
    assert [tower.training_precision for tower in towers.encoders()] == ["bfloat16", "float32"]


def test_two_towers_read_roles_and_compare_in_one_way(encoder, library, saved):
    prompts = {"query": "word20 ", "document": "word21 "}
    folder = saved(encoder(), pooling(library, "mean"), prompts=prompts, similarity_fn_name="dot")
    towers = TwoTowers(first=load(folder), second=load(folder))
    with towers.reading("query"):
        asked = towers.infer(TEXTS)
    assert torch.allclose(asked, same(folder, "encode_query", "query"), atol=1e-3)
    assert towers.similarity == "dot" and not torch.allclose(asked, towers.infer(TEXTS), atol=1e-2)
    with pytest.raises(EverlearnError, match="compared by cosine and dot"):
        TwoTowers(first=load(folder), second=load(encoder("roberta")))
