"""The tensors of a layer in adapter files: the end of a key, as each program spells it.

A tensor is known by the end that kohya's scripts and LyCORIS write (`PARTS`). What others write is
in the table `_SPELLINGS`.
"""

import re

from ..model_io.layouts import rename

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
MAGNITUDE = "dora_scale"
IA3_INPUT = "on_input"
# (IA)³'s, and the rest of a difference that LyCORIS extracted. Alone, they are of the layer itself.
PLAIN_PARTS = ("weight", "bias")
PARTS = (
    *(DOWN, UP, "lora_mid.weight", "lora_down.bias", "lora_up.bias", ALPHA),  # LoRA, LoCon
    *(MAGNITUDE, "scalar"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),  # LoHa
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm1.weight", "bm2.weight"),  # GLoRA
    IA3_INPUT,
    *("diff", "diff_b", "w_norm", "b_norm"),  # whole differences
    *("bias_indices", "bias_values", "bias_size"),  # of a bias, sparse
)
# What programs write → the start of the parts above.
_SPELLINGS = {
    "lora.down": "lora_down",  # diffusers before PEFT
    "lora.up": "lora_up",
    "lora_layer.down": "lora_down",
    "lora_layer.up": "lora_up",
    "lora_linear_layer.down": "lora_down",  # the same, text encoders
    "lora_linear_layer.up": "lora_up",
    "lora_A": "lora_down",  # PEFT and newer diffusers
    "lora_B": "lora_up",
    "lora_magnitude_vector": MAGNITUDE,
    "lora_magnitude_vector.weight": MAGNITUDE,
    "weight.diff": "diff",
    "bias.diff": "diff_b",
} | {  # the oldest diffusers, attention only
    f"{old}.{side}": f"{new}.lora_{side}"
    for side in ("down", "up")
    for old, new in {
        **{f"processor.to_{name}_lora": f"to_{name}" for name in "qkv"},
        "processor.to_out_lora": "to_out.0",
        **{f"self_attn.to_{name}_lora": f"self_attn.{name}_proj" for name in "qkv"},
        "self_attn.to_out_lora": "self_attn.out_proj",
    }.items()
}
# PEFT's name for the adapter inside a key, as in `to_q.lora_A.default.weight`.
_ADAPTER = re.compile(
    r"\.(lora_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+)\.(?!(?:weight|bias)$)[^.]+"
)
_BARE_ENDS = ("lora_down", "lora_up", "lora_mid")  # without the `.weight` that belongs to them
_KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, (*PARTS, *_BARE_ENDS)))})")


def split_key(key: str) -> tuple[str, str] | None:
    """Return the name of the layer, and the part of `PARTS`; None for other keys."""
    match = _KEY.fullmatch(key)
    if match is None or match[1].endswith((".weight", ".bias")):  # not kohya's spelling
        match = _KEY.fullmatch(rename(_ADAPTER.sub(r".\1", key), _SPELLINGS))
    if match is None:
        return None
    name, part = match.groups()
    return name, f"{part}.weight" if part in _BARE_ENDS else part


def split_plain_key(key: str) -> tuple[str, str] | None:
    """Return the name of the layer, and the part of `PLAIN_PARTS`; None for other keys."""
    name, _, part = key.rpartition(".")
    return (name, part) if name and part in PLAIN_PARTS else None
