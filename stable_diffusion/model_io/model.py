"""An open model: the sources of its files, and its configs, each read once."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from ..config.autoencoder_tiny import AutoencoderTinyConfig, VaeConfig, read_vae_config
from ..config.diffusion import DiffusionConfig
from ..config.few_step import LCM_UNET, FewStepSettings, recognize_few_step
from ..config.known_models import find_spec
from ..config.model import TEXT_ENCODERS, XL_SCALING_FACTOR, ModelConfig, PipelineConfig
from ..config.networks import CLIPTextConfig, UNetConfig
from .sources import INDEX, SCHEDULER_CONFIG, UNET_CONFIG, VAE_CONFIG, Source
from .tiny_vae import check_tiny_vae
from .unsupported import describe_unet, refuse_other_family, refuse_pipeline, refuse_unet
from .weight_files import list_weight_files


@dataclass(frozen=True)
class Model:
    """An open model, which the pipeline and every loader take.

    Opening it reads no config. Each one is read when it is first needed, and then kept: open the
    model again to see a change of its files. All configs raise as `config` does.

    Args:
        source: the files of the model.
        vae, unet: the files of the VAE and of the UNet, if they are not the model's own.
    """

    source: Source
    vae: Source | None = None
    unet: Source | None = None

    @property
    def name(self) -> str:
        """Return the model's name in messages."""
        return self.source.name

    def source_of(self, component: str) -> Source:
        """Return the source that has the files of a component."""
        other = {"vae": self.vae, "unet": self.unet}.get(component)
        return self.source if other is None else other

    @property
    def is_xl(self) -> bool:
        """Return whether this is an SDXL model, by how its UNet is conditioned."""
        return self.unet_config.addition_embed_type is not None

    @cached_property
    def config(self) -> ModelConfig:
        """Return everything that the config files say; no weights are downloaded.

        Raises:
            OSError: if the model or one of its files cannot be found.
            ValueError: if a file is broken, or says something that is not supported.
        """
        pipeline, unet = self.pipeline_config, self.unet_config
        text_encoders = TEXT_ENCODERS if self.is_xl else TEXT_ENCODERS[:1]
        config = ModelConfig(
            name=self.name,
            unet=unet,
            autoencoder=self.autoencoder_config,
            text_encoders=tuple(self.text_encoder_config(name) for name in text_encoders),
            diffusion=replace(self.diffusion_config, is_xl=self.is_xl),
            pipeline=pipeline,
            spec=find_spec(pipeline._converted_from or self.name),
        )
        few_step = self._recognize_few_step(unet)
        return config if few_step is None else config.with_few_step(few_step)

    def _recognize_few_step(self, unet: UNetConfig) -> FewStepSettings | None:
        """Return the settings of a model or UNet that is made for few steps, or None."""
        few_step: FewStepSettings | None
        if unet.embeds_guidance:
            few_step = LCM_UNET
        elif self.unet is None:
            few_step = recognize_few_step(self.name, "checkpoint")
        else:
            few_step = recognize_few_step(self.unet.name.partition("@")[0], "unet")
        if few_step is None or self.source.prediction_type is None:
            return few_step
        return replace(few_step, prediction_type=None)  # what the user says takes precedence

    @cached_property
    def pipeline_config(self) -> PipelineConfig:
        """Return the config of the pipeline, or the defaults if a folder or cache lacks it."""
        if self.source.find(INDEX) is None:
            return PipelineConfig()
        index, name = self.source.config(INDEX)
        refuse_pipeline(index, name)
        return PipelineConfig.from_dict(index, name)

    @cached_property
    def unet_config(self) -> UNetConfig:
        """Return the config of the UNet."""
        source = self.source_of("unet")
        config = UNetConfig.from_dict(*source.config(UNET_CONFIG))
        refuse_unet(source.name, config)
        own = None if self.unet is None else read_unet_config(self.source)
        if own is not None:
            refuse_other_family(source.name, describe_unet(config), self.name, describe_unet(own))
        return config

    def text_encoder_config(self, component: str) -> CLIPTextConfig:
        """Return the config of a text encoder, "text_encoder" or "text_encoder_2"."""
        return CLIPTextConfig.from_dict(*self.source.config(f"{component}/config.json"))

    @cached_property
    def autoencoder_config(self) -> VaeConfig:
        """Return the config of the VAE, which must scale the latents as the UNet expects.

        A file with a VAE alone does not say how it scales them: it takes the scale of the model.
        A tiny VAE takes the latents as they are.
        """
        source = self.source_of("vae")
        config = read_vae_config(*source.config(VAE_CONFIG))
        if source is self.source:
            return config
        if isinstance(config, AutoencoderTinyConfig):
            n_channels = self.unet_config.out_channels
            check_tiny_vae(source.name, config, self.name, n_channels, self.is_xl)
            return config
        expected, stated = self.source.scaling_factor(), source.scaling_factor()
        if stated is None:
            default = XL_SCALING_FACTOR if self.is_xl else config.scaling_factor
            return replace(config, scaling_factor=default if expected is None else expected)
        if expected is None:
            return config
        if config.scaling_factor != expected:
            raise ValueError(
                f"{source.name} scales latents by {config.scaling_factor}, {self.name} by "
                f"{expected}: it is the VAE of another kind of model"
            )
        return config

    @cached_property
    def diffusion_config(self) -> DiffusionConfig:
        """Return the noise schedule that the model was trained on, and what its UNet predicts."""
        config = DiffusionConfig.from_dict(*self.source.config(SCHEDULER_CONFIG))
        prediction_type = self.source.prediction_type
        return (
            config if prediction_type is None else replace(config, prediction_type=prediction_type)
        )


def read_unet_config(source: Source) -> UNetConfig | None:
    """Return the config of a model's own UNet, whether it can be run or not; None without one.

    Raises:
        ValueError: if the file is broken, or says something that is not supported.
    """
    try:
        content, name = source.config(UNET_CONFIG)
    except FileNotFoundError:
        return None
    return UNetConfig.from_dict(content, name)


def describe_downloads(model: Model, components: Iterable[str], float16: bool) -> list[str]:
    """Return what to say before the weights of some components are downloaded, if any are.

    There is a line for each repository: its name, how much is downloaded, under which licence.
    """
    choices: dict[Source, list[list[str]]] = {}
    for component in components:
        source = model.source_of(component)
        choices.setdefault(source, []).append(list_weight_files(component, float16))
    lines = (source.describe_download(paths) for source, paths in choices.items())
    return [line for line in lines if line is not None]
