"""Prompt to picture against diffusers' StableDiffusionPipeline, on random weights and given noise, in float64."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from flax import nnx
from transformers import CLIPTextConfig, CLIPTextModel

from svdjax.conversion.reference import float64_throughout
from svdjax.conversion.source import load_model
from svdjax.sampling.pipeline import Pipeline, Settings
from tests.parity.reference import randomise, relative

# diffusers' scheduler, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

BAR = 1e-9
PROMPTS, NEGATIVE = ["a photo of an astronaut", "waves"], "blurry, grey"
HEIGHT, WIDTH, GUIDANCE = 8, 16, 7.5
LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
# The last step goes to sigma 0 (alpha 1).
DDIM = {"set_alpha_to_one": True, "clip_sample": False}
SCHEDULERS = {"ddim": (DDIMScheduler, DDIM), "euler": (EulerDiscreteScheduler, {})}
# What the network predicts, the sampler, its levels, and their number.
CASES = [
    ("v_prediction", "euler", "leading", 4),
    ("v_prediction", "ddim", "trailing", 5),
    ("epsilon", "ddim", "leading", 4),
]


def tiny_pipeline(seed: int, prediction: str) -> StableDiffusionPipeline:
    """Stable Diffusion 2.1 with two levels; no parameter is zero or one."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(64, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        sample_size=16,
    )
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, hidden_act="gelu"
    )
    return StableDiffusionPipeline(
        vae=randomise(vae, seed),
        text_encoder=randomise(CLIPTextModel(text), seed + 1),
        tokenizer=None,
        unet=randomise(unet, seed + 2),
        scheduler=DDIMScheduler(prediction_type=prediction, **LEVELS, **DDIM),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def reference(pipe, tokens, negative, noise, steps):
    """Context, latents and pixels of diffusers, channels last."""
    context, uncond = (pipe.text_encoder(torch.from_numpy(np.asarray(x, np.int64)))[0] for x in (tokens, negative))
    latents = pipe(
        prompt_embeds=context,
        negative_prompt_embeds=uncond,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
        output_type="latent",
    ).images
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return context, np.moveaxis(latents.numpy(), 1, -1), np.moveaxis(pixels.numpy(), 1, -1)


@pytest.mark.slow
@pytest.mark.parametrize(("prediction", "sampler", "schedule", "steps"), CASES)
def test_float64_within_1e9_of_diffusers(tmp_path, x64, prediction, sampler, schedule, steps):
    pipe = tiny_pipeline(7, prediction)
    pipe.save_pretrained(tmp_path / "pipeline")
    model = load_model(tmp_path / "pipeline", dtype=jnp.float64)
    assert model.config.task == "text_to_image"
    defaults = dataclasses.replace(
        model.config.defaults, height=HEIGHT, width=WIDTH, steps=steps, guidance=(GUIDANCE, GUIDANCE)
    )
    pipeline = Pipeline(model, Settings(defaults=defaults, sampler=sampler, schedule=schedule))
    request = jax.tree.map(jnp.asarray, pipeline.request(prompts=PROMPTS, negative_prompt=NEGATIVE))
    rows, columns = HEIGHT // model.config.vae.factor, WIDTH // model.config.vae.factor
    noise = np.random.default_rng(0).standard_normal((len(PROMPTS), rows, columns, 4))
    graph, state = nnx.split(model)

    def ours(state, request):
        model, videos = nnx.merge(graph, state), jnp.arange(len(PROMPTS))
        branches = pipeline.condition(model, jnp.uint32(0), request, videos)
        latents = pipeline.sample(model, jnp.uint32(0), branches, videos)
        return branches.cond.context, latents[:, 0], pipeline.decode(model, (), latents)[:, 0]

    def given_noise(key, videos, shape, sigma):
        assert (len(videos), *shape) == (noise.shape[0], 1, *noise.shape[1:])
        return jnp.asarray(noise)[:, None] * jnp.sqrt(1 + sigma**2)

    with mock.patch("svdjax.sampling.pipeline.initial_noise", given_noise):
        found = jax.jit(ours)(state, request)
    with float64_throughout():
        kind, options = SCHEDULERS[sampler]
        pipe.to(torch.float64)
        pipe.scheduler = kind(prediction_type=prediction, timestep_spacing=schedule, **LEVELS, **options)
        pipe.set_progress_bar_config(disable=True)
        expected = reference(pipe, request.tokens, request.negative_tokens, noise, steps)
    errors = dict(zip(("context", "latents", "pixels"), map(relative, found, expected), strict=True))
    assert {part: error for part, error in errors.items() if not error < BAR} == {}
