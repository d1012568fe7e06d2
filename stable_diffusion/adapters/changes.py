"""Changes of layers by adapters: what each kind does to a weight W [O, ..., I] and to a bias [O].

A `Change` is a function from one weight to another, so that several are applied one after another.
It can also be applied without the weight, to a function `product` from x [..., I] to W x [..., O].
That is for quantized weights, which are then never stored in full.

The factors have the type that the network computes in; weights are changed in float32.
"""

import copy
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..layers import multiply

Product = Callable[[mx.array], mx.array]  # from x [..., I] to W x [..., O]

MIN_NORM = 1e-12  # of a row or column that is not regarded as zeros


class Change(nn.Module):
    """A change of a layer. What a kind does not override stays as it is."""

    def change_weight(self, weight: mx.array) -> mx.array:
        """Return the changed weight [O, ..., I], in float32, of a weight in float32."""
        return weight

    def change_bias(self, bias: mx.array | None) -> mx.array | None:
        """Return the changed bias [O]; None stands for no bias."""
        return bias

    def multiply(self, product: Product, x: mx.array) -> mx.array:
        """Return the product [..., O] of the changed weight and x [..., I]."""
        return product(x)

    def prepare(self, weight: mx.array) -> "Change":
        """Return a change with the same `multiply`, which is fast for many calls.

        Args:
            weight: the weight [O, I] that is changed. It is not computed if it is not used.
        """
        return self

    def astype(self, dtype: mx.Dtype) -> "Change":
        """Return the change with its factors in another type."""
        change = copy.copy(self)
        for name, value in self.items():
            parts = value if isinstance(value, list) else [value]
            parts = [part.astype(dtype) for part in parts]
            change[name] = parts if isinstance(value, list) else parts[0]
        return change


class LowRank(Change):
    """LoRA (arXiv:2106.09685): W + U D.

    Args:
        down: D [rank, ..., I].
        up: U [O, rank], multiplied by the scale.
    """

    def __init__(self, down: mx.array, up: mx.array):
        super().__init__()
        self.down = down
        self.up = up

    def change_weight(self, weight: mx.array) -> mx.array:
        difference = widen(self.up) @ widen(self.down.flatten(1))
        return weight + difference.reshape(weight.shape)

    def multiply(self, product: Product, x: mx.array) -> mx.array:
        return multiply(multiply(x, self.down), self.up, residual=product(x))

    def append(self, other: "LowRank") -> "LowRank":
        """Return the sum of both as one change, whose rank is the sum of their ranks."""
        return LowRank(
            mx.concatenate([self.down, other.down]), mx.concatenate([self.up, other.up], axis=1)
        )


class Hadamard(Change):
    """LoHa (arXiv:2108.06098): W + (U₁ D₁) ⊙ (U₂ D₂).

    Args:
        down1, down2: D₁, D₂ [rank, ..., I].
        up1, up2: U₁, U₂ [O, rank]; U₁ is multiplied by the scale.
    """

    def __init__(self, down1: mx.array, up1: mx.array, down2: mx.array, up2: mx.array):
        super().__init__()
        self.down1 = down1
        self.up1 = up1
        self.down2 = down2
        self.up2 = up2

    def change_weight(self, weight: mx.array) -> mx.array:
        first = widen(self.up1) @ widen(self.down1.flatten(1))
        second = widen(self.up2) @ widen(self.down2.flatten(1))
        return weight + (first * second).reshape(weight.shape)

    def prepare(self, weight: mx.array) -> Change:
        """Return a `LowRank` of rank₁ · rank₂, or a `Difference` if that takes less memory."""
        n_out, n_in = weight.shape
        rank = len(self.down1) * len(self.down2)
        if rank * (n_out + n_in) >= n_out * n_in:
            return Difference(self.change_weight(mx.zeros_like(weight)).astype(self.up1.dtype))
        # The product of two sums over the ranks is one sum over all pairs of ranks.
        down = (self.down1[:, None] * self.down2).reshape(rank, n_in)
        up = (self.up1[:, :, None] * self.up2[:, None]).reshape(n_out, rank)
        return LowRank(down, up)


class Kronecker(Change):
    """LoKr (arXiv:2309.14859): W + A ⊗ B.

    Args:
        first: A [a, b], multiplied by the scale.
        second: B [c, ..., d], with O = a c and I = b d.
    """

    def __init__(self, first: mx.array, second: mx.array):
        super().__init__()
        self.first = first
        self.second = second

    def change_weight(self, weight: mx.array) -> mx.array:
        second = widen(self.second)
        flat = second.reshape(len(second), -1, second.shape[-1])  # [c, pixels, d]
        difference = mx.einsum("ab,cpd->acpbd", widen(self.first), flat)
        return weight + difference.reshape(weight.shape)

    def multiply(self, product: Product, x: mx.array) -> mx.array:
        blocks = mx.unflatten(x, -1, (self.first.shape[1], -1))  # [..., b, d]
        blocks = self.first @ (blocks @ self.second.T)  # [..., a, c]
        return product(x) + blocks.flatten(-2)


class Difference(Change):
    """A full difference: W + Δ, for Δ [O, ..., I] that is multiplied by the scale."""

    def __init__(self, difference: mx.array):
        super().__init__()
        self.difference = difference

    def change_weight(self, weight: mx.array) -> mx.array:
        return weight + self.difference

    def multiply(self, product: Product, x: mx.array) -> mx.array:
        return multiply(x, self.difference, residual=product(x))


class BiasDifference(Change):
    """A difference of the bias: b + δ [O], for δ that is multiplied by the scale."""

    def __init__(self, difference: mx.array):
        super().__init__()
        self.difference = difference

    def change_bias(self, bias: mx.array | None) -> mx.array:
        return self.difference if bias is None else bias + self.difference


class InputAndOutput(Change):
    """GLoRA (arXiv:2306.07967), as LyCORIS trains it: W + W A₁ A₂ + B₁ B₂.

    Args:
        down: A₂ [rank, I].
        up: A₁ [I, rank], multiplied by the scale.
        added: B₁ B₂, which does not depend on the weight.
    """

    def __init__(self, down: mx.array, up: mx.array, added: LowRank):
        super().__init__()
        self.down = down
        self.up = up
        self.added = added

    def change_weight(self, weight: mx.array) -> mx.array:
        difference = weight @ widen(self.up) @ widen(self.down)
        return self.added.change_weight(weight + difference)

    def multiply(self, product: Product, x: mx.array) -> mx.array:
        changed = multiply(multiply(x, self.down), self.up, residual=x)
        return multiply(multiply(x, self.added.down), self.added.up, residual=product(changed))


class ScaleChannels(Change):
    """(IA)³ (arXiv:2205.05638), as LyCORIS trains it: each channel of W is scaled by 1 + v.

    Args:
        vector: v [O], or [I] if on_input, multiplied by the scale.
        on_input: whether the channels of the input are scaled.
    """

    def __init__(self, vector: mx.array, on_input: bool):
        super().__init__()
        self.vector = vector
        self.on_input = on_input

    def change_weight(self, weight: mx.array) -> mx.array:
        factors = 1 + widen(self.vector)
        return weight * (factors if self.on_input else align_rows(factors, weight))

    def multiply(self, product: Product, x: mx.array) -> mx.array:
        factors = 1 + self.vector
        return product(x * factors) if self.on_input else product(x) * factors


class Decomposed(Change):
    """DoRA (arXiv:2402.09353): the changed weight, with other norms of its rows or columns.

    The weight is (1 - s) W + s m ⊙ V / ‖V‖, where V is the weight that other changes make of W.

    Args:
        changes: the changes that make V, without the scale.
        magnitude: m, the norms of the rows [O], or of the columns [I] if on_input.
        scale: s. At 0 the weight stays as it is.
        on_input: whether the norms are those of columns, for each channel of the input.
    """

    def __init__(
        self, changes: Sequence[Change], magnitude: mx.array, scale: float, on_input: bool
    ):
        super().__init__()
        self.changes = list(changes)
        self.magnitude = magnitude
        self.scale = scale
        self.on_input = on_input

    def change_weight(self, weight: mx.array) -> mx.array:
        changed = apply_changes(self.changes, weight)
        factors = self._compute_factors(changed)
        changed = changed * (factors if self.on_input else align_rows(factors, weight))
        return changed if self.scale == 1 else weight + self.scale * (changed - weight)

    def prepare(self, weight: mx.array) -> Change:
        factors = self._compute_factors(apply_changes(self.changes, weight))
        factors = factors.astype(self.magnitude.dtype)
        prepared = prepare_changes(self.changes, weight)
        return PreparedDecomposed(prepared, factors, self.scale, self.on_input)

    def _compute_factors(self, changed: mx.array) -> mx.array:
        """Return m / ‖V‖, [I] or [O]."""
        axes = tuple(range(changed.ndim - 1)) if self.on_input else tuple(range(1, changed.ndim))
        squares = mx.square(changed).sum(axes)
        norms = mx.sqrt(mx.maximum(squares, MIN_NORM**2))
        return mx.where(squares > MIN_NORM**2, widen(self.magnitude) / norms, 0)


class PreparedDecomposed(Change):
    """A `Decomposed` for one weight, whose norms are computed: `factors` are m / ‖V‖."""

    def __init__(self, changes: Sequence[Change], factors: mx.array, scale: float, on_input: bool):
        super().__init__()
        self.changes = list(changes)
        self.factors = factors
        self.scale = scale
        self.on_input = on_input

    def multiply(self, product: Product, x: mx.array) -> mx.array:
        factors = self.scale * self.factors
        if self.on_input:
            y = chain(self.changes, product)(x * factors)
            return y if self.scale == 1 else y + (1 - self.scale) * product(x)
        plain = product(x)  # which most changes ask for, too
        y = chain(self.changes, lambda z: plain if z is x else product(z))(x) * factors
        return y if self.scale == 1 else y + (1 - self.scale) * plain


def apply_changes(changes: Sequence[Change], weight: mx.array) -> mx.array:
    """Return the weight in float32 after changes, one after another."""
    weight = widen(weight)
    for change in changes:
        weight = change.change_weight(weight)
    return weight


def prepare_changes(changes: Sequence[Change], weight: mx.array) -> list[Change]:
    """Return the changes, one after another, prepared for a weight [O, I]."""
    weight = widen(weight)
    prepared = []
    for change in changes:
        prepared.append(change.prepare(weight))
        weight = change.change_weight(weight)
    return prepared


def chain(changes: Sequence[Change], product: Product) -> Product:
    """Return the product with the weight after changes, one after another."""
    for change in changes:
        product = _apply(change, product)
    return product


def _apply(change: Change, product: Product) -> Product:
    return lambda x: change.multiply(product, x)


def widen(x: mx.array) -> mx.array:
    """Return an array as float32."""
    return x.astype(mx.float32)


def align_rows(vector: mx.array, weight: mx.array) -> mx.array:
    """Return a vector [O] in a shape that is broadcast along the rows of a weight [O, ..., I]."""
    return vector.reshape(-1, *[1] * (weight.ndim - 1))
