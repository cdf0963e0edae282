"""What platforms put in the place of `torch.cuda`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch


def redirected() -> dict[str, Any]:
    """Every name of `torch.cuda` and `torch.cuda.random` that the CPU platform sets, and what it sets it to."""
    from megatron_videogpt.platforms import activate

    activate("cpu")
    modules = {"torch.cuda": torch.cuda, "torch.cuda.random": torch.cuda.random}
    here = "megatron_videogpt.platforms.cpu"
    return {
        f"{prefix}.{name}": value
        for prefix, module in modules.items()
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == here
    }


def test_the_cpus_functions_are_objects_of_their_own() -> None:
    """torch 2.7's compiler refuses one object under a name of torch.cuda and another name of torch, if its tables treat
    the names differently.
    """
    found = redirected()
    assert {
        "torch.cuda.manual_seed",
        "torch.cuda.random.manual_seed",
        "torch.cuda.set_rng_state",
        "torch.cuda.Stream",
    } <= set(found)
    for module in (torch.cuda, torch.cuda.random):
        for name in ("manual_seed", "get_rng_state", "set_rng_state"):
            theirs = [
                key for key, value in {**vars(torch), **vars(torch.random)}.items() if value is getattr(module, name)
            ]
            assert theirs == [], f"{module.__name__}.{name} is also torch.{theirs}"


def test_the_compilers_tables_of_torch_2_7_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables had another rule for `torch.cuda.manual_seed` than for `torch.random.manual_seed`."""
    from torch._dynamo import trace_rules
    from torch._dynamo.variables import SkipFunctionVariable, TorchInGraphFunctionVariable

    redirected()
    rules = {"torch.random.manual_seed": SkipFunctionVariable, "torch.cuda.manual_seed": TorchInGraphFunctionVariable}
    rules["torch.cuda.random.manual_seed"] = TorchInGraphFunctionVariable
    monkeypatch.setattr(trace_rules, "torch_name_rule_map", [rules])
    table = trace_rules.get_torch_obj_rule_map.__wrapped__()
    assert len(table) == 2
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="Duplicate torch object"):
        patch.setattr(torch.cuda, "manual_seed", torch.random.manual_seed)
        trace_rules.get_torch_obj_rule_map.__wrapped__()


def test_seeding_the_device_seeds_the_cpu() -> None:
    redirected()
    torch.cuda.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3))


@pytest.mark.usefixtures("processes")
def test_layers_can_be_wrapped_as_mindspeed_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wrapper of `SelfAttention.__init__` takes the configuration from two or more positional arguments, or by
    name.
    """
    from megatron.core.transformer.attention import SelfAttention

    from tests.session import Session

    real, seen = SelfAttention.__init__, []

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(args[0] if len(args) > 1 else kwargs["config"])
        real(self, *args, **kwargs)

    monkeypatch.setattr(SelfAttention, "__init__", wrapped)
    session = Session()
    assert [config.num_layers for config in seen] == [2, 2] and session.step(session.rows(0)).taken


def test_a_device_for_a_while_still_holds_for_the_redirected_factories() -> None:
    """transformers builds models on the device meta; with arange on the CPU its CLIP kept positions that nobody wrote.

    In a process of its own: the list that torch goes by is made once.
    """
    program = (
        "import torch; from megatron_videogpt.platforms import activate; activate('cpu')\n"
        "with torch.device('meta'):\n"
        "    made = [torch.arange(3), torch.zeros(2), torch.full((2,), 1.0), torch.tensor([1]), torch.empty(1)]\n"
        "assert all(part.device.type == 'meta' for part in made), made\n"
        "assert torch.zeros(2, device='cuda').device.type == 'cpu'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
