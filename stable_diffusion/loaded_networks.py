"""The networks of a pipeline: loading them, freeing them, and computing in float32."""

import mlx.core as mx
import mlx.nn as nn

from .adapted import Adapted
from .autoencoder_tiny import AutoencoderTiny
from .clip import CLIPTextModel
from .conditioning import Reader, require_fit
from .model_io.loaders import load_autoencoder, load_text_encoder, load_tokenizer
from .model_io.weights import read_weights
from .precision import load_in_float32
from .quantize import quantize_networks
from .unet import UNetModel
from .vae import Autoencoder


class LoadedNetworks(Adapted):
    """The part of a pipeline that keeps the networks."""

    # The attributes of text encoders, UNet and tokenizers, each with its folder in the model.
    _TEXT_ENCODERS: tuple[tuple[str, str], ...] = (("text_encoder", "text_encoder"),)
    _UNET = ("unet", "unet")
    _TOKENIZERS: tuple[tuple[str, str], ...] = (("tokenizer", "tokenizer"),)

    unet: UNetModel
    autoencoder: Autoencoder | AutoencoderTiny
    float16: bool
    vae_float16: bool

    def ensure_models_are_loaded(self) -> None:
        """Read all weights now."""
        for network in (*self._text_encoders, self.unet, self.autoencoder):
            read_weights(network)

    def quantize(self) -> None:
        """Quantize linear layers to 4 bits (text encoders) and 8 bits (UNet), in place.

        The UNet's other weights are kept in float16. Quantized networks stay so, with a warning.
        """
        quantize_networks(self.unet, self._text_encoders, self.config.name)

    def use_float32(self) -> None:
        """Load the networks again, to compute in float32.

        This is for numbers that half precision cannot hold. Networks that have been freed stay
        freed. A `Denoising` that has begun needs a `restart`.
        """
        self.use_float32_vae()
        self.float16, self.dtype = False, mx.float32
        for attribute, name in (*self._TEXT_ENCODERS, self._UNET):
            if hasattr(self, attribute):
                network = load_in_float32(self.model, name, getattr(self, attribute))
                setattr(self, attribute, network)

    def use_float32_vae(self) -> None:
        """Load the VAE again, to compute in float32, if it computes in half precision."""
        if self.vae_float16 and hasattr(self, "autoencoder"):
            self.autoencoder = load_autoencoder(self.model, self.float16)
        self.vae_float16 = False

    def free_text_encoders(self) -> None:
        """Delete the text encoders. Evaluate what they compute (`Denoising.inputs`) first."""
        for attribute, _ in self._TEXT_ENCODERS:
            delattr(self, attribute)

    @property
    def _text_encoders(self) -> list[CLIPTextModel]:
        """Return the text encoders, unless they have been freed."""
        if not all(hasattr(self, attribute) for attribute, _ in self._TEXT_ENCODERS):
            raise ValueError("the text encoders have been freed: make a new object for more text")
        return [getattr(self, attribute) for attribute, _ in self._TEXT_ENCODERS]

    @property
    def _readers(self) -> list[Reader]:
        """Return each tokenizer with its text encoder."""
        tokenizers = (getattr(self, attribute) for attribute, _ in self._TOKENIZERS)
        return list(zip(tokenizers, self._text_encoders, strict=True))

    @property
    def _networks(self) -> dict[str, nn.Module]:
        """Return the UNet and the text encoders by folder, except those that have been freed."""
        networks = (*self._TEXT_ENCODERS, self._UNET)
        return {name: getattr(self, each) for each, name in networks if hasattr(self, each)}

    def _load_readers(self) -> None:
        """Load the tokenizers and text encoders."""
        for attribute, name in self._TOKENIZERS:
            setattr(self, attribute, load_tokenizer(self.model, f"{name}_vocab", f"{name}_merges"))
        for attribute, name in self._TEXT_ENCODERS:
            setattr(self, attribute, load_text_encoder(self.model, self.float16, name))
        for reader in self._readers:
            require_fit(*reader, self.model.name)
