"""Networks: the spatio-temporal UNet, the VAE with its temporal decoder, and the CLIP towers."""
