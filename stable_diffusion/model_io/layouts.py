"""How weight files name their tensors, and how those names become this package's.

A layout is a table of renames, matched on whole segments of a path between its dots.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

# Last segments of keys that are buffers of programs, and weights of no network here: places and
# masks of tokens, a factor for the training of CLIP, a counter of training steps.
BUFFERS = frozenset({"position_ids", "attn_mask", "logit_scale", "num_batches_tracked"})


@dataclass(frozen=True)
class Layout:
    """How the files of one network name its tensors."""

    # The file's names to this package's, one to one, so that errors can use the file's names.
    renames: Mapping[str, str]
    old_renames: Mapping[str, str] = field(default_factory=dict)  # older names to today's
    prefix: str = ""  # the start of every key, in some files but not in others
    buffers: frozenset[str] = frozenset()  # those of `BUFFERS` that the layout itself has
    optional: frozenset[str] = frozenset()  # parameters that a network may lack
    # The rest is for files that hold several networks: see `single_file.py`.
    root: str = ""  # the start of every key of this network
    unused: tuple[str, ...] = ()  # starts, after the root, of keys that are not needed
    leftovers: tuple[str, ...] = ()  # the same, of keys that the training has left
    # The end of a renamed path to the ends of the parameters that are stacked in this tensor, one
    # below the other.
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()  # parameters that are stored as [in, out]

    def has(self, key: str) -> bool:
        """Return whether the tensor `key` of a file holds weights of this network."""
        path = key.removeprefix(self.root)
        is_weight = key.rsplit(".", 1)[-1] not in BUFFERS
        is_needed = not path.startswith((*self.unused, *self.leftovers))
        return key.startswith(self.root) and is_weight and is_needed

    def is_leftover(self, key: str) -> bool:
        """Return whether the tensor `key` of this network is left over from a program."""
        path, end = key.removeprefix(self.root), key.rsplit(".", 1)[-1]
        is_foreign = path.startswith(self.leftovers) or end in BUFFERS - self.buffers
        return key.startswith(self.root) and is_foreign

    def parameters(self, key: str) -> tuple[str, ...]:
        """Return the paths of the parameters that the tensor `key` of a file holds."""
        path = key.removeprefix(self.root).removeprefix(self.prefix)
        path = rename(rename(path, self.old_renames), self.renames)
        for end, parts in self.fused.items():
            if path.endswith(end):
                return tuple(path.removesuffix(end) + part for part in parts)
        return (path,)

    def key(self, parameter: str) -> str:
        """Return the key of a parameter in a file as it is written today, without the prefix."""
        for end, parts in self.fused.items():
            for part in parts:
                if parameter.endswith(part):
                    parameter = parameter.removesuffix(part) + end
        renames = {ours: theirs for theirs, ours in self.renames.items()}
        return self.root + rename(parameter, renames)


def rename(path: str, table: Mapping[str, str]) -> str:
    """Return a path with every run of whole segments in the table replaced, longest runs first."""
    return _pattern(tuple(table)).sub(lambda match: table[match[1]], path) if table else path


@cache
def _pattern(runs: tuple[str, ...]) -> re.Pattern[str]:
    """Return the expression that finds any of the runs between dots or ends."""
    longest_first = "|".join(re.escape(run) for run in sorted(runs, key=len, reverse=True))
    return re.compile(rf"(?<![^.])({longest_first})(?![^.])")


_ATTENTION = {
    "to_q": "query_proj",
    "to_k": "key_proj",
    "to_v": "value_proj",
    "to_out.0": "out_proj",
}
_RESAMPLERS = {"downsamplers.0": "downsample", "upsamplers.0": "upsample"}

UNET = Layout(
    renames={**_ATTENTION, **_RESAMPLERS, "ff.net.0.proj": "ff.proj_in", "ff.net.2": "ff.proj_out"},
)
AUTOENCODER = Layout(
    renames={**_ATTENTION, **_RESAMPLERS},
    # Before diffusers 0.18.
    old_renames={"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"},
)
TEXT_ENCODER = Layout(
    renames={
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding": "position_embedding",
        "encoder.layers": "layers",
        "self_attn.q_proj": "attention.query_proj",
        "self_attn.k_proj": "attention.key_proj",
        "self_attn.v_proj": "attention.value_proj",
        "self_attn.out_proj": "attention.out_proj",
        "mlp.fc1": "linear1",
        "mlp.fc2": "linear2",
    },
    prefix="text_model.",  # absent from what transformers 5 writes of a CLIPTextModel
    buffers=frozenset({"position_ids"}),
    optional=frozenset({"text_projection.weight"}),  # of files with more than the config asks for
)

# In a folder of diffusers, by component.
LAYOUTS = {
    "unet": UNET,
    "vae": AUTOENCODER,
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": TEXT_ENCODER,
}
