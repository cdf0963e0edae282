"""What must fit before a run starts from a checkpoint: model, codec, seed, data.  Each is one line, the same on
every rank.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from ..codec.base import Codec
from ..condition.folder import fingerprint_of
from ..condition.options import IDS
from ..config.schema import Config, ModelConfig
from ..config.toml import show
from ..errors import RunError
from ..objective import build as objective
from ..platforms.together import raise_together
from ..platforms.world import is_rank_zero
from .saved import Saved

log = logging.getLogger(__name__)

DECIDING = tuple(
    """source mixture frames min_frames frame_interval clips longest_side size_multiple min_side max_aspect
    validation_fraction cost_buckets max_video_mb max_video_frames max_megapixels physics""".split()
)
"""Options of the data section that decide which sample has which number, and what it is."""


WITHOUT_SHAPE = set(
    "position_table_size norm_epsilon rope_theta rope_scaling max_position_embeddings "
    "original_max_position_embeddings init_std dropout".split()
)
"""Options of the model section that no weight's shape follows from: the position table is computed from its size; but
learned positions have `max_position_embeddings` rows.
"""


def check_same_model(saved: Saved, config: Config) -> None:
    """Raise RunError naming every difference between a checkpoint's model and this run's."""
    differences = _differences(saved, config, {"init_std"})
    if saved.config.train.precision != config.train.precision:
        differences.append(f"train.precision is {saved.config.train.precision} there and {config.train.precision} here")
    if differences:
        raise RunError(
            f"{saved.path} is a checkpoint of another model: {'; '.join(differences)}; use its config.toml, "
            "or another train.output"
        )
    _check_same_meaning(saved, config)


def _check_same_meaning(saved: Saved, config: Config) -> None:
    """Raise RunError where weights of the same shapes mean something else to this run's objective."""
    found = objective.differences(saved.config, config)
    if found:
        raise RunError(
            f"{saved.path} was trained otherwise: {'; '.join(found)}; use the [objective] and [condition] sections of "
            "its config.toml, or train anew in another train.output"
        )


def check_same_shapes(saved: Saved, config: Config) -> None:
    """Raise RunError where a run cannot start from a checkpoint's weights: they have other shapes.

    Weights are cast, and what has no weights (positions, epsilon) may differ; rank 0 names it.
    """
    learned = {"max_position_embeddings"} if config.model.positions == "learned" else set()
    differences = _differences(saved, config, WITHOUT_SHAPE - learned)
    if differences:
        raise RunError(
            f"train.init_from = {saved.run}: weights of other shapes: {'; '.join(differences)}; use the "
            "[model] section of its config.toml"
        )
    _check_same_meaning(saved, config)
    others = _differences(
        saved, config, {f.name for f in dataclasses.fields(ModelConfig)} - WITHOUT_SHAPE | {"init_std"}
    )
    if others and is_rank_zero():
        log.warning("train.init_from = %s: %s; the weights start with what is here", saved.run, "; ".join(others))


def _differences(saved: Saved, config: Config, ignored: set[str]) -> list[str]:
    # 0 key/value heads stands for as many as there are query heads.
    there, here = (
        dataclasses.replace(model, num_query_groups=model.kv_heads) for model in (saved.config.model, config.model)
    )
    names = [
        f.name
        for f in dataclasses.fields(there)
        if f.name not in ignored and getattr(there, f.name) != getattr(here, f.name)
    ]
    return [f"model.{name} is {getattr(there, name)} there and {getattr(here, name)} here" for name in names]


def check_same_condition(saved: Saved, config: Config, encoder: str, resumes: bool) -> bool:
    """Raise RunError where a checkpoint's model was trained with other conditions than this run's; whether what makes a
    prefix of them is not in the checkpoint and has to start anew.

    encoder: fingerprint of this run's text encoder.  A run that does not resume may start from the weights of a model
    without conditions, or go on without.
    """
    there, here = saved.config.condition, config.condition
    if not resumes and "none" in (there.kind, here.kind):
        return bool(here.kind != there.kind and here.kind != "none")
    names = {"class": ("kind", "classes"), "text": ("kind", "width")}.get(here.kind, ("kind",))
    differences = [
        f"condition.{name} is {show(getattr(there, name))} there and {show(getattr(here, name))} here"
        for name in names
        if getattr(there, name) != getattr(here, name)
    ]
    if encoder and not resumes and there.text_from != here.text_from:
        # A fingerprint is also of which texts: who starts from weights may go on from captions to labels, with the same
        # encoder.  Features that were encoded before do not tell it without.
        known = here.encoder in ("words", IDS) or here.encoder_path
        encoder = fingerprint_of(dataclasses.replace(here, text_from=there.text_from)) if known else ""
    differences = differences or other_encoder(saved, encoder)
    if differences:
        raise RunError(
            f"{saved.path} was trained with other conditions: {'; '.join(differences)}; use the [condition] section of "
            "its config.toml, or train anew in another train.output"
        )
    return False


def other_encoder(saved: Saved, encoder: str) -> list[str]:
    """What tells that a checkpoint's model was trained with features of another text encoder; nothing where that is not
    known.
    """
    recorded = saved.state.get("text_encoder", "")
    if not recorded or not encoder or recorded == encoder:
        return []
    return [f"the text encoder has the fingerprint {recorded[:12]} there and {encoder[:12]} here"]


def check_same_codec(saved: Saved, codec: Codec, group: Any = None) -> None:
    """Raise RunError when a checkpoint's model was trained on the latents of another codec: its predictions would
    decode to noise.

    One that was converted without its VAE does not say.  A collective: every rank has built a codec of its own.
    """
    raise_together(_other_codec(saved, codec), group, "comparing codecs")


def _other_codec(saved: Saved, codec: Codec) -> str:
    """Why a checkpoint's model does not fit this codec, or ""."""
    recorded = saved.state["codec"]
    if not recorded or codec.identity.accepts(recorded):
        return ""
    return (
        f"{saved.path} was trained with another {codec.name} codec (fingerprint {recorded[:12]}, this one "
        f"has {codec.fingerprint[:12]}{codec.identity.reason(recorded)}); "
        "use the codec it was trained with (codec.path, or the release of this package), or train anew in "
        "another train.output"
    )


def check_resumable(saved: Saved) -> None:
    """Raise RunError for a checkpoint of weights alone, which `convert` makes: there is no
    optimizer to go on with.
    """
    if saved.state.get("weights_only"):
        raise RunError(
            f"{saved.path} holds weights without an optimizer, so training cannot go on in that folder; "
            f"start another run from them: train.init_from={saved.run} and another train.output"
        )


def check_same_seed(saved: Saved, config: Config) -> None:
    """Raise RunError when a run would go on with other random numbers: all of them come from the seed and the count of
    consumed samples.
    """
    seed = saved.state["seed"]
    if seed != config.train.seed:
        raise RunError(
            f"train.seed = {config.train.seed}: {saved.path} was saved with seed {seed}, which decides the "
            "order of its data; "
            f"use train.seed={seed}, or start another run from its weights (train.init_from={saved.run} and "
            "another train.output)"
        )


def check_same_data(saved: Saved, config: Config, data: dict[str, Any]) -> None:
    """Raise RunError when a run would go on with other samples than it was saved with (`run.State.data`); only warn
    with `data.allow_changed`.

    Checkpoints of earlier releases do not say.
    """
    fingerprint = (saved.state.get("data") or data)["fingerprint"]
    if fingerprint == data["fingerprint"]:
        return
    before = saved.config.data
    options = [name for name in DECIDING if getattr(before, name) != getattr(config.data, name)]
    changes = [
        f"data.{name} is {getattr(before, name)} there and {getattr(config.data, name)} here" for name in options
    ]
    prints = f"fingerprint {fingerprint[:12]} there, {data['fingerprint'][:12]} here"
    what = (
        "since it was saved, "
        f"{'; '.join(changes) or 'the data set has changed: its files, or how they are cut into samples'} "
        f"({prints})"
    )
    if not config.data.allow_changed:
        raise RunError(
            f"{saved.path}: {what}: samples would come twice or not at all; use the data and options of its "
            "config.toml, start another run from its weights "
            f"(train.init_from={saved.run} and another train.output), or go on regardless with data.allow_changed=true"
        )
    if is_rank_zero():
        log.warning("%s: %s; data.allow_changed=true goes on regardless", saved.path, what)


def check_average(saved: Saved) -> None:
    """Raise RunError for a checkpoint without a moving average of the weights."""
    if not saved.state["ema"]:
        raise RunError(
            f"{saved.path} has no moving average of the weights; train with optimizer.ema_decay (for example "
            "0.9999), or use the weights themselves"
        )
