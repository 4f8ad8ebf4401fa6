"""The temporal decoder: the autoencoder's decoder learns to decode whole clips; the encoder, and the latents, stay.

Command:   svdjax train configs/temporal_decoder.py --init-from svd_image_decoder.safetensors
               [--decoder.perceptual lpips_vgg.safetensors]
Hardware:  64 M parameters with AdamW and EMA in float32: 1 GB, beside the activations of whole clips in pixels, for
           which the autoencoder is rematerialised; `--decoder.accumulate` saves more. The frozen UNet takes 3 GB,
           and 6 GB of the hosts' memory, as it was read.
Expected:  it starts as the image decoder; the demo's gains detail and loses PSNR (docs/temporal_decoder.md). At
           full size not run by us.
Paper:     the f8 decoder is finetuned to be steady over time, following Video LDM (arXiv 2304.08818,
           section 3.1.1): the decoder alone, reconstruction and a patch-wise temporal discriminator of 3-D
           convolutions. No weights, sizes, rates or steps.
Ours:      L1 + LPIPS as stable-diffusion autoencoders were trained, where LPIPS weights are given; the demo's
           adversarial weight; crops of 256x256, which hold many patches; rates half of 4.5e-6 per clip
           of the batch.
Data:      clips of at least 14 frames.
"""

import dataclasses
from pathlib import Path

from svdjax.models.svd import SVDConfig
from svdjax.training import RunConfig
from svdjax.training.recipes import FULL_SIZE, adamw, clips
from svdjax.training.temporal_decoder_stage import TemporalDecoderStage
from svdjax.training.transfer import Init
from svdjax.training.vae_stage import ReconstructionLoss


def config() -> RunConfig:
    """The run."""
    svd = SVDConfig.svd()
    return RunConfig(
        out=Path("runs/temporal_decoder"),
        init_from="./svd_image_decoder.safetensors",
        init=Init(new=("vae.decoder.*.temporal.*", "vae.decoder.*.mix_factor", "vae.decoder.time_conv.*")),
        model=dataclasses.replace(svd, vae=dataclasses.replace(svd.vae, remat=True)),
        data=clips(14, 256, 256),
        decoder=TemporalDecoderStage(
            steps=20_000,
            batch=32,
            optim=adamw(7e-5),
            reconstruction=ReconstructionLoss(l1=1.0, l2=0.0),
            ema_decay=0.999,
            **FULL_SIZE,
        ),
    )
