"""Prompts to what the UNet is conditioned with: windows of tokens, their weights, their embeddings.

A text encoder takes one window of 77 tokens. Of a longer prompt every 75 tokens are put between a
start and an end token of their own, and the embeddings of the windows follow each other.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import mlx.core as mx

from .clip import CLIPOutput, CLIPTextModel
from .config.model import ModelConfig
from .tokenizer.prompt_weights import find_networks, find_plain_syntax, parse_weights
from .tokenizer.tokenizer import Tokenizer
from .utils.wording import PromptWarning, abbreviate

# Here a step attends to about as many tokens of text as a picture of 512x512 has latents.
MAX_WINDOWS = 50

Reader = tuple[Tokenizer, CLIPTextModel]
Texts = str | Sequence[str]  # one for all pictures, or one for each


@dataclass(frozen=True)
class TextOptions:
    """How prompts are read; the arguments of `StableDiffusion.generate_latents`."""

    long_prompt: bool = False
    prompt_weights: bool = False
    clip_skip: int = 0

    @classmethod
    def of(
        cls, config: ModelConfig, long_prompt: bool, prompt_weights: bool, clip_skip: int
    ) -> "TextOptions":
        """The same, checked against a model.

        Raises:
            ValueError: `clip_skip` is out of its range.
        """
        most = config.most_clip_skip
        if clip_skip not in range(most + 1):
            raise ValueError(f"clip_skip must be from 0 to {most} for this model, got {clip_skip}")
        return cls(long_prompt, prompt_weights, clip_skip)


PLAIN = TextOptions()


@dataclass(frozen=True)
class Layer:
    """The layer of a text encoder that conditions the UNet, counted from the last one, 1."""

    position: int
    is_normalized: bool  # by the text encoder's final norm

    def of(self, text_encoder: CLIPTextModel, output: CLIPOutput, skipped: int) -> mx.array:
        """Its output [B, N, D], or that of the layer `skipped` before it."""
        states = output.hidden_states[-self.position - skipped]
        return text_encoder.final_layer_norm(states) if self.is_normalized else states


LAST = Layer(position=1, is_normalized=True)  # SD
PENULTIMATE = Layer(position=2, is_normalized=False)  # SDXL


@dataclass(frozen=True)
class Window:
    """What a text encoder reads at once: token ids [N], and what each of them weighs."""

    ids: list[int]
    weights: list[float]


def require_fit(tokenizer: Tokenizer, text_encoder: CLIPTextModel, name: str) -> None:
    """Refuse a tokenizer whose ids or windows the tables of a text encoder have no rows for.

    Raises:
        ValueError: so it is; `name` says of which model.
    """
    for what, table, n in (
        ("token ids", text_encoder.token_embedding, tokenizer.n_ids),
        ("positions", text_encoder.position_embedding, tokenizer.max_length),
    ):
        if n > (rows := len(table.weight)):
            raise ValueError(
                f"{name}: a tokenizer has {n} {what}, its text encoder has {rows}: they do not "
                "fit together"
            )


def windows(text: str, tokenizer: Tokenizer, options: TextOptions) -> list[Window]:
    """One window; or as many as `text` needs, where long prompts are asked for.

    Else what does not fit is dropped, with a warning.

    Raises:
        ValueError: a long prompt needs more than `MAX_WINDOWS`.
    """
    found, dropped = _read(text, tokenizer, options)
    if dropped:
        warnings.warn(tokenizer.tell_dropped(dropped), stacklevel=2)
    return found


def _read(text: str, tokenizer: Tokenizer, options: TextOptions) -> tuple[list[Window], str]:
    """The windows of a text, and the words that are dropped."""
    parts = parse_weights(text) if options.prompt_weights else [(text, 1.0)]
    words = (
        (word, [(token, weight) for token in ids])
        for part, weight in parts
        for word, ids in tokenizer.words(part)
    )
    dropped = ""
    if options.long_prompt:
        most = MAX_WINDOWS * tokenizer.room
        tokens = list(islice(chain.from_iterable(tokens for _, tokens in words), most + 1))
        if len(tokens) > most:
            raise ValueError(
                f"a prompt may have up to {most} tokens, this one has more: shorten it"
            )
    else:
        tokens, dropped = tokenizer.cut(words)
    starts = range(0, max(len(tokens), 1), max(tokenizer.room, 1))
    return [_window(tokens[i : i + tokenizer.room], tokenizer) for i in starts], dropped


def warn_of_syntax(texts: Mapping[str, str], prompt_weights: bool) -> None:
    """Warn of what other programs read in prompts, and this one takes for words.

    Args:
        texts: prompts, and what to call each.
        prompt_weights: whether brackets in them weigh.
    """
    tagged = {text: find_networks(text) for text in texts if "<" in text}
    tagged = {text: found for text, found in tagged.items() if found[0]}
    for text, (tags, options) in islice(tagged.items(), 1):
        advice = "take it out"
        if options:
            advice += f", and add the file with {' '.join(options)} (load_lora of the library)"
        else:
            advice += ", as hypernetworks are not supported"
        others = f", as are those of {len(tagged) - 1} more" if len(tagged) > 1 else ""
        named = abbreviate(" ".join(tags))
        message = f"{texts[text]} has {named}, which is read as words{others}: {advice}"
        warnings.warn(PromptWarning(message, topic="networks"), stacklevel=2)
    if not prompt_weights:
        return
    for text, name in texts.items():
        if found := find_plain_syntax(text):
            parts = " and ".join(f"{abbreviate(part)!r} ({kind})" for kind, part in found.items())
            message = (
                f"{name} has {parts}, which other programs read, and here is plain text: only "
                "(more), [less] and (this:1.3) weigh"
            )
            warnings.warn(PromptWarning(message, topic="syntax"), stacklevel=2)
            return


def embed(
    texts: Mapping[str, str], readers: Sequence[Reader], layer: Layer, options: TextOptions
) -> tuple[mx.array, mx.array]:
    """Embeddings [R, N, D] of R texts, and the pooled ones [R, P] of the last text encoder.

    `texts` are these with what to call each: of one that is cut a single warning says so.

    N is 77 for each window; all texts get as many as the longest, the others' being empty. D is
    the width of all text encoders together. Pooled is the first window.
    """
    read, is_told = [], set()
    for tokenizer, _ in readers:
        of_texts = []
        for text, name in texts.items():
            found, dropped = _read(text, tokenizer, options)
            of_texts.append(found)
            if dropped and text not in is_told:
                is_told.add(text)
                warnings.warn(tokenizer.tell_dropped(dropped, name), stacklevel=2)
        read.append(of_texts)
    n = max(len(of_text) for of_texts in read for of_text in of_texts)
    embeddings = []
    for (tokenizer, text_encoder), of_texts in zip(readers, read, strict=True):
        empty = _window([], tokenizer)
        rows = [row for of_text in of_texts for row in [*of_text, *[empty] * (n - len(of_text))]]
        output = text_encoder(mx.array([row.ids for row in rows]))
        states = layer.of(text_encoder, output, options.clip_skip)  # [R·n, 77, D]
        if options.prompt_weights:
            states = weigh(states, mx.array([row.weights for row in rows]))
        embeddings.append(states.reshape(len(texts), -1, states.shape[-1]))
    return mx.concatenate(embeddings, axis=-1), output.pooled_output[::n]


def embed_pairs(
    texts: Texts,
    negative_texts: Texts | None,
    readers: Sequence[Reader],
    layer: Layer,
    options: TextOptions,
    has_zeros: bool = False,
) -> tuple[mx.array, mx.array]:
    """What `embed` makes of texts, and then of as many to steer away from, if there are any.

    A text that comes several times is encoded once. With `has_zeros` an empty one to steer away
    from is all zeros, and not encoded.
    """
    texts = _listed(texts)
    negative_texts = [] if negative_texts is None else _listed(negative_texts)
    zeros = None  # stands for a text that is not encoded
    wanted = [*texts, *(text or zeros if has_zeros else text for text in negative_texts)]
    names = dict.fromkeys(texts, "prompt")
    names |= {text: "negative prompt" for text in negative_texts if text not in names}
    named = {text: names[text] for text in wanted if text is not zeros}
    warn_of_syntax({text: f"the {name}" for text, name in named.items()}, options.prompt_weights)
    embedded = embed(named, readers, layer, options)
    different = list(named)
    if zeros in wanted:
        embedded = [mx.concatenate([x, mx.zeros_like(x[:1])]) for x in embedded]
        different.append(zeros)
    rows = mx.array([different.index(text) for text in wanted])
    embeddings, pooled = (x[rows] for x in embedded)
    return embeddings, pooled


def for_each(texts: Texts, n_images: int, name: str) -> list[str]:
    """A text for each picture.

    Raises:
        ValueError: there are several, but not as many as pictures.
    """
    if isinstance(texts, str):
        return [texts] * n_images
    if len(texts) != n_images:
        raise ValueError(f"{name}: {len(texts)} texts are not one for each of n_images, {n_images}")
    return list(texts)


def size_ids(size: tuple[int, int], n: int) -> mx.array:
    """What SDXL's UNet is told of n pictures that are made whole, of (height, width) pixels.

    Original size, top left corner of the crop, target size (arXiv:2307.01952, section 2.2).
    """
    return mx.array([[*size, 0, 0, *size]] * n)  # [n, 6]


def _listed(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def weigh(states: mx.array, weights: mx.array) -> mx.array:
    """Embeddings [B, N, D] times the weights [B, N] of their tokens, the mean of each B restored.

    As AUTOMATIC1111's web UI does. Where all weights are 1 nothing changes, to the bit.
    """
    z = states.astype(mx.float32)
    weighted = z * weights[..., None]
    mean = weighted.mean(axis=(1, 2), keepdims=True)
    ratio = mx.where(mean == 0, 1, z.mean(axis=(1, 2), keepdims=True) / mean)
    return (weighted * ratio).astype(states.dtype)


def _window(tokens: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> Window:
    """Tokens, with their weights, between BOS and EOS and filled up."""
    ids = tokenizer.pad([tokenizer.bos_id, *(token for token, _ in tokens), tokenizer.eos_id])
    weights = [1.0, *(weight for _, weight in tokens)]
    return Window(ids, weights + [1.0] * (len(ids) - len(weights)))
