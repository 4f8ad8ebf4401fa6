"""The FLOPs of SVD's UNet at full size, against PyTorch's own count of the reference."""

import jax
import jax.numpy as jnp
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from flax import nnx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from svdjax.models.params import abstract
from svdjax.models.unet import UNet, UNetConfig
from svdjax.training.flops import count

SIZES = {"x": (2, 14, 8, 72, 128), "tokens": (2, 1, 1024)}


class NoCrossAttention(torch.nn.Module):
    """To a single token it is one vector per video for us; diffusers computes it for every site."""

    def forward(self, hidden_states, **kwargs):
        return hidden_states


def reference_flops():
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        unet = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
        for module in list(unet.modules()):
            if hasattr(module, "attn2"):
                module.attn2 = NoCrossAttention()
        with counter:
            unet(torch.zeros(SIZES["x"]), torch.zeros(2), torch.zeros(SIZES["tokens"]), torch.zeros(2, 3))
    return counter.get_total_flops()


def test_pytorch_counts_the_same_and_up_to_two_percent_for_padding():
    graph, state = nnx.split(abstract(UNet, UNetConfig.svd()))
    b, t, c, h, w = SIZES["x"]
    shapes = ((b, t, h, w, c), (b,), SIZES["tokens"], (b, t, 768))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    ours = count(lambda state, *inputs: nnx.merge(graph, state)(*inputs), state, *inputs)
    assert ours <= reference_flops() == pytest.approx(ours, rel=0.02)
