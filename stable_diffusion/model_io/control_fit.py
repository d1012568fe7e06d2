"""Check that a control model is one for a model, by their configs."""

from ..config.controlnet import FULL_XL, ControlConfig, ControlNetConfig, T2IAdapterConfig
from ..config.known_controls import KNOWN_CONTROLS, SD_1, SDXL, TINY
from ..config.known_models import find_spec
from ..config.networks import UNetConfig
from .model import Model
from .unsupported import describe_family, describe_unet


def find_control_family(model: Model) -> str:
    """Return the family of the control models for a model, a key of `KNOWN_CONTROLS` if known."""
    origin = model.pipeline_config._converted_from or model.name
    spec = find_spec(origin)
    return TINY if spec is not None and spec.repo is None else describe_unet(model.unet_config)


def check_fit(name: str, config: ControlConfig, model: Model) -> None:
    """Check that the results of a control network can be added to those of a model's UNet.

    Args:
        name: the control model's name in messages.

    Raises:
        ValueError: if they cannot.
    """
    family, what = describe_control(config)
    own = describe_unet(model.unet_config)
    if family is not None and family != own:
        raise ValueError(
            f"{name} is {what} for {family}, and {model.name} is {own}: {_advise(name, model)}"
        )
    if isinstance(config, T2IAdapterConfig):
        _check_adapter(name, config, model)
    else:
        _check_controlnet(name, config, model)


def describe_control(config: ControlConfig) -> tuple[str | None, str]:
    """Return the family that a control network is for, None for any, and what it is."""
    if isinstance(config, T2IAdapterConfig):
        return (SDXL if config.adapter_type == FULL_XL else None), "a T2I-Adapter"
    is_xl = config.addition_embed_type is not None
    if not _attends(config):
        return (SDXL if is_xl else None), "a ControlNet"
    return describe_family(is_xl, config.cross_attention_dim), "a ControlNet"


def _attends(config: ControlNetConfig) -> bool:
    """Return whether any layer attends to the text, so that its width matters."""
    pairs = zip(config.down_block_types, config.down_depths, strict=True)
    return config.mid_depth > 0 or any(
        kind == "CrossAttnDownBlock2D" and any(depths) for kind, depths in pairs
    )


def _advise(name: str, model: Model) -> str:
    """Return what to take in place of a control model for another family."""
    family = find_control_family(model)
    known = KNOWN_CONTROLS.get(family, {})
    named = [short for short in known if short in name.lower()]
    if named:
        short = max(named, key=len)
        return f"take {short} ({known[short].location})"
    return f"take one for {family}" + (" (--list-controls has some)" if known else "")


def _check_controlnet(name: str, config: ControlNetConfig, model: Model) -> None:
    """Check that a ControlNet takes the inputs of a model, and has its layers."""
    base = model.unet_config
    own = describe_unet(base)
    factor = model.autoencoder_config.factor
    wanted = {
        "in_channels": (config.in_channels, base.out_channels),
        "block_out_channels": (config.block_out_channels, base.block_out_channels),
        "layers_per_block": (config.layers, base.layers),
        "addition_time_embed_dim": (
            config.addition_time_embed_dim,
            base.addition_time_embed_dim,
        ),
        "projection_class_embeddings_input_dim": (
            config.projection_class_embeddings_input_dim,
            base.projection_class_embeddings_input_dim,
        ),
    }
    for option, (found, expected) in wanted.items():
        if found != expected:
            raise ValueError(
                f"{name} is a ControlNet for another kind of {own} than {model.name}: its {option} "
                f"is {_describe(found)}, not {_describe(expected)}"
            )
    if config.factor != factor:
        raise ValueError(
            f"{name} halves its picture until a number stands for {config.factor} pixels along "
            f"each side, and the latents of {model.name} for {factor}: they do not fit together"
        )


def _check_adapter(name: str, config: T2IAdapterConfig, model: Model) -> None:
    """Check that the features of a T2I-Adapter have the widths and sizes of a UNet's levels."""
    base = model.unet_config
    expected = list_adapter_features(base, model.autoencoder_config.factor)
    if config.features in (expected[:-1], expected):
        return
    own = describe_unet(base)
    if own == SDXL and config.adapter_type != FULL_XL:
        raise ValueError(
            f"{name} is a T2I-Adapter for {SD_1}, and {model.name} is {own}: {_advise(name, model)}"
        )
    raise ValueError(
        f"{name} is a T2I-Adapter for another UNet than that of {model.name}: the widths and "
        f"factors of its features are {_describe(config.features)}, not {_describe(expected[:-1])}"
    )


def list_adapter_features(base: UNetConfig, factor: int) -> tuple[tuple[int, int], ...]:
    """Return the widths of the features that a UNet takes, and the pixels for each of a side.

    A feature is added at the end of a level, behind the halving if the level has no attention; the
    last one in the middle, which not every adapter has.

    Args:
        factor: the pixels of a latent along each side.
    """
    last = len(base.block_out_channels) - 1
    features = []
    for level, (width, kind) in enumerate(
        zip(base.block_out_channels, base.down_block_types, strict=True)
    ):
        is_halved = kind == "DownBlock2D" and level < last
        features.append((width, factor * 2 ** (level + is_halved)))
    return (*features, (base.block_out_channels[-1], factor * 2**last))


def _describe(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
