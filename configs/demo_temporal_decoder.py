"""The demo of the temporal decoder: the image decoder of demo_image_decoder.py learns to decode whole clips.

Command:   svdjax train configs/demo_image_decoder.py && svdjax train configs/demo_temporal_decoder.py
Hardware:  any computer.
Measured:  python -m benchmarks.temporal_decoder   (docs/temporal_decoder.md has the figures)
Ours:      a small discriminator; no LPIPS, whose weights have to be fetched.
"""

from pathlib import Path

from svdjax.conversion.source import open_checkpoint
from svdjax.models.discriminator import DiscriminatorConfig
from svdjax.sampling.options import DEMO_CHECKPOINT
from svdjax.training import RunConfig
from svdjax.training.data import DataConfig
from svdjax.training.optim import OptimConfig
from svdjax.training.temporal_decoder_stage import TemporalDecoderStage
from svdjax.training.transfer import Init
from svdjax.training.vae_stage import ReconstructionLoss


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out=Path("runs/demo_temporal_decoder"),
        init_from="./runs/demo_image_decoder/model.safetensors",
        init=Init(new=("vae.decoder.*.temporal.*", "vae.decoder.*.mix_factor", "vae.decoder.time_conv.*")),
        model=open_checkpoint(DEMO_CHECKPOINT).config,
        data=DataConfig(sprites=4096, in_memory=True),
        export_dtype="float32",
        decoder=TemporalDecoderStage(
            steps=600,
            batch=2,
            validate_every=100,
            checkpoint_every=100,
            optim=OptimConfig(rate=1e-3, b2=0.99, warmup=50, final=0.02, weight_decay=0.0),
            reconstruction=ReconstructionLoss(l1=1.0, l2=1.0),
            adversary=DiscriminatorConfig(channels=(16, 32), norm_groups=4),
            ema_decay=0.99,
        ),
    )
