"""The networks of a pipeline: loading them, freeing them, and computing in float32."""

import mlx.core as mx
import mlx.nn as nn

from .adapted import Adapted
from .autoencoder_tiny import AutoencoderTiny
from .check_arguments import check_integer, check_path
from .clip import CLIPTextModel
from .conditioning import Reader, require_fit
from .config.networks import BITS
from .control import LoadedControl
from .half_weights import prepare_half_weights
from .model_io.control_models import OpenedControl, open_control
from .model_io.loaders import ModelPath, load_autoencoder, load_text_encoder, load_tokenizer
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
    controls: tuple[LoadedControl, ...] = ()

    def ensure_models_are_loaded(self) -> None:
        """Read all weights now."""
        controls = (control.network for control in self.controls)
        for network in (*self._text_encoders, self.unet, self.autoencoder, *controls):
            read_weights(network)

    def quantize(self, unet_bits: int | None = None, text_encoder_bits: int | None = None) -> None:
        """Quantize the networks except the VAE, in place; see `quantize_unet`.

        Quantized networks stay so, with a warning. Control networks that are loaded later are not
        quantized.

        Args:
            unet_bits: of a weight in the UNet and in control networks, 4, 6 or 8. If None, the
                linear layers have 8, and the convolutions are kept in float16.
            text_encoder_bits: the same for linear layers of the text encoders; 4 if None.

        Raises:
            TypeError: if a number of bits is not an integer.
            ValueError: if it is not one of these.
        """
        _check_bits("unet_bits", unet_bits)
        _check_bits("text_encoder_bits", text_encoder_bits)
        bits = unet_bits, text_encoder_bits
        quantize_networks(self.unet, self._text_encoders, self.config.name, *bits)
        for control in self.controls:
            control.quantize(unet_bits)

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
        for control in self.controls:
            control.use_float32()

    def use_float32_vae(self) -> None:
        """Load the VAE again, to compute in float32, if it computes in half precision."""
        if self.vae_float16 and hasattr(self, "autoencoder"):
            self.autoencoder = load_autoencoder(self.model, self.float16)
        self.vae_float16 = False

    def load_control(self, model: ModelPath | OpenedControl) -> LoadedControl:
        """Load a ControlNet, a union of ControlNets or a T2I-Adapter, for the argument `controls`.

        Args:
            model: a short name such as "canny", a folder, a safetensors file, a Hub repository, or
                a file of one; see `open_control`.

        Raises:
            OSError: if it cannot be found.
            ValueError: if it is not supported, is broken, or is for another kind of model.
        """
        if not isinstance(model, OpenedControl):
            check_path("model", model)
            model = open_control(model, self.model)
        control = LoadedControl(model, self.float16)
        self.controls = (*self.controls, control)
        return control

    def unload_controls(self) -> None:
        """Delete all control networks."""
        for control in self.controls:
            control.unload()
        self.controls = ()

    def free_text_encoders(self) -> None:
        """Delete the text encoders. Evaluate what they compute (`Denoising.inputs`) first."""
        for attribute, _ in self._TEXT_ENCODERS:
            delattr(self, attribute)

    def free_tokenizers(self) -> None:
        """Delete the tokenizers, if there is no more text: each takes some 20 MB."""
        for attribute, _ in self._TOKENIZERS:
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
            encoder = load_text_encoder(self.model, self.float16, name)
            if self.float16:
                prepare_half_weights(encoder)
            setattr(self, attribute, encoder)
        for reader in self._readers:
            require_fit(*reader, self.model.name)


def _check_bits(name: str, value: int | None) -> None:
    """Check that an argument is None or one of `BITS`.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is another one.
    """
    if value is not None and check_integer(name, value) not in BITS:
        raise ValueError(f"{name} must be one of {', '.join(map(str, BITS))}, got {value}")
