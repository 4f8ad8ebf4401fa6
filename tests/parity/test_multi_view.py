"""SV3D_u and SV3D_p: an original single file against diffusers' networks in a plain PyTorch loop, in float64."""

import contextlib
import dataclasses
import math
from itertools import pairwise
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from svdjax.conversion.checkpoint import Checkpoint
from svdjax.conversion.clip import clip_vision_table
from svdjax.conversion.mapping import to_ours
from svdjax.conversion.reference import set_sgm_eps
from svdjax.conversion.safetensors_file import write_safetensors
from svdjax.conversion.sgm import write_sgm
from svdjax.conversion.source import load_model
from svdjax.conversion.tensors import Tensor
from svdjax.conversion.unet import unet_table
from svdjax.conversion.vae import vae_table
from svdjax.sampling.pipeline import Branches, Pipeline, Settings
from tests.conversion.tiny import OPTIONS, tiny_config
from tests.parity.reference import float64_sinusoids, relative, tensors
from tests.parity.test_clip import vision_reference
from tests.parity.test_unet import video_reference
from tests.parity.test_vae import channels_first
from tests.parity.test_vae import reference as vae_reference

torch.set_num_threads(1)  # as in tests/parity/tiny.py

BAR = 1e-10
VIEWS, HEIGHT, WIDTH, STEPS = 5, 16, 24, 3
# Of two objects; the azimuths rise to those of the pictures, which are the last views.
POSES = {
    "elevation": np.float32([[10, 25, 40, 5, -20], [-5, 0, 60, 30, 15]]),
    "azimuths": np.float32([[350, 40, 100, 250, 300], [20, 30, 100, 350, 10]]),
}


@pytest.fixture(params=["sv3d_u", "sv3d_p"])
def case(request, tmp_path, x64):
    """PyTorch's networks with random weights, and our model of the original single file that holds the same."""
    config = tiny_config(request.param)
    unet = dataclasses.replace(config.unet, channels=(64, 128))
    config = dataclasses.replace(config, unet=unet, vae=dataclasses.replace(config.vae, channels=(64, 64)))
    theirs = {
        "unet": video_reference(config.unet, 1),
        "vae": vae_reference(config.vae, 2),
        "image_encoder": vision_reference(config.image_encoder, 3),
    }
    set_sgm_eps(theirs["unet"])
    tables = {"unet": unet_table, "vae": vae_table, "image_encoder": clip_vision_table}
    params = {}
    for part, module in theirs.items():
        flat = to_ours(tables[part](getattr(config, part), "diffusers"), tensors(module), what=part)
        params |= {f"{part}.{path}": Tensor.of(path, array) for path, array in flat.items()}
        module.double()
    path = tmp_path / "original.safetensors"
    write_safetensors(path, write_sgm(Checkpoint(what="a test", config=config, params=params))[0], {})
    model = load_model(path, dtype=jnp.float64, options=OPTIONS)
    assert model.config == config, "as found from the file's keys and shapes"
    return theirs, model


def run(model, function, *inputs):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, *inputs: function(nnx.merge(graph, state), *inputs))(state, *inputs)


def sinusoids(values, width):
    angles = values[..., None] * 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def vector_of(config, poses):
    """What each view is told: the noise on the picture; of SV3D_p also its angles to the pole and the last view."""
    elevation, azimuths = (torch.from_numpy(poses[name]).double() for name in ("elevation", "azimuths"))
    level = torch.full_like(elevation, float(np.float32(1e-5)))
    if len(config.scalars) == 1:
        return sinusoids(level, 32)
    polar, azimuth = (90 - elevation) * math.pi / 180, (azimuths - azimuths[:, -1:]).remainder(360) * math.pi / 180
    return torch.cat([sinusoids(level, 32), sinusoids(polar, 64), sinusoids(azimuth, 64)], dim=-1)


@torch.no_grad()
def call(unet, x, c_noise, context, vector):
    """diffusers' UNet, whose embedding is one for all frames of a video, with one for each frame."""
    embedded = unet.add_embedding(vector.flatten(0, 1))

    def add(block, args, kwargs):
        return args, {**kwargs, "temb": kwargs["temb"] + embedded}

    with contextlib.ExitStack() as stack:
        stack.enter_context(float64_sinusoids())
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            stack.enter_context(block.register_forward_pre_hook(add, with_kwargs=True))
        nothing = torch.zeros(())
        stack.enter_context(mock.patch.object(unet.add_embedding, "forward", lambda scalars: nothing))
        return unet(x, c_noise, context, torch.zeros(len(x), 1)).sample


def test_one_call_of_the_unet(case):
    """Two videos of different noise levels, every frame with a vector of its own."""
    theirs, model = case
    unet, rng = model.config.unet, np.random.default_rng(0)
    x = rng.normal(size=(2, VIEWS, 8, 8, 6))
    context = rng.normal(size=(2, 1, unet.context_dim))
    vector, c_noise = rng.normal(size=(2, VIEWS, unet.vector_dim)), np.array([-1.3, 1.6])
    wanted = call(theirs["unet"], *(torch.from_numpy(each) for each in (x, c_noise, context, vector)))
    found = run(model, lambda model, *inputs: model.unet(*inputs), np.moveaxis(x, 2, -1), c_noise, context, vector)
    assert relative(channels_first(found), wanted) < BAR


@torch.no_grad()
def orbit(theirs, image, image_noise, noise, vector):
    """Conditioning, latents and views by PyTorch: Euler steps of the EDM sampler with the triangle guidance."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)[:, None, None]
    pixels = torch.nn.functional.interpolate(image, (224, 224), mode="bicubic", align_corners=True)
    context = theirs["image_encoder"](((pixels + 1) / 2 - mean) / std).image_embeds[:, None]
    latent = theirs["vae"].encode(image + float(np.float32(1e-5)) * image_noise).latent_dist.mode()
    concat = latent[:, None].expand(-1, VIEWS, -1, -1, -1)
    sigmas = torch.linspace(700 ** (1 / 7), 0.002 ** (1 / 7), STEPS, dtype=torch.float64) ** 7
    along = torch.linspace(0, 1, VIEWS, dtype=torch.float64)[:, None, None, None]
    scale = 1 + 1.5 * (1 - (2 * along - 1).abs())
    x = noise * (1 + sigmas[0] ** 2).sqrt()
    for sigma, target in pairwise([*sigmas, torch.tensor(0.0)]):
        size = (1 + sigma**2).sqrt()

        def denoised(context, concat, x=x, sigma=sigma, size=size):
            inputs = torch.cat([x / size, concat], dim=2)
            v = call(theirs["unet"], inputs, sigma.log() / 4, context, vector)
            return x / size**2 - v * sigma / size

        uncond = denoised(torch.zeros_like(context), torch.zeros_like(concat))
        x0 = uncond + scale * (denoised(context, concat) - uncond)
        x = x + (target - sigma) * (x - x0) / sigma
    views = theirs["vae"].decode(x.flatten(0, 1) / 0.18215).sample.unflatten(0, x.shape[:2])
    return context, concat, x, torch.cat([views[:, :-1], image[:, None]], dim=1)


@pytest.mark.slow
def test_picture_to_views(case):
    """The scalars' vector, the picture's token and latent, the latents after all steps, and the views."""
    theirs, model = case
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, HEIGHT, WIDTH, 3)).astype(np.float32)
    image_noise, noise = rng.normal(size=image.shape), rng.normal(size=(2, VIEWS, HEIGHT // 2, WIDTH // 2, 4))
    defaults = dataclasses.replace(model.config.defaults, frames=VIEWS, height=HEIGHT, width=WIDTH, steps=STEPS)
    pipeline = Pipeline(model, Settings(defaults=defaults))
    poses = POSES if len(model.config.scalars) > 1 else {}
    request = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), pipeline.request(images=image, **poses))
    request = dataclasses.replace(request, noise=jnp.asarray(image_noise))

    def ours(model, request):
        cond = pipeline.task.condition(model, request, VIEWS)
        branches = Branches(cond=cond, uncond=pipeline.task.unconditional(model, cond))
        latents = pipeline.sample(model, jnp.uint32(0), branches, jnp.arange(2))
        return cond, latents, pipeline.decode(model, (), latents)

    def given_noise(key, videos, shape, sigma):
        return jnp.asarray(noise) * jnp.sqrt(1 + sigma**2)

    with mock.patch("svdjax.sampling.pipeline.initial_noise", given_noise):
        cond, latents, frames = run(model, ours, request)
    views = pipeline.task.finish(request, np.asarray(frames))
    found = [cond.context, *map(channels_first, (cond.concat, latents, views))]

    vector = vector_of(model.config, POSES)
    given = (torch.from_numpy(channels_first(each)).double() for each in (image, image_noise, noise))
    wanted = orbit(theirs, *given, vector)
    names = ("context", "concat", "latents", "views")
    errors = {name: relative(a, b) for name, a, b in zip(names, found, wanted, strict=True)}
    errors["vector"] = relative(cond.vector, vector)
    assert {name: error for name, error in errors.items() if not error < BAR} == {}
