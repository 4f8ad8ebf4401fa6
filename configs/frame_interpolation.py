"""Frame interpolation: three frames between two, so a clip at four times its rate, 576x1024.

Command:   svdjax train configs/frame_interpolation.py --init.image-encoder svd.safetensors
Hardware:  as stage 2b, with a third of the frames; docs/tpu_plans.md says which slices hold it.
Expected:  before the first step the network ignores the given frames: their input is there, with weights of zero.
           Not run by us at full size.
Paper:     section 4.4 and appendix D: the first and the last of 5 frames are given, a learned latent stands for the
           others, one channel says which is which, CLIP's tokens of both; noise on the given latents; 10,000 steps,
           batch 256, AdamW 1e-4, ln(sigma) ~ N(1, 1.2^2), EMA 0.9999. Its body has it start from the text-to-video
           model of high resolution, its appendix from the base one.
Ours:      the start from 2b, which is a recipe here. The given latents are scaled as the noisy ones are, and their
           noise is as the picture's in image to video, of which the paper gives no level: ln(sigma) ~ N(-3, 0.5^2).
           Dropout of tokens and latents 10 % each and 10 % both, sampling without guidance. See
           `svdjax.training.recipes` for the optimizer and precision.
Others:    --model.task video_prediction trains on the first frames instead, --model.task known_frames on any
           (docs/frame_interpolation.md); give them --data.sampling.frames 14 --model.defaults.frames 14.
Data:      clips of at least 5 frames. CLIP's image tower comes from any released SVD.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, clips, frame_interpolation_model
from svdjax.training.transfer import Init


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/frame_interpolation"),
        init_from="./runs/video_320x576/unet/model.safetensors",
        init=Init(
            new=("missing_frame",),
            widened=("unet.conv_in.kernel",),
            dropped=("text_encoder.*",),
            image_encoder="stabilityai/stable-video-diffusion-img2vid",
        ),
        model=frame_interpolation_model(),
        data=clips(5, 576, 1024),
        unet=DiffusionStage(
            steps=10_000,
            batch=256,
            optim=adamw(1e-4),
            sigma=STAGES["interpolation"],
            drop=IMAGE_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
