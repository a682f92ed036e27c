"""Multi-head attention with quantized weights and quantized operands of both products."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Method
from .quantizers import QuantizerLike, input_quantizer, weight_quantizer

PROJECTIONS = ("q", "k", "v")


class AttentionProducts(nn.Module):
    """The two products of attention, ``Q(softmax(Q(q)·Q(k)ᵀ/√d + mask))·Q(v)``; q, k, v signed, the map unsigned.

    Plain operations instead of the fused kernel: that one takes no rounded map and has no second derivative.
    """

    def attach_(self, bits: int, quantizer: QuantizerLike, like: Tensor) -> None:
        """Create the four quantizers, on the device of `like`."""
        for name in PROJECTIONS:
            self.add_module(f"{name}_quantizer", input_quantizer(quantizer, bits, like, signed=True))
        self.map_quantizer = input_quantizer(quantizer, bits, like, signed=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor], dropout: float) -> tuple[Tensor, Tensor]:
        """Return the output (…, heads, queries, d) and the map (…, heads, queries, keys) it was made with."""
        q, k, v = (cast(Any, getattr(self, f"{n}_quantizer"))(x) for n, x in zip(PROJECTIONS, (q, k, v), strict=True))
        scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
        for mask in masks:
            scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        attention_map = F.dropout(self.map_quantizer(scores.softmax(-1)), dropout)
        return attention_map @ v, attention_map


class QMultiheadAttention(nn.MultiheadAttention):
    """Attention that quantizes everything it multiplies; `quantize` makes it out of an `nn.MultiheadAttention`.

    ``[q, k, v] = Q(x)·(Q(w) + delta)ᵀ + b``, then `AttentionProducts`, then `out_proj`, a `QLinear`. The packed
    in_proj_weight keeps its name and shape; q, k and v each have a quantizer of their own on their third of it.
    The inputs share one step (in self-attention they are one tensor).

    Source: the map unsigned as in Liu et al.'s released code for DeiT. That dropout comes after the quantizer of the
    map, so that its levels are the same in training and evaluation, is our choice.
    """

    parts = ("", ".products")  # each can be given bits of its own; out_proj is found as a layer
    weight_name = "in_proj_weight"
    float_type: type[nn.Module]
    delta: Tensor
    # nn.TransformerEncoderLayer asks this before it takes its fused path, which would read the float weights
    _qkv_same_embed_dim = cast(Any, property(lambda self: False))

    @staticmethod
    def refusal(layer: Any) -> str | None:
        """Return why an `nn.MultiheadAttention` cannot become this, or None."""
        if layer.in_proj_weight is None:
            return "its keys or values have another width than its queries"
        return "it adds keys of its own" if layer.bias_k is not None or layer.add_zero_attn else None

    def attach_(
        self, bits: list[tuple[int, int]], quantizer: QuantizerLike, per_channel: bool, method: Method | None
    ) -> None:
        """Add quantizers and delta; `bits` are those of projections and products."""
        (weight_bits, input_bits), (_, product_bits) = bits
        for name, part in zip(PROJECTIONS, self.in_proj_weight.chunk(3), strict=True):
            module = weight_quantizer(quantizer, weight_bits, part, per_channel=per_channel, method=method)
            self.add_module(f"{name}_weight_quantizer", module)
        self.input_quantizer = input_quantizer(quantizer, input_bits, self.in_proj_weight)
        self.products = AttentionProducts()
        self.products.attach_(product_bits, quantizer, self.in_proj_weight)
        self.register_buffer("delta", torch.zeros_like(self.in_proj_weight, requires_grad=False), persistent=False)

    def detach_(self) -> None:
        """Remove what `attach_` added."""
        for name in [f"{p}_weight_quantizer" for p in PROJECTIONS] + ["input_quantizer", "products", "delta"]:
            delattr(self, name)

    def quantized_parts(self) -> dict[str, tuple[Any, Tensor]]:
        """Return name -> (quantizer, weight) of q, k and v."""
        thirds = zip(PROJECTIONS, self.in_proj_weight.chunk(3), strict=True)
        return {f"{name}_weight": (getattr(self, f"{name}_weight_quantizer"), weight) for name, weight in thirds}

    def used_weight(self) -> Tensor:
        """Return the packed weight that the forward pass uses."""
        return torch.cat([quantizer(w) for quantizer, w in self.quantized_parts().values()]) + self.delta

    @torch.no_grad()
    def quantized_weights(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return name -> (Q(w) without delta, the delta buffer itself, step of each row (3·width, 1))."""
        parts = self.quantized_parts().values()
        values = torch.cat([quantizer(w) for quantizer, w in parts])
        steps = torch.cat([quantizer.step_size(w).expand(len(w), 1) for quantizer, w in parts])
        return {"in_proj_weight": (values, self.delta, steps)}

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return q, k, v as (…, heads, length, d)."""
        xq = self.input_quantizer(self._batch_first(query))
        xk = xq if key is query else self.input_quantizer(self._batch_first(key))
        xv = xk if value is key else self.input_quantizer(self._batch_first(value))
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        thirds = zip((xq, xk, xv), self.used_weight().chunk(3), biases, strict=True)
        return [F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for x, w, b in thirds]

    def _batch_first(self, x: Tensor) -> Tensor:
        """Transpose batch and length unless `batch_first` (its own inverse)."""
        return x.transpose(0, 1) if x.ndim == 3 and not self.batch_first else x

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return output and, with `need_weights`, the map: arguments as those of `nn.MultiheadAttention`.

        `is_causal` is a hint for fused kernels: the mask that has to come with it is what counts. Where every key is
        masked the output is NaN.
        """
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask must be given when is_causal=True, got None: is_causal is only a hint")
        q, k, v = self._project(query, key, value)
        masks = []
        if attn_mask is not None:
            if attn_mask.shape[-2:] != (q.shape[-2], k.shape[-2]):
                expected = f"(…, {q.shape[-2]}, {k.shape[-2]})"
                raise ValueError(f"attn_mask must have shape {expected}, got {tuple(attn_mask.shape)}")
            masks.append(attn_mask if attn_mask.ndim == 2 else attn_mask.view(*q.shape[:-1], -1))
        if key_padding_mask is not None:
            masks.append(key_padding_mask[..., None, None, :])
        output, attention_map = self.products(q, k, v, masks, self.dropout if self.training else 0.0)
        output = self._batch_first(self.out_proj(output.transpose(-3, -2).flatten(-2)))
        if not need_weights:
            return output, None
        return output, attention_map.mean(-3) if average_attn_weights else attention_map
