"""Stage 3, base: the pretrained video model learns to animate pictures instead of texts, at 320x576.

Command:   svdjax train configs/image_to_video_320x576.py --init.image-encoder svd.safetensors
Hardware:  as stage 2b.
Expected:  before the first step the network ignores the picture's latent: its input is there, with weights of zero.
           Not run by us at full size.
Paper:     start from 2b, input channels 4 -> 8, CLIP's image embedding in place of the text, 14 frames, 50,000
           steps, batch 768, 3e-5, ln(sigma) ~ N(0.7, 1.6^2), noise on the picture ln(sigma) ~ N(-3, 0.5^2).
Ours:      the cross-attention keeps its weights, for both towers end in 1,024 channels; noise_aug's rows of the
           scalars' MLP start at zero. Dropout of the picture's conditions 10 % each and 10 % both. EMA 0.9999;
           frame rates uniform in 6 to 31; see `svdjax.training.recipes` for the optimizer and precision.
Data:      clips; the picture is the first frame. CLIP's image tower is OpenCLIP's ViT-H/14, frozen: every released
           SVD checkpoint carries it.
"""

from pathlib import Path

from svdjax.diffusion.noise import STAGES
from svdjax.training import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.recipes import FULL_SIZE, IMAGE_DROP, adamw, clips, image_to_video_model
from svdjax.training.transfer import Init


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/image_to_video_320x576"),
        init_from="./runs/video_320x576/unet/model.safetensors",
        init=Init(
            widened=("unet.conv_in.kernel", "unet.vector_embed.linear1.kernel"),
            dropped=("text_encoder.*",),
            image_encoder="stabilityai/stable-video-diffusion-img2vid",
        ),
        model=image_to_video_model(14, 320, 576),
        data=clips(14, 320, 576),
        unet=DiffusionStage(
            steps=50_000,
            batch=768,
            optim=adamw(3e-5),
            sigma=STAGES["image_to_video_320x576"],
            drop=IMAGE_DROP,
            ema_decay=0.9999,
            **FULL_SIZE,
        ),
    )
