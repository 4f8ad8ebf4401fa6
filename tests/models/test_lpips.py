"""LPIPS against its definition in torch, with random weights in VGG-16's layout and reduced widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from svdjax.conversion.lpips import read_lpips
from svdjax.errors import UserError
from svdjax.models.lpips import LPIPS, LPIPSConfig
from svdjax.models.params import abstract, flat_params, load_flat

CONFIG = LPIPSConfig(blocks=((8, 8), (12, 12), (16, 16, 16), (16, 16, 16), (16, 16, 16)))
SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])


def reference(widths):
    """torchvision's sequence of VGG layers, and where each block's output is taken."""
    layers, taken, channels = [], [], 3
    for number, block in enumerate(widths):
        layers += [nn.MaxPool2d(2)] if number else []
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        taken.append(len(layers) - 1)
    return nn.Sequential(*layers), taken


def distance(vgg, taken, heads, a, b):
    """Equation 1 of the paper, with the constants of the published package."""
    found = torch.zeros(len(a))
    x, y = ((image - SHIFT[:, None, None]) / SCALE[:, None, None] for image in (a, b))
    for index, layer in enumerate(vgg):
        x, y = layer(x), layer(y)
        if index in taken:
            unit = [f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y)]
            weighted = (unit[0] - unit[1]).square() * heads[taken.index(index)]
            found = found + weighted.sum(1).mean((1, 2))
    return found


@pytest.fixture(scope="module")
def torch_lpips():
    torch.manual_seed(0)
    vgg, taken = reference(CONFIG.blocks)
    return vgg, taken, [torch.rand(1, block[-1], 1, 1) for block in CONFIG.blocks]


@pytest.fixture(scope="module")
def file(torch_lpips, tmp_path_factory):
    """As ``save_file(lpips.LPIPS(net="vgg").state_dict(), ...)`` writes it."""
    vgg, taken, heads = torch_lpips
    tensors, start = {}, 0
    for number, end in enumerate(taken):
        for index in range(start, end + 1):
            for name, value in vgg[index].named_parameters():
                tensors[f"net.slice{number + 1}.{index}.{name}"] = value.detach()
        start = end + 1
    for number, head in enumerate(heads):
        tensors[f"lin{number}.model.1.weight"] = head
        tensors[f"lins.{number}.model.1.weight"] = head.clone()
    tensors |= {
        "scaling_layer.shift": SHIFT[None, :, None, None],
        "scaling_layer.scale": SCALE[None, :, None, None],
    }
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def ours(file):
    shapes = abstract(LPIPS, CONFIG)
    return load_flat(shapes, {k: jnp.asarray(v) for k, v in read_lpips(file, CONFIG).items()}, what="LPIPS")


def test_the_distance_is_that_of_the_definition(torch_lpips, ours):
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(-1, 1, (3, 35, 48, 3)).astype(np.float32) for _ in range(2))
    with torch.no_grad():
        vgg, taken, heads = torch_lpips
        wanted = distance(vgg, taken, heads, *(torch.from_numpy(x).movedim(-1, 1) for x in (a, b))).numpy()
    assert (wanted > 0.01).all()
    np.testing.assert_allclose(ours(jnp.asarray(a), jnp.asarray(b)), wanted, rtol=1e-4)


def test_equal_pictures_are_at_distance_0_with_a_finite_gradient(ours):
    """Flat black is where features vanish."""
    black = jnp.full((1, 16, 16, 3), -1.0)
    value, gradient = jax.value_and_grad(lambda x: ours(x, black).sum())(black)
    assert value == 0 and jnp.isfinite(gradient).all()


def test_the_full_size_is_vgg16s():
    sizes = sum(x.size for path, x in flat_params(abstract(LPIPS, LPIPSConfig())).items() if "blocks" in path)
    assert sizes == 14_714_688  # of its convolutions


def test_other_files_are_refused(file, tmp_path):
    with pytest.raises(UserError, match="the model needs"):
        load_flat(abstract(LPIPS, LPIPSConfig()), read_lpips(file), what="LPIPS")
    with pytest.raises(UserError, match="no such file"):
        read_lpips(tmp_path / "none.safetensors")
    save_file({"net.slice1.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="missing"):
        read_lpips(tmp_path / "part.safetensors", CONFIG)
