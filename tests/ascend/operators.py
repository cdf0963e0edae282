"""torch_npu's operators on a CPU: defined by the texts that its wheels register (schemas.json), so that torch's own
dispatcher refuses wrong keywords and types, and computed by the emulator beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import attention, fused

WHEELS = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))["wheels"]
VERSIONS = tuple(WHEELS)
"""Versions of torch_npu that can be defined."""

Values = dict[str, Any]
"""Argument -> value, all arguments of a schema."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "npu_fusion_attention": attention.forward,
    "npu_fusion_attention_grad": attention.backward,
    "npu_rms_norm": fused.rms_norm,
    "npu_rms_norm_backward": fused.rms_norm_backward,
    "npu_swiglu": fused.swiglu,
    "npu_swiglu_backward": fused.swiglu_backward,
    "npu_rotary_mul": fused.rotary_mul,
    "npu_rotary_mul_backward": fused.rotary_mul_backward,
}


def define(version: str, namespace: str = "npu") -> torch.library.Library:
    """Define the operators of one version in `torch.ops.<namespace>`, for CPU tensors.  They are there as long as the
    library that is returned; a namespace holds one version at a time.
    """
    library = torch.library.Library(namespace, "DEF")
    for name, text in WHEELS[version]["schemas"].items():
        library.define(text)
        schema = torch._C.parse_schema(text)
        library.impl(name, _kernel(schema, FUNCTIONS[name]), "CPU")
        if name in GRADIENTS:
            library.impl(name, _differentiable(schema, namespace, *GRADIENTS[name]), "AutogradCPU")
    return library


@contextmanager
def defined(version: str, namespace: str = "npu") -> Iterator[Any]:
    """As `define`, for the time of a `with`; gives `torch.ops.<namespace>`."""
    library = define(version, namespace)
    try:
        yield getattr(torch.ops, namespace)
    finally:
        library._destroy()


def _values(schema: Any, positional: tuple[Any, ...], keywords: Values) -> Values:
    """The dispatcher leaves out what equals a default."""
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    return defaults | dict(zip(defaults, positional)) | keywords


def _kernel(schema: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    count = len(schema.returns)

    def run(*positional: Any, **keywords: Any) -> Any:
        result = function(**_values(schema, positional, keywords))
        # Gradients of inputs that are not there (pse, sink) come as undefined tensors, as many as the version has.
        return result if count == 1 else (*result, *[None] * (count - len(result)))

    return run


def _attention_gradients(operators: Any, values: Values, outputs: tuple[Any, ...], grads: tuple[Any, ...]) -> Any:
    """torch_npu's formula: it uses the gradient of the attention alone, whatever flows into the statistics."""
    shared = {name: values[name] for name in attention.SHARED}
    call = [values[name] for name in ("query", "key", "value")]
    return operators.npu_fusion_attention_grad(
        *call,
        grads[0],
        values["head_num"],
        values["input_layout"],
        softmax_max=outputs[1],
        softmax_sum=outputs[2],
        attention_in=outputs[0],
        scale_value=values["scale"],
        **shared,
    )[:3]


def _norm_gradients(operators: Any, values: Values, outputs: tuple[Any, ...], grads: tuple[Any, ...]) -> Any:
    return operators.npu_rms_norm_backward(grads[0], values["input"], values["gamma"], outputs[1])


def _swiglu_gradients(operators: Any, values: Values, outputs: tuple[Any, ...], grads: tuple[Any, ...]) -> Any:
    return (operators.npu_swiglu_backward(grads[0].contiguous(), values["input"], values["dim"]),)


def _rotary_gradients(operators: Any, values: Values, outputs: tuple[Any, ...], grads: tuple[Any, ...]) -> Any:
    angles = (values["r1"], values["r2"])
    return operators.npu_rotary_mul_backward(grads[0], values["input"], *angles, values["rotary_mode"])


GRADIENTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "npu_fusion_attention": (_attention_gradients, ("query", "key", "value")),
    "npu_rms_norm": (_norm_gradients, ("input", "gamma")),
    "npu_swiglu": (_swiglu_gradients, ("input",)),
    "npu_rotary_mul": (_rotary_gradients, ("input", "r1", "r2")),
}
"""Operators that differentiate themselves: by which formula, and with respect to what."""


def _differentiable(
    schema: Any, namespace: str, formula: Callable[..., Any], names: tuple[str, ...]
) -> Callable[..., Any]:
    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Values, *inputs: Tensor) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                result = getattr(getattr(torch.ops, namespace), schema.name.split("::")[-1])(**values)
            outputs = (result,) if isinstance(result, Tensor) else result
            ctx.save_for_backward(*inputs, *(x for x in outputs if isinstance(x, Tensor)))
            ctx.values = {name: None if name in names else value for name, value in values.items()}
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            inputs, outputs = ctx.saved_tensors[: len(names)], ctx.saved_tensors[len(names) :]
            values = ctx.values | dict(zip(names, inputs))
            found = formula(getattr(torch.ops, namespace), values, outputs, grads)
            # Autograd wants each gradient in the dtype of what it belongs to, as torch_npu's does: dgamma is float32.
            return None, *(grad.to(x.dtype) for grad, x in zip(found, inputs))

    def run(*positional: Any, **keywords: Any) -> Any:
        values = _values(schema, positional, keywords)
        return Differentiable.apply(values, *(values[name] for name in names))

    return run
