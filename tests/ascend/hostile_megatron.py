"""What `hostile` does to megatron-core."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch


def everywhere(old: Any, new: Any) -> None:
    """In the place of `old`, in every module that holds it under its name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(old.__name__) is old:
            setattr(module, old.__name__, new)


def wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """A method."""
    setattr(owner, name, functools.wraps(getattr(owner, name))(wrapper(getattr(owner, name))))


def change(options: dict[str, Any]) -> None:
    """Configuration, attention, modules, optimizer, random numbers.  options: as parsed."""
    import torch_npu
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.attention import SelfAttention
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig

    _change_config(TransformerConfig, options)
    wrap(SelfAttention, "__init__", lambda real: _with_config(real, options))
    wrap(MegatronModule, "__init__", lambda real: lambda self, *args, **kwargs: real(self, *args, **kwargs))
    wrap(DistributedOptimizer, "load_state_dict", _knows_no_new_format)

    def set_state(state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
        torch_npu.npu._lazy_call(lambda: torch_npu.npu.default_generators[torch.cuda.current_device()].set_state(state))

    set_state.__name__ = "_set_cuda_rng_state"
    everywhere(random._set_cuda_rng_state, set_state)


def _change_config(config: Any, options: dict[str, Any]) -> None:
    """Options become fields of what is derived from it from now on, and are looked for when one is made."""

    def derived(cls: Any, **kwargs: Any) -> None:
        known = inspect.signature(cls).parameters
        for name, value in options.items():
            if name not in known and not hasattr(cls, name):
                cls.__annotations__[name] = type(value)
                setattr(cls, name, value)

    def init(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
            known = inspect.signature(type(self)).parameters
            self.__class__ = dataclasses.make_dataclass(type(self).__name__, [], bases=(type(self),))
            for name, value in options.items():
                if name not in known and not hasattr(self, name):
                    setattr(self, name, value)
            real(self, *args, **{name: value for name, value in options.items() if name in known} | kwargs)

        return wrapper

    def post_init(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any) -> None:
            real(self)
            missing = [name for name in options if not hasattr(self, name)]
            if missing:
                raise AttributeError(f"{type(self).__name__} was derived before the adaptor: it has no {missing[0]}")
            if self.sparse_mode not in (0, 2) and self.use_flash_attn:
                raise ValueError("sparse_mode")

        return wrapper

    config.__init_subclass__ = classmethod(derived)
    wrap(config, "__init__", init)
    wrap(config, "__post_init__", post_init)


def _with_config(real: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        config = args[0] if len(args) > 1 else kwargs["config"]
        config.attention_was_wrapped = True
        real(self, *args, **kwargs)

    return init


def _knows_no_new_format(real: Callable[..., Any]) -> Callable[..., Any]:
    def load(self: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if state.get("param_state_sharding_type") == "fully_reshardable" and "param_state" in state:
            raise NotImplementedError("Unknown sharding_type: fully_reshardable")
        return real(self, state, *args, **kwargs)

    return load
