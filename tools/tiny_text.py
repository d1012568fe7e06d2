"""Train the tiny text encoder to encode, in the tokens after a prompt, what the prompt asks for.

CLIP's encoder is causal, so only tokens after the last word know the whole prompt, and Stable
Diffusion attends to all 77. Here those tokens share the work by position: every third names the
first shape (left or upper), the next the second, the next the background. Linear probes on the
final hidden state read them during training and are discarded afterwards. So the UNet starts
with colours bound to shapes, which a diffusion loss takes longest to learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.shapes import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    PLACE_OF,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    mirrored,
)
from tools.tiny_model import END, POSITIONS, START, build_text_encoder, tokenize
from tools.tiny_training import Training, training_scenes
from tools.wording import caption

FIELDS = {  # what the tokens of a shape name; there are two more classes: open, and no such shape
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "place": tuple(PLACES),
}
ROLES = 3  # first shape, second shape, background: by position modulo 3
SHORT = 34  # tokens; longer than every caption (29 measured), and half the cost of 77


class Probes(nn.Module):
    """Linear readings of a final hidden state: logits of every field for every role."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(names) + 2 for names in FIELDS.values()]
        self.items = nn.ModuleList(nn.Linear(width, sum(self.sizes)) for _ in range(2))
        self.ground = nn.Linear(width, len(BACKGROUNDS) + 1)

    def loss(self, hidden: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy, in nats, of `target` [B, 9] read from `hidden` [B, L, C]."""
        after = ids == END  # [B, L]: the end and all the padding
        role = torch.arange(ids.shape[1]) % ROLES
        total = hidden.new_zeros(())
        for slot, probe in enumerate(self.items):
            row, column = torch.nonzero(after & (role == slot), as_tuple=True)
            logits = probe(hidden[row, column]).split(self.sizes, -1)
            for field, reading in enumerate(logits):
                total = total + F.cross_entropy(reading, target[row, 4 * slot + field])
        row, column = torch.nonzero(after & (role == 2), as_tuple=True)
        return total + F.cross_entropy(self.ground(hidden[row, column]), target[row, 8])


def labels(asked: Scene) -> list[int]:
    """Return class numbers for what `asked` says: `FIELDS` of two shapes, then the background."""
    if asked.relation in ("right of", "below"):
        asked = mirrored(asked)  # the left or upper one first
    if len(asked.items) == 1:
        places = [asked.place or "centre"]
    elif asked.relation is None:
        places = [None, None]
    else:
        places = [PLACE_OF[asked.relation], PLACE_OF[INVERSE[asked.relation]]]
    classes = []
    for item, place in zip(asked.items, places, strict=True):
        said = (item.shape, item.colour, item.size, place)
        for value, names in zip(said, FIELDS.values(), strict=True):
            classes.append(len(names) if value is None else names.index(value))
    if len(asked.items) == 1:
        classes += [len(names) + 1 for names in FIELDS.values()]
    ground = asked.background
    return [*classes, len(BACKGROUNDS) if ground is None else BACKGROUNDS.index(ground)]


class Vocabulary:
    """The tokens that captions use, numbered compactly: training need not carry 49408 rows."""

    def __init__(self, tokenizer: CLIPTokenizer, rng: np.random.Generator, draws: int) -> None:
        scenes = training_scenes(rng)
        captions = [caption(next(scenes)[0], rng) for _ in range(draws)]
        self.tokenizer = tokenizer
        self.used = torch.unique(tokenize(tokenizer, captions, POSITIONS))  # sorted
        if self.used[-2:].tolist() != [START, END]:
            raise ValueError("the tokenizer's last two tokens are not CLIP's start and end")

    def ids(self, captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return CLIP's token ids and their compact numbers, both [B, length]."""
        ids = tokenize(self.tokenizer, captions, length)
        return ids, torch.searchsorted(self.used, ids)

    def compact(self) -> CLIPTextModel:
        """Return the untrained text encoder with rows for the used tokens only."""
        config = build_text_config(len(self.used))
        return CLIPTextModel(config)

    def expand(self, compact: CLIPTextModel) -> CLIPTextModel:
        """Return the text encoder with CLIP's whole vocabulary.

        Unused rows hold the mean of the used ones: then a word that training never showed does no
        harm, and the file compresses well.
        """
        full = build_text_encoder()
        state = compact.state_dict()
        name = next(key for key in state if key.endswith("token_embedding.weight"))
        table = state[name].mean(0).repeat(len(full.state_dict()[name]), 1)
        table[self.used] = state[name]
        full.load_state_dict(state | {name: table})
        return full.eval()


def build_text_config(vocabulary: int) -> CLIPTextConfig:
    """Return the config of the text encoder for another number of tokens.

    The tokens of start and end stay the last two.
    """
    settings = build_text_encoder().config.to_dict()
    settings |= {
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    return CLIPTextConfig.from_dict(settings)


def train_text(
    encoder: CLIPTextModel, words: Vocabulary, steps: int, work: Path, seed: int, batch: int = 96
) -> None:
    """Train the compact `encoder` with probes; the average of its weights stays in it, frozen.

    Captions are padded to 34 tokens, and to 77 for the last 15% of the steps: rows of the position
    table beyond start as copies of rows with the same role.
    """
    modules = nn.ModuleDict({"encoder": encoder, "probes": Probes(encoder.config.hidden_size)})
    training = Training("text", modules.train(), steps, 1.5e-3, work)
    rng = np.random.default_rng([seed, 2, training.step])
    scenes = training_scenes(rng)
    position = next(p for n, p in encoder.named_parameters() if "position_embedding" in n)
    switch = int(0.85 * steps)
    for step in training:
        if step == switch:
            with torch.no_grad():
                for row in range(SHORT, POSITIONS):
                    position[row] = position[row - ROLES]
        asked = [next(scenes)[0] for _ in range(batch)]
        length = SHORT if step < switch else POSITIONS
        ids, compact = words.ids([caption(scene, rng) for scene in asked], length)
        target = torch.tensor([labels(scene) for scene in asked])  # [B, 9]
        hidden = encoder(compact).last_hidden_state  # [B, length, C]
        training.descend(modules["probes"].loss(hidden, ids, target), batch)
    training.average.copy_to(modules)
    encoder.eval().requires_grad_(False)
