"""Prompts → the embeddings that condition the UNet.

A text encoder reads one window of 77 tokens. A longer prompt is split into windows: 75 tokens each,
between a start and an end token of their own. The embeddings of the windows are concatenated.
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
from .utils.wording import InputWarning, abbreviate

# At this limit the text has about as many tokens as a picture of 512x512 pixels has latents.
MAX_WINDOWS = 50

Reader = tuple[Tokenizer, CLIPTextModel]
Texts = str | Sequence[str]  # one for all pictures, or one for each


@dataclass(frozen=True)
class TextOptions:
    """The options of the generators for reading prompts, see `GenerationOptions`."""

    long_prompt: bool = False
    prompt_weights: bool = False
    clip_skip: int = 0

    @classmethod
    def for_model(
        cls, config: ModelConfig, long_prompt: bool, prompt_weights: bool, clip_skip: int
    ) -> "TextOptions":
        """Return the options, checked against a model.

        Raises:
            ValueError: if `clip_skip` is out of range.
        """
        max_skip = config.max_clip_skip
        if clip_skip not in range(max_skip + 1):
            raise ValueError(
                f"clip_skip must be from 0 to {max_skip} for this model, got {clip_skip}"
            )
        return cls(long_prompt, prompt_weights, clip_skip)


PLAIN = TextOptions()


@dataclass(frozen=True)
class Layer:
    """The layer of a text encoder that conditions the UNet, counted from the last one, 1."""

    position: int
    is_normalized: bool  # by the text encoder's final norm

    def select(self, text_encoder: CLIPTextModel, output: CLIPOutput, clip_skip: int) -> mx.array:
        """Return the output [B, N, D] of this layer, or of the one `clip_skip` layers before it."""
        states = output.hidden_states[-self.position - clip_skip]
        return text_encoder.final_layer_norm(states) if self.is_normalized else states


LAST = Layer(position=1, is_normalized=True)  # SD
PENULTIMATE = Layer(position=2, is_normalized=False)  # SDXL


@dataclass(frozen=True)
class Window:
    """What a text encoder reads at once: N token ids, and the weight of each."""

    ids: list[int]
    weights: list[float]


def require_fit(tokenizer: Tokenizer, text_encoder: CLIPTextModel, name: str) -> None:
    """Check that a text encoder's tables have rows for a tokenizer's ids and positions.

    Added tokens without a row are errors in prompts only.

    Args:
        name: of the model, for the message.

    Raises:
        ValueError: if they do not.
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
    tokenizer.limit_ids(len(text_encoder.token_embedding.weight))


def split_into_windows(
    text: str, tokenizer: Tokenizer, options: TextOptions
) -> tuple[list[Window], str]:
    """Return the windows of a text, and the words that are dropped because they do not fit.

    There are as many windows as the text needs with `long_prompt`, otherwise one.

    Raises:
        ValueError: if a long prompt needs more than `MAX_WINDOWS`.
    """
    parts = parse_weights(text) if options.prompt_weights else [(text, 1.0)]
    words = (
        (word, [(token, weight) for token in ids])
        for part, weight in parts
        for word, ids in tokenizer.words(part)
    )
    dropped = ""
    if options.long_prompt:
        max_tokens = MAX_WINDOWS * tokenizer.room
        tokens = list(islice(chain.from_iterable(tokens for _, tokens in words), max_tokens + 1))
        if len(tokens) > max_tokens:
            raise ValueError(
                f"a prompt may have up to {max_tokens} tokens, this one has more: shorten it"
            )
    else:
        tokens, dropped = tokenizer.cut(words)
    starts = range(0, max(len(tokens), 1), max(tokenizer.room, 1))
    return [_make_window(tokens[i : i + tokenizer.room], tokenizer) for i in starts], dropped


def _make_window(tokens: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> Window:
    """Put tokens with their weights between BOS and EOS, and pad them to a window."""
    ids = tokenizer.pad([tokenizer.bos_id, *(token for token, _ in tokens), tokenizer.eos_id])
    weights = [1.0, *(weight for _, weight in tokens)]
    return Window(ids, weights + [1.0] * (len(ids) - len(weights)))


def warn_of_syntax(texts: Mapping[str, str], prompt_weights: bool) -> None:
    """Warn of syntax in prompts that other programs interpret and this one reads as plain text.

    Args:
        texts: what to call each prompt in the warning, by prompt.
        prompt_weights: whether brackets give weights to parts of the prompts.
    """
    _warn_of_networks(texts)
    if prompt_weights:
        _warn_of_plain_syntax(texts)


def _warn_of_networks(texts: Mapping[str, str]) -> None:
    """Warn of the first prompt that names a network, such as `<lora:name:0.8>`."""
    networks = {text: find_networks(text) for text in texts if "<" in text}
    named_in = [text for text, (tags, _) in networks.items() if tags]
    if not named_in:
        return
    tags, options = networks[named_in[0]]
    advice = "take it out"
    if options:
        advice += f", and add the file with {' '.join(options)} (in the library: load_lora)"
    else:
        advice += ", as hypernetworks are not supported"
    n_others = len(named_in) - 1
    noun = "prompt" if n_others == 1 else "prompts"
    others = f", and so are the tags of {n_others} more {noun}" if n_others else ""
    message = (
        f"{texts[named_in[0]]} has {abbreviate(' '.join(tags))}, which is read as words{others}: "
        f"{advice}"
    )
    warnings.warn(InputWarning(message, topic="networks"), stacklevel=3)


def _warn_of_plain_syntax(texts: Mapping[str, str]) -> None:
    """Warn of the first prompt that has syntax of other programs."""
    for text, name in texts.items():
        if found := find_plain_syntax(text):
            parts = " and ".join(f"{abbreviate(part)!r} ({kind})" for kind, part in found.items())
            message = (
                f"{name} has {parts}, which other programs interpret, but which is plain text "
                "here: only (more), [less] and (this:1.3) have weights"
            )
            warnings.warn(InputWarning(message, topic="syntax"), stacklevel=3)
            return


def embed(
    texts: Mapping[str, str], readers: Sequence[Reader], layer: Layer, options: TextOptions
) -> tuple[mx.array, mx.array]:
    """Return the embeddings of R texts, and their pooled embeddings by the last text encoder.

    Args:
        texts: what to call each text in a warning, by text. There is one warning for each text
            that is cut.
        readers: the tokenizers, each with its text encoder.
        layer: the layer of the text encoders whose output is taken.

    Returns:
        Embeddings [R, N, D]: N is 77 for each window; all texts get as many windows as the longest
        one needs, and the windows that are added to the others are empty. D is the width of all
        text encoders together. Pooled ones [R, P], of the first windows.
    """
    windows: list[list[list[Window]]] = []  # by reader, then by text
    warned: set[str] = set()
    for tokenizer, _ in readers:
        windows.append([])
        for text, name in texts.items():
            found, dropped = split_into_windows(text, tokenizer, options)
            windows[-1].append(found)
            if dropped and text not in warned:
                warned.add(text)
                warnings.warn(tokenizer.make_dropped_warning(dropped, name), stacklevel=2)
    n = max(len(found) for by_text in windows for found in by_text)
    embeddings = []
    for (tokenizer, text_encoder), by_text in zip(readers, windows, strict=True):
        empty = _make_window([], tokenizer)
        rows = [row for found in by_text for row in [*found, *[empty] * (n - len(found))]]
        output = text_encoder(mx.array([row.ids for row in rows]))
        states = layer.select(text_encoder, output, options.clip_skip)  # [R·n, 77, D]
        if options.prompt_weights:
            states = apply_weights(states, mx.array([row.weights for row in rows]))
        embeddings.append(states.reshape(len(texts), -1, states.shape[-1]))
    return mx.concatenate(embeddings, axis=-1), output.pooled_output[::n]


def apply_weights(states: mx.array, weights: mx.array) -> mx.array:
    """Multiply embeddings [B, N, D] by the weights [B, N] of their tokens, and restore their mean.

    The mean is taken over each window, as in AUTOMATIC1111's web UI. If all weights are 1 nothing
    changes, to the bit.
    """
    z = states.astype(mx.float32)
    weighted = z * weights[..., None]
    mean = weighted.mean(axis=(1, 2), keepdims=True)
    ratio = mx.where(mean == 0, 1, z.mean(axis=(1, 2), keepdims=True) / mean)
    return (weighted * ratio).astype(states.dtype)


def embed_pairs(
    texts: Texts,
    negative_texts: Texts | None,
    readers: Sequence[Reader],
    layer: Layer,
    options: TextOptions,
    has_zeros: bool = False,
) -> tuple[mx.array, mx.array]:
    """Return the embeddings of B texts and of as many negative texts, if there are any.

    A text that occurs several times is encoded once.

    Args:
        has_zeros: let zeros stand for an empty negative text, instead of its embeddings.

    Returns:
        Embeddings [B, N, D] and pooled ones [B, P], see `embed`. With negative texts, [2B, …]: the
        rows of the negative texts come second.
    """
    texts = _to_list(texts)
    negative_texts = _to_list([] if negative_texts is None else negative_texts)
    names = dict.fromkeys(texts, "prompt")
    for text in negative_texts:
        if text or not has_zeros:
            names.setdefault(text, "negative prompt")
    warn_of_syntax({text: f"the {name}" for text, name in names.items()}, options.prompt_weights)
    embeddings, pooled = embed(names, readers, layer, options)
    row_of = {text: i for i, text in enumerate(names)}
    rows = [row_of[text] for text in texts]
    if has_zeros and "" in negative_texts:
        embeddings, pooled = (
            mx.concatenate([x, mx.zeros_like(x[:1])]) for x in (embeddings, pooled)
        )
        row_of = {**row_of, "": len(names)}
    rows += [row_of[text] for text in negative_texts]
    return embeddings[mx.array(rows)], pooled[mx.array(rows)]


def _to_list(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def expand_texts(texts: Texts, n_images: int, name: str) -> list[str]:
    """Return a text for each picture.

    Args:
        name: of the argument, for the message.

    Raises:
        ValueError: if there are several texts, but not as many as pictures.
    """
    if isinstance(texts, str):
        return [texts] * n_images
    if len(texts) != n_images:
        raise ValueError(
            f"{name}: got {len(texts)} texts for n_images = {n_images}: give one for all pictures, "
            "or one for each"
        )
    return list(texts)


def make_time_ids(height: int, width: int, n: int) -> mx.array:
    """Return the sizes that SDXL's UNet takes for n uncropped pictures: [n, 6].

    Original size, top left corner of the crop, target size (arXiv:2307.01952, section 2.2), each
    as (height, width) in pixels.
    """
    return mx.array([[height, width, 0, 0, height, width]] * n)
