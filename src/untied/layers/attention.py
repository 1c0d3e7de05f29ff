"""Multi-head attention whose projections are untied."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import UntiedError
from ..geometry import DENSE, Geometry
from .layer import LAYERS, Untied

__all__ = ["UntiedMultiheadAttention", "UntiedOutputProjection"]


class UntiedOutputProjection(Untied, NonDynamicallyQuantizableLinear):
    """The output projection inside `nn.MultiheadAttention`, with ``backward_weight`` [E, E].

    >>> import torch, untied
    >>> model = torch.nn.MultiheadAttention(8, 2)
    >>> _ = untied.untie_(model, "fa")
    >>> type(model.out_proj).__name__, tuple(model.out_proj.backward_weight.shape)
    ('UntiedOutputProjection', (8, 8))
    """

    def geometry(self) -> Geometry:
        return DENSE


class UntiedMultiheadAttention(Untied, nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose projections are untied: ``in_proj_backward_weight``, or one for q, k and
    v each, and ``out_proj.backward_weight``. The products of queries, keys and values are activity, not
    weights, and stay as they are.

    >>> import torch, untied
    >>> model = torch.nn.MultiheadAttention(8, 2)
    >>> print(untied.untie_(model, "fa"))
    converted 2 layers
      (the model): MultiheadAttention, rule fa
      out_proj: NonDynamicallyQuantizableLinear, rule fa
    >>> tuple(model.in_proj_backward_weight.shape)
    (24, 8)
    """

    weights = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

    def geometry(self) -> Geometry:
        return DENSE

    def forward(  # type: ignore[override]
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
        """As the plain layer's, arguments and results: query [m, n, E], key and value [l, n, ...], or batch first.

        Raises:
            UntiedError: ``is_causal`` without ``attn_mask``.
        """
        if is_causal and attn_mask is None:
            raise UntiedError("is_causal=True needs attn_mask too, as in nn.MultiheadAttention: give the causal mask")
        batched, same = query.dim() == 3, query is key and key is value
        q_in, k_in, v_in = (self._batch_first(t, batched) for t in (query, key, value))
        q, k, v = self._project(q_in, k_in, v_in, same)
        n, _, E = q.shape
        key_padding_mask = _additive(key_padding_mask, q.dtype)
        attn_mask = _additive(attn_mask, q.dtype)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.reshape(n, 1, 1, -1)
        if attn_mask is not None:
            attn_mask = attn_mask.reshape(
                -1 if attn_mask.dim() == 3 else 1,
                self.num_heads if attn_mask.dim() == 3 else 1,
                *attn_mask.shape[-2:],
            )
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(n, 1, E).to(k.dtype)], 1)
            v = torch.cat([v, self.bias_v.expand(n, 1, E).to(v.dtype)], 1)
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(n, 1, E)], 1) for t in (k, v))
        extra = (self.bias_k is not None) + self.add_zero_attn
        if extra:
            key_padding_mask, attn_mask = (
                None if m is None else F.pad(m, (0, extra)) for m in (key_padding_mask, attn_mask)
            )
        mask = (
            attn_mask
            if key_padding_mask is None
            else key_padding_mask
            if attn_mask is None
            else attn_mask + key_padding_mask
        )
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v)
        )  # [n, heads, length, E / heads]
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout)
            z = weights @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(z.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        return x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)

    def _project(self, q: Tensor, k: Tensor, v: Tensor, same: bool) -> tuple[Tensor, ...]:
        bias = None if self.in_proj_bias is None else "in_proj_bias"
        if not self._qkv_same_embed_dim:
            E, names = self.embed_dim, ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            return tuple(
                self._add_bias(self.connect(x, DENSE, name, None), slice(i * E, (i + 1) * E))
                for i, (x, name) in enumerate(zip((q, k, v), names, strict=True))
            )
        if same:
            return self.connect(q, DENSE, "in_proj_weight", bias).chunk(3, dim=-1)
        E = self.embed_dim
        return tuple(
            self.connect(x, DENSE, "in_proj_weight", bias, slice(i * E, (i + 1) * E)) for i, x in enumerate((q, k, v))
        )

    def _add_bias(self, y: Tensor, rows: slice) -> Tensor:
        return y if self.in_proj_bias is None else y + self.in_proj_bias[rows].to(y.dtype)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask (True: leave out) as one that is added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


LAYERS[NonDynamicallyQuantizableLinear] = UntiedOutputProjection
LAYERS[nn.MultiheadAttention] = UntiedMultiheadAttention
