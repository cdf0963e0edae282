"""A tiny model in training inside one process, for tests of the step and what is around it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor


class Session:
    """A tiny model in training on random latents."""

    def __init__(
        self,
        recompute: str = "none",
        precision: str = "fp32",
        rules: dict[str, dict[str, float]] | None = None,
        **optimizer: Any,
    ) -> None:
        from megatron_videogpt.checkpoint.average import Average
        from megatron_videogpt.config.schema import (
            AttentionConfig,
            Config,
            ModelConfig,
            OptimizerConfig,
            ParallelConfig,
            TrainConfig,
        )
        from megatron_videogpt.objective.build import build_network, build_objective
        from megatron_videogpt.platforms import activate
        from megatron_videogpt.train.optimizer import build_optimizer, wrap

        torch.manual_seed(0)
        self.config = Config(
            model=ModelConfig(
                num_layers=2,
                hidden_size=16,
                ffn_hidden_size=24,
                num_attention_heads=2,
                num_query_groups=1,
                position_table_size=4,
            ),
            parallel=ParallelConfig(recompute=recompute),
            attention=AttentionConfig(backend="reference"),
            optimizer=OptimizerConfig(**{"lr": 1e-2, "weight_decay": 0.1, **optimizer}),
            train=TrainConfig(precision=precision),
        )
        bare = build_network(self.config, 4, activate("cpu"), "reference")
        for parameter in bare.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        # Multipliers by parameter, as an objective's own table would have them.
        table = tuple(replace(rule, **(rules or {}).get(rule.name, {})) for rule in bare.table.rules)
        bare.table = replace(bare.table, rules=table)
        self.chunks = wrap(self.config, [bare])
        self.optimizer, self.objective = build_optimizer(self.config, self.chunks), build_objective(self.config)
        self.average = Average([bare], self.optimizer, self.config.optimizer.ema_decay or 0.9)

    @property
    def networks(self) -> list[Any]:
        """As a run has them."""
        from megatron_videogpt.objective.build import parts_of
        from megatron_videogpt.train.networks import Network

        return [Network(parts_of(self.config)[0], self.config, self.chunks, self.optimizer)]

    def rows(self, number: int, factor: float = 1.0) -> list[Any]:
        """Two micro-batches; latents times `factor`."""
        from megatron_videogpt.data.plans import Sample
        from megatron_videogpt.objective.noise import normal

        samples = [
            Sample(key=n, name=str(n), mean=factor * normal(n, "latents", (4, 4, 4, 4)), logvar=None, clips=(1, 2, 1))
            for n in (number, number + 1000)
        ]
        return [self.objective.prepare([sample], 1) for sample in samples]

    def step(self, rows: list[Any], clip: float = 1.0, limit: float = math.inf) -> Any:
        """One optimizer step with its average."""
        from megatron_videogpt.train.step import train_step

        done = train_step(self.chunks, self.optimizer, self.objective, rows, clip, lambda: limit)
        self.average.update(done.taken)
        return done

    def parameters(self) -> list[Tensor]:
        """Main parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def named(self) -> dict[str, Tensor]:
        """Main parameters by the name of their parameter of the model; whole, in one process."""
        from megatron_videogpt.platforms import compat

        names = {parameter: name for name, parameter in self.chunks[0].module.named_parameters()}
        return {names[parameter]: main for parameter, main, _, _ in compat.main_shards(self.optimizer)}

    def everything(self) -> list[Tensor]:
        """Copies of weights, main parameters, moments, step counts and the average."""
        inner = self.optimizer.chained_optimizers[0].optimizer
        states = [value for p in self.parameters() for value in inner.state[p].values()]
        return [
            x.detach().clone()
            for x in [*self.chunks[0].parameters(), *self.parameters(), *states, *self.average.shards]
        ]
