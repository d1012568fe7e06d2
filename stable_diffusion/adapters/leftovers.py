"""Tensors in adapter files that change no picture: what trainers leave there."""

import re

# The ends of keys: buffers of text encoders, and settings of the training as tensors.
_ENDS = (
    *("position_ids", "logit_scale", r"logit_scale\.diff"),
    *("rank", "dim", "dropout", "rank_dropout", "module_dropout", "lora_dropout", "network_dim"),
)
# The starts of keys: states of the training, and entries of its own that a program writes.
_STARTS = (
    *("optimizer", "lr_scheduler", "ema_decay", "global_step", "epoch", "step"),
    *("ss_[a-z_]+", "modelspec", "__.*"),
)
# The projection after a text encoder that no model uses here. SDXL's second encoder uses it, so
# there it is the name of a layer.
_PROJECTION = (
    r"(lora_te1?_|lora_te1?\.|(text_encoders\.)?clip_[lh]\.|text_encoder\.)"
    r"(transformer\.)?(text_model[._])?text_projection"
)
_LEFTOVER = re.compile(
    rf"(.*\.)?({'|'.join(_ENDS)})|({'|'.join(_STARTS)})(\..*)?|{_PROJECTION}\..*"
)


def is_leftover(key: str) -> bool:
    """Return whether a key that belongs to no layer is known to have no effect."""
    return _LEFTOVER.fullmatch(key) is not None
