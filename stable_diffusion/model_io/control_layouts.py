"""How the files of control networks name their tensors; see `layouts.py`."""

from .layouts import UNET, Layout

CONTROLNET = Layout(renames=UNET.renames)
CONTROLNET_UNION = Layout(
    renames={
        **UNET.renames,
        "transformer_layes": "transformer_layers",  # so spelt in the files
        "mlp.c_fc": "c_fc",
        "mlp.c_proj": "c_proj",
    },
    # PyTorch's attention has the three projections in one tensor.
    fused={
        f"attn.in_proj_{kind}": tuple(
            f"attn.{name}_proj.{kind}" for name in ("query", "key", "value")
        )
        for kind in ("weight", "bias")
    },
)
T2I_ADAPTER = Layout(renames={}, prefix="adapter.")
