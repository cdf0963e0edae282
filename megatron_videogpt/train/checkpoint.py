"""Checkpoints with megatron-core's `dist_checkpointing`: any layout saves, any layout loads.  Writing them is in `saver.py`.

A run's folder holds ``checkpoints/step_00001000/``, complete ones only: a checkpoint is written as ``.partial`` and renamed when all of it is on
the disk, and a run resumes from the newest.  Beside the tensors (weights, optimizer, average of the weights) each has `config.toml` and
`state.json` (step, consumed samples, pending statistics, seed, fingerprints of codec and data; `weights_only` where there is no optimizer).
megatron-core's metadata is pickled: load only checkpoints you trust; Hugging Face folders are for exchange.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from torch import nn

from ..config.load import load_config
from ..config.schema import Config, ModelConfig
from ..data.codec import Codec
from ..errors import RunError
from ..platforms import compat
from ..platforms.together import from_rank_zero, raise_together
from ..platforms.world import is_rank_zero
from . import ema
from .folders import complete, latest, read_state, step_of

log = logging.getLogger(__name__)

DECIDING = tuple(
    """source mixture frames min_frames frame_interval clips longest_side size_multiple min_side max_aspect validation_fraction cost_buckets max_video_mb
    max_video_frames max_megapixels physics""".split()
)
"""Options of the data section that decide which sample has which number, and what it is."""

WITHOUT_SHAPE = set("position_table_size norm_epsilon rope_theta rope_scaling max_position_embeddings original_max_position_embeddings init_std".split())
"""Options of the model section that no weight's shape follows from: the position table is computed from its size."""

LOOK_AGAIN = (0.0, 0.5, 1.0, 2.0, 3.0, 3.5)
"""Seconds between looks for a folder that rank 0 sees and this rank does not: NFS keeps attributes for some seconds."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint as rank 0 read it: its folder, what `state.json` holds, and the resolved configuration it was saved with."""

    path: Path
    state: dict[str, Any]
    config: Config

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.path.parent.parent


def find(run: Path, step: int | None = None, group: Any = None) -> Saved:
    """A run's checkpoint at `step`, or its newest: the one that rank 0 finds; a collective of all ranks (of `group`, if the default one is slow).

    Raises RunError in one line when there is none, and where some ranks do not see it.
    """

    def choose() -> Path:
        if not run.is_dir():
            raise RunError(f"{run}: no such folder; expected the output folder of a training run")
        have = {step_of(path): path for path in complete(run)}
        wanted = max(have, default=None) if step is None else step
        if wanted not in have:
            names = ", ".join(path.name for path in have.values()) or "none"
            raise RunError(f"{run}: no complete checkpoint{'' if step is None else f' of step {step}'}; it has: {names}")
        return have[wanted]

    found = _agreed(choose, group)
    assert found is not None
    return found


def newest(run: Path, group: Any = None) -> Saved | None:
    """A run's newest complete checkpoint, or None; as `find`."""
    return _agreed(lambda: latest(run), group)


def _agreed(choose: Callable[[], Path | None], group: Any) -> Saved | None:
    """What rank 0 chooses, once every rank sees all of its files; a collective."""

    def read() -> tuple[Saved, list[str]] | None:
        path = choose()
        return None if path is None else (_read(path), os.listdir(path))

    found = from_rank_zero(read, group, "looking for a checkpoint")
    if found is None:
        return None
    saved, files = found
    raise_together(_unseen(saved.path, files), group, "looking for a checkpoint")
    return saved


def _read(path: Path) -> Saved:
    try:
        return Saved(path, read_state(path), load_config(path / "config.toml"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: is damaged ({reason}); move that folder away to go on from the checkpoint before it") from error


def _unseen(path: Path, files: list[str]) -> str:
    """What is wrong where a folder does not come to hold `files` here: shared file systems keep old listings for a while."""
    gone = set(files)
    for pause in LOOK_AGAIN:
        time.sleep(pause)
        with contextlib.suppress(OSError):
            gone = set(files) - set(os.listdir(path))
        if not gone:
            return ""
    return f"{path}: {len(gone)} of its {len(files)} files are not seen there; every node needs the same train.output and train.init_from"


def check_same_model(saved: Saved, config: Config) -> None:
    """Raise RunError naming every difference between a checkpoint's model and this run's."""
    differences = _differences(saved, config, {"init_std"})
    if saved.config.train.precision != config.train.precision:
        differences.append(f"train.precision is {saved.config.train.precision} there and {config.train.precision} here")
    if differences:
        raise RunError(f"{saved.path} is a checkpoint of another model: {'; '.join(differences)}; use its config.toml, or another train.output")


def check_same_shapes(saved: Saved, config: Config) -> None:
    """Raise RunError where a run cannot start from a checkpoint's weights: they have other shapes.

    Weights are cast, and what has no weights (positions, epsilon) may differ; rank 0 names it.
    """
    differences = _differences(saved, config, WITHOUT_SHAPE)
    if differences:
        raise RunError(f"train.init_from = {saved.run}: weights of other shapes: {'; '.join(differences)}; use the [model] section of its config.toml")
    others = _differences(saved, config, {f.name for f in dataclasses.fields(ModelConfig)} - WITHOUT_SHAPE | {"init_std"})
    if others and is_rank_zero():
        log.warning("train.init_from = %s: %s; the weights start with what is here", saved.run, "; ".join(others))


def _differences(saved: Saved, config: Config, ignored: set[str]) -> list[str]:
    # 0 key/value heads stands for as many as there are query heads.
    there, here = (dataclasses.replace(model, num_query_groups=model.kv_heads) for model in (saved.config.model, config.model))
    names = [f.name for f in dataclasses.fields(there) if f.name not in ignored and getattr(there, f.name) != getattr(here, f.name)]
    return [f"model.{name} is {getattr(there, name)} there and {getattr(here, name)} here" for name in names]


def check_steps(saved: Saved, config: Config) -> None:
    """Raise RunError when a run has gone further than it is asked to go."""
    step = saved.state["step"]
    if step > config.train.steps:
        raise RunError(
            f"train.steps = {config.train.steps}: {saved.path} is at step {step} already; nothing to do. Use train.steps={step} or more, "
            f"or start another run from its weights (train.init_from={saved.run} and another train.output)"
        )


def check_same_codec(saved: Saved, codec: Codec, group: Any = None) -> None:
    """Raise RunError when a checkpoint's model was trained on the latents of another codec: its predictions would decode to noise.

    One that was converted without its VAE does not say.  A collective: every rank has built a codec of its own.
    """
    fingerprint = saved.state["codec"]
    other = (
        f"{saved.path} was trained with another {codec.name} codec (fingerprint {fingerprint[:12]}, this one has {codec.fingerprint[:12]}); "
        "use the codec it was trained with (codec.path, or the release of this package), or train anew in another train.output"
    )
    raise_together(other if fingerprint and fingerprint != codec.fingerprint else "", group, "comparing codecs")


def check_resumable(saved: Saved) -> None:
    """Raise RunError for a checkpoint of weights alone, which `tools/convert_checkpoint.py` makes: there is no optimizer to go on with."""
    if saved.state.get("weights_only"):
        raise RunError(
            f"{saved.path} holds weights without an optimizer, so training cannot go on in that folder; "
            f"start another run from them: train.init_from={saved.run} and another train.output"
        )


def check_same_seed(saved: Saved, config: Config) -> None:
    """Raise RunError when a run would go on with other random numbers: all of them come from the seed and the count of consumed samples."""
    seed = saved.state["seed"]
    if seed != config.train.seed:
        raise RunError(
            f"train.seed = {config.train.seed}: {saved.path} was saved with seed {seed}, which decides the order of its data; "
            f"use train.seed={seed}, or start another run from its weights (train.init_from={saved.run} and another train.output)"
        )


def check_same_data(saved: Saved, config: Config, data: dict[str, Any]) -> None:
    """Raise RunError when a run would go on with other samples than it was saved with (`run.State.data`); only warn with `data.allow_changed`.

    Checkpoints of earlier releases do not say.
    """
    fingerprint = (saved.state.get("data") or data)["fingerprint"]
    if fingerprint == data["fingerprint"]:
        return
    before = saved.config.data
    options = [name for name in DECIDING if getattr(before, name) != getattr(config.data, name)]
    changes = [f"data.{name} is {getattr(before, name)} there and {getattr(config.data, name)} here" for name in options]
    prints = f"fingerprint {fingerprint[:12]} there, {data['fingerprint'][:12]} here"
    what = f"since it was saved, {'; '.join(changes) or 'the data set has changed: its files, or how they are cut into samples'} ({prints})"
    if not config.data.allow_changed:
        raise RunError(
            f"{saved.path}: {what}: samples would come twice or not at all; use the data and options of its config.toml, start another run from its weights "
            f"(train.init_from={saved.run} and another train.output), or go on regardless with data.allow_changed=true"
        )
    if is_rank_zero():
        log.warning("%s: %s; data.allow_changed=true goes on regardless", saved.path, what)


def sharded_weights(chunks: Sequence[Any]) -> dict[str, Any]:
    """megatron-core's description of this rank's weights, one entry per model chunk (without its wrapping)."""
    return {f"chunk{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}


def check_average(saved: Saved) -> None:
    """Raise RunError for a checkpoint without a moving average of the weights."""
    if not saved.state["ema"]:
        raise RunError(f"{saved.path} has no moving average of the weights; train with optimizer.ema_decay (for example 0.9999), or use the weights themselves")


def load_weights(path: Path, chunks: Sequence[nn.Module], average: bool = False) -> None:
    """Fill a model (any layout) with a checkpoint's weights, or with their moving average, which it must have."""
    weights = sharded_weights(chunks)
    if not average:
        loaded = dist_checkpointing.load({"model": weights}, str(path))["model"]
        for chunk, values in zip(chunks, loaded.values()):
            chunk.load_state_dict(values)
        return
    ema.use(chunks, dist_checkpointing.load({"ema": ema.template(chunks, weights)}, str(path))["ema"])


def load(saved: Saved, chunks: Sequence[nn.Module], optimizer: Any, average: ema.Average | None) -> dict[str, Any]:
    """Restore a run from a checkpoint of any layout; returns its state.

    Where the checkpoint has no average of the weights but the run keeps one, it starts from the loaded weights.
    """
    state = saved.state
    # The template needs moments to describe, and a fresh torch Adam has none.
    compat.seed_optimizer_state(optimizer)
    weights = sharded_weights(chunks)
    sharded = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, is_loading=True, metadata=compat.OPTIMIZER_FORMAT)}
    if average is not None and state["ema"]:
        sharded["ema"] = ema.template(chunks, weights)
    loaded = dist_checkpointing.load(sharded, str(saved.path))
    for chunk, values in zip(chunks, loaded["model"].values()):
        chunk.load_state_dict(values)
    compat.load_optimizer(optimizer, loaded["optimizer"], state["updates"])
    if average is not None:
        average.restore(loaded["ema"]) if state["ema"] else average.restart()
    return state
