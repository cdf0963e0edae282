"""Linear maps that tensor parallel ranks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .base import TransformerEngineBaseModule, get_dummy_wgrad, mark


def _gathered(x: Tensor, group: Any) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts)


def _summed(x: Tensor, group: Any) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


def _scattered(x: Tensor, group: Any) -> Tensor:
    return _summed(x, group).chunk(group.size())[group.rank()].contiguous()


def _as_is(x: Tensor, group: Any) -> Tensor:
    return x


class _Between(torch.autograd.Function):
    """Something between ranks forward, its counterpart backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, there: Callable[..., Tensor], back: Callable[..., Tensor]) -> Tensor:
        ctx.group, ctx.back = group, back
        return there(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grads[0], ctx.group), None, None, None


class _Product(torch.autograd.Function):
    """`x @ weight.T`, whose gradient of the weight may be added to `weight.main_grad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, fuse: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.fuse, ctx.main_grad = fuse, weight.main_grad if fuse and weight.requires_grad else None
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        rows, columns = grad.flatten(0, -2), x.flatten(0, -2)
        if not ctx.fuse:
            return grad_x, rows.t() @ columns, None
        ctx.main_grad.add_(rows.t().to(ctx.main_grad.dtype) @ columns.to(ctx.main_grad.dtype))
        if not hasattr(weight, "grad_added_to_main_grad"):
            return grad_x, None, None
        weight.grad_added_to_main_grad = True
        zero = bool(getattr(weight, "zero_out_wgrad", False))
        return grad_x, get_dummy_wgrad(list(weight.shape), weight.dtype, zero=zero), None


class Linear(TransformerEngineBaseModule):
    """`x @ weight.T + bias`; tokens are the first dimension of x."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: Any = None,
        device: Any = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        save_original_input: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        overlaps = (ub_overlap_ag, ub_overlap_rs, ub_overlap_rs_dgrad, ub_bulk_dgrad, ub_bulk_wgrad)
        unknown = any(overlaps) or delay_wgrad_compute or symmetric_ar_type or parameters_split
        if unknown:
            raise NotImplementedError("overlap, delayed gradients, symmetric memory and splits are not modelled")
        assert parallel_mode in ("column", "row", None), f"parallel_mode {parallel_mode} not supported"
        self.fuse_wgrad_accumulation, self.parallel_mode = fuse_wgrad_accumulation, parallel_mode
        self.tp_size = tp_size if tp_group is None else tp_group.size()
        self.set_tensor_parallel_group(tp_group)
        self.sequence_parallel = self.tp_size > 1 and sequence_parallel
        self.in_features = in_features // self.tp_size if parallel_mode == "row" else in_features
        self.out_features = out_features // self.tp_size if parallel_mode == "column" else out_features
        self.use_bias, self.return_bias, self.apply_bias = bias, return_bias, bias and not return_bias
        self.save_original_input = save_original_input
        like = {"dtype": params_dtype or torch.get_default_dtype(), "device": device}
        weight = torch.nn.Parameter(torch.empty(self.out_features, self.in_features, **like))
        self.register_parameter("weight", weight, init_method, get_rng_state_tracker)
        if bias:
            self.register_parameter("bias", torch.nn.Parameter(torch.empty(self.out_features, **like)), _zero)
        else:
            self.bias = torch.Tensor().to(**like)
        self.reset_parameters(defer_init=str(device) == "meta")

    def reset_parameters(self, defer_init: bool = False) -> None:
        """Start values, and the marks of what is split."""
        super().reset_parameters(defer_init)
        if defer_init:
            return
        mark(self.weight, True, 1 if self.parallel_mode == "row" else 0, 1)
        if self.use_bias and self.parallel_mode == "row":
            self.bias.sequence_parallel = self.sequence_parallel
        elif self.use_bias and self.parallel_mode == "column":
            mark(self.bias, True, 0, 1)

    def forward(
        self,
        inp: Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Any:
        """`[tokens, batch, in]` -> the same with `out`, and the bias beside it if it is to be returned."""
        assert inp.dtype == self.weight.dtype, "Data types for parameters must match when outside of autocasted region."
        split, group = self.tp_size > 1, self.tp_group
        if split and self.parallel_mode == "column":
            inp = _Between.apply(
                inp, group, *((_gathered, _scattered) if self.sequence_parallel else (_as_is, _summed))
            )
        out = _Product.apply(inp, self.weight, self.fuse_wgrad_accumulation)
        if split and self.parallel_mode == "row":
            out = _Between.apply(
                out, group, *((_scattered, _gathered) if self.sequence_parallel else (_summed, _as_is))
            )
        if self.apply_bias:
            out = out + self.bias
        return (out, self.bias) if self.return_bias else out


def _zero(x: Tensor) -> None:
    torch.nn.init.zeros_(x)
