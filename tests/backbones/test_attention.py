"""Plain attention gives what torch's kernels give, with the same gradients, and prefixes reach it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from everlearn.backbones.attention import PlainAttention
from everlearn.backbones.precision import has_bfloat16
from everlearn.peft.prefix import Prefix


def heads(dtype=torch.float32):
    torch.manual_seed(0)
    drawn = [torch.randn(2, 3, tokens, 8) for tokens in (5, 7, 7)]  # torch 2.6 draws others in bfloat16
    return [part.to(dtype).requires_grad_() for part in drawn]


MASKS = {
    "none": None,
    "booleans": torch.arange(7) < torch.tensor([7, 4])[:, None, None, None],
    "numbers": torch.linspace(-2, 2, 7)[None, None, None],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_plain_attention_is_torchs_with_the_same_gradients(mask, scale):
    told = []
    for mode in (sdpa_kernel(SDPBackend.MATH), PlainAttention()):
        parts = heads()
        with mode:
            output = F.scaled_dot_product_attention(*parts, attn_mask=MASKS[mask], scale=scale)
        output.square().sum().backward()
        told.append([output.detach(), *(part.grad for part in parts)])
    for ours, theirs in zip(*told, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_gradients_are_those_of_float32_as_nearly_as_torchs_own():
    def gradients(mode, dtype):
        parts = heads(dtype)
        with mode:
            F.scaled_dot_product_attention(*parts, attn_mask=MASKS["booleans"]).float().square().sum().backward()
        return torch.cat([part.grad.float().flatten() for part in parts])

    exact = gradients(sdpa_kernel(SDPBackend.MATH), torch.float32)
    cosine = torch.cosine_similarity(gradients(PlainAttention(), torch.bfloat16), exact, dim=0)
    assert 0.9995 < cosine <= 1.0001


@pytest.mark.parametrize("more", [{"is_causal": True}, {"enable_gqa": True}])
def test_what_encoders_do_not_use_is_left_to_torch(more):
    parts = [part[:, :, :5] for part in heads()]
    with PlainAttention():
        ours = F.scaled_dot_product_attention(*parts, **more)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(*parts, **more))


def test_a_row_without_any_key_stays_finite():
    mask = torch.zeros(1, 1, 5, 7, dtype=torch.bool)
    with PlainAttention():
        assert F.scaled_dot_product_attention(*heads(), attn_mask=mask).isfinite().all()


@pytest.mark.skipif(not has_bfloat16(), reason="this processor trains in float32, with torch's own attention")
@pytest.mark.parametrize("kind", ["bert", "timm"])
def test_a_step_of_training_uses_it_prefixes_included(kind, load_kind, monkeypatch):
    backbone, inputs = load_kind(kind)
    backbone.training_precision, met = "bfloat16", []

    def kept(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            met.append(args[1].shape[2] - args[0].shape[2])
        return func(*args, **(kwargs or {}))

    monkeypatch.setattr(PlainAttention, "__torch_function__", kept)
    prefix = backbone.attach(Prefix(backbone.width, length=4), backbone.block(0).heads)
    try:
        backbone(inputs).sum().backward()
        assert met == [4] + [0] * (backbone.depth - 1) and prefix.vectors.grad.abs().sum() > 0
        met.clear()
        backbone.infer(inputs)
        assert not met, "without gradients, torch's own attention is as fast and closer to float32"
    finally:
        backbone.detach(prefix)
