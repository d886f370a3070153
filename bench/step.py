"""A step of training compared with a bare loop on the same batch: er (replay), l2p (prompts), coda_prompt (prefixes).

    python bench/step.py [--steps 20] [--stream clinc150] [--backbone minilm] [--batch-size 16] [--threads 1]
                         [--methods er,l2p,coda_prompt]

Each method learns the first two tasks of the stream. In the second, where er has examples to replay, every step of the
method is followed by one of the bare loop: the plain model of transformers or timm with attention as softmax(QKᵀ)V in
bfloat16, the same texts or images (also those replayed), the same parameters to train, and the same optimizer. What a
paper does besides, such as choosing prompts, is not in it; the queries of prompts are in the feature store. Five pairs
of steps are not counted. Seconds are those of the processor, so work beside this one disturbs them little; the result
is the median of the ratios. Target: at most 1.2.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from everlearn import backbones, methods, run, streams

WARM = 5  # pairs of steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 20), ("batch-size", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("stream", "clinc150"), ("backbone", "minilm"), ("methods", "er,l2p,coda_prompt")):
        parser.add_argument(f"--{name}", default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stream = streams.load(args.stream, max_train_per_class=20, max_test_per_class=1)
    stream = replace(stream, tasks=stream.tasks[:2])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVERLEARN_CACHE"] = folder
        for name in args.methods.split(","):
            pairs = timed(name, stream, args)
            ours, bare = (1000 * statistics.median(seconds) for seconds in zip(*pairs, strict=True))
            ratio = statistics.median(ours / bare for ours, bare in pairs)
            print(f"{name:>12}: {ours:7.1f} ms a step, bare loop {bare:7.1f} ms, ratio {ratio:.2f} (target: at most "
                  f"1.2; {len(pairs)} steps of {args.batch_size} on {stream.name}, {args.backbone}, "
                  f"{args.threads} thread{'s' * (args.threads > 1)})", flush=True)  # fmt: skip


def timed(name: str, stream: streams.Stream, args: argparse.Namespace) -> list[tuple[float, float]]:
    """The seconds of each counted step of the second task, and of the bare loop on the same batch."""
    second = -(-len(stream[1].train) // args.batch_size)
    sizes = {"replay_batch_size": args.batch_size} if name == "er" else {}
    epochs = -(-(WARM + args.steps) // second)
    method = methods.get(name)(backbones.load(args.backbone), epochs=epochs, batch_size=args.batch_size, **sizes)
    step, replayed, drawn, pairs = method.step, getattr(method, "replayed", None), [], []
    loops: list[Bare] = []

    def remembered(batch: Any) -> Any:
        drawn.append(replayed(batch))
        return drawn[-1]

    def measured(batch: Any, optimizer_step: Any) -> Any:
        if method.task.index == 0 or len(pairs) == WARM + args.steps:
            return step(batch, optimizer_step)
        if not loops:
            loops.append(Bare(method, args.backbone))
            if not method.trained().keys() & dict(method.backbone.named_parameters(prefix="backbone")).keys():
                method.backbone.encode(stream[1].train.inputs)  # the queries of prompts, once in a run
        drawn.clear()
        start = time.process_time()
        loss = step(batch, optimizer_step)
        between = time.process_time()
        loops[0].step([batch, *drawn])
        pairs.append((between - start, time.process_time() - between))
        return loss

    object.__setattr__(method, "step", measured)
    if replayed:
        object.__setattr__(method, "replayed", remembered)
    run(method, stream)
    return pairs[WARM:]


class Bare:
    """A plain training loop that trains what the method trains."""

    def __init__(self, method: Any, backbone: str) -> None:
        self.backbone = backbones.load(backbone)
        self.model = self.backbone.model
        self.is_timm = hasattr(self.model, "forward_features")
        is_full = type(method).__name__ == "ER"
        self.model.requires_grad_(is_full)
        self.head = nn.Linear(method.backbone.width, len(method.task.class_names))
        copied = [] if is_full else [p for n, p in method.trained().items() if not n.startswith("head")]
        self.added = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in copied)
        self.tokens = method.selected if type(method).__name__ == "L2P" else 0
        trained = [p for module in (self.model, self.head, self.added) for p in module.parameters() if p.requires_grad]
        self.optimizer = method.Optimizer(trained, lr=1e-6, fused=True)
        self.layers = [block.attn if self.is_timm else block.attention.self for block in self.backbone._blocks]
        for layer in self.layers:
            layer.prefix = None
            if self.is_timm:
                layer.forward = lambda x, layer=layer, **more: attention_of_timm(layer, x)
        if not self.is_timm:
            from transformers import AttentionInterface

            AttentionInterface.register("bare", lambda *args, **more: (attend(*args), None))
            self.model.config._attn_implementation = "bare"
        self.has_prefix = type(method).__name__ == "CODAPrompt"

    def step(self, batches: list[Any]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.backbone.training_precision == "bfloat16"):
                states, weights = self.states(batch.inputs)
            feature = states[:, 0] if self.is_timm else (states.float() * weights).sum(1) / weights.sum(1)
            scores = self.head(functional.normalize(feature.float(), dim=-1))
            losses.append(functional.cross_entropy(scores, batch.labels))
        torch.stack(losses).sum().backward()
        self.optimizer.step()

    def states(self, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer's output and, of texts, the mask."""
        model = self.model
        if self.has_prefix:  # the first parameter is (components, blocks, tokens, width)
            for layer, prompt in zip(self.layers, self.added[0].mean(0), strict=False):
                layer.prefix = prompt.chunk(2)
        if self.is_timm:
            pixels = torch.stack([self.backbone._pixels(item) for item in inputs])
            x = self.prompted(model.norm_pre(model._pos_embed(model.patch_embed(pixels))))
            return model.norm(model.blocks(x)), torch.ones(())
        encoded = self.backbone.tokenizer(list(inputs), padding=True, truncation=True, return_tensors="pt")
        x = self.prompted(model.embeddings(input_ids=encoded["input_ids"]))
        weights = functional.pad(encoded["attention_mask"], (0, x.shape[1] - encoded["input_ids"].shape[1]), value=1)
        mask = (1 - weights[:, None, None].bfloat16()) * torch.finfo(torch.bfloat16).min
        return model.encoder(x, attention_mask=mask).last_hidden_state, weights[..., None].float()

    def prompted(self, x: torch.Tensor) -> torch.Tensor:
        if not self.tokens:
            return x
        return torch.cat([x, self.added[0][: self.tokens].flatten(0, 1).expand(len(x), -1, -1).to(x.dtype)], dim=1)


def attend(layer: Any, query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
    """softmax(QKᵀ)V of (n, heads, tokens, size) after the prefix of the layer, as (n, tokens, width)."""
    n, heads, _, size = query.shape
    if layer.prefix is not None:
        before = [part.view(1, -1, heads, size).transpose(1, 2).expand(n, -1, -1, -1) for part in layer.prefix]
        key, value = (torch.cat([b.to(x.dtype), x], dim=2) for b, x in zip(before, (key, value), strict=True))
        mask = None if mask is None else functional.pad(mask, (before[0].shape[2], 0))
    scores = (query * size**-0.5) @ key.transpose(-1, -2)
    scores = scores if mask is None else scores + mask
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def attention_of_timm(layer: Any, x: torch.Tensor) -> torch.Tensor:
    n, tokens, _ = x.shape
    query, key, value = layer.qkv(x).reshape(n, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return layer.proj(attend(layer, query, key, value))


if __name__ == "__main__":
    main()
