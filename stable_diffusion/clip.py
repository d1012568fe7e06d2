"""The CLIP text encoders (Radford et al. 2021, arXiv:2103.00020)."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .activations import ACTIVATIONS
from .attention import Attention
from .config.networks import CLIPTextConfig
from .device.cpu_kernels import compute_dtype
from .layers import Linear


@dataclass
class CLIPOutput:
    """The results of a text encoder for tokens [B, N]; D is the width of the encoder."""

    pooled_output: mx.array  # [B, D] at the end token; [B, projection_dim] with a projection
    last_hidden_state: mx.array  # [B, N, D], normalized
    hidden_states: list[mx.array]  # the embeddings, then the output of each layer, [B, N, D]


class CLIPEncoderLayer(nn.Module):
    """A transformer layer: attention and a perceptron, each after a norm and added to its input."""

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        dims = config.hidden_size
        self.activation = ACTIVATIONS[config.hidden_act]
        self.layer_norm1 = nn.LayerNorm(dims, eps=config.layer_norm_eps)
        self.attention = Attention(dims, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(dims, eps=config.layer_norm_eps)
        self.linear1 = Linear(dims, config.intermediate_size)
        self.linear2 = Linear(config.intermediate_size, dims)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.attention(x, causal=True, norm=self.layer_norm1, residual=x)
        h = self.activation(self.linear1(x, norm=self.layer_norm2))
        return self.linear2(h, residual=x)


class CLIPTextModel(nn.Module):
    """The network from token ids [B, N] to a `CLIPOutput`.

    N is at most the number of rows of the position table, 77.
    """

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        dims = config.hidden_size
        self.eos_token_id = config.eos_token_id
        self.token_embedding = nn.Embedding(config.vocab_size, dims)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, dims)
        self.layers = [CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.final_layer_norm = nn.LayerNorm(dims, eps=config.layer_norm_eps)
        if config.has_projection:
            self.text_projection = Linear(dims, config.projection_dim, bias=False)

    def __call__(self, tokens: mx.array) -> CLIPOutput:
        positions = mx.arange(tokens.shape[1])
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        x = x.astype(compute_dtype(x.dtype))
        hidden_states = [x]
        for layer in self.layers:
            x = layer(x)
            hidden_states.append(x)
        last_hidden_state = self.final_layer_norm(x)

        rows = mx.arange(tokens.shape[0])
        pooled = last_hidden_state[rows, self._find_end_positions(tokens)]  # [B, D]
        if "text_projection" in self:
            pooled = self.text_projection(pooled)
        return CLIPOutput(pooled, last_hidden_state, hidden_states)

    def _find_end_positions(self, tokens: mx.array) -> mx.array:
        """Return the position of each row's first end token: [B]."""
        if self.eos_token_id == 2:
            # Configs from before transformers 4.31 say 2, which is another token. In CLIP's
            # vocabulary the end token has the highest id.
            return tokens.argmax(axis=1)
        return (tokens == self.eos_token_id).argmax(axis=1)
