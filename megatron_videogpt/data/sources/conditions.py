"""Data sets that bring what a run's conditions are made of: labels and captions, or text features computed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from ...condition.build import build_encoder
from ...config.schema_data import DataConfig
from ...errors import UserError
from ..conditioning import Conditioning
from ..shards.texts import TextFeatures, check_features, open_features
from .datasets import Folder, Shards

log = logging.getLogger(__name__)


def with_conditions(
    conditioning: Conditioning, collections: Sequence[Folder | Shards], config: DataConfig
) -> tuple[Conditioning, Sequence[Folder | Shards]]:
    """(how conditions are made, the data sets with what that needs); both as they were where there are none.

    Text features are taken where every data set has them, and the folder of the text encoder is not needed then.  Else
    the encoder is built, unless ``conditioning`` has one already, and encodes captions as they are read.

    Raises:
        UserError: one line: features that do not fit, no class or caption to be had, an encoder's folder that is not
            usable.
    """
    if not conditioning.wanted:
        return conditioning, collections
    options = conditioning.options
    if options.kind == "text" and conditioning.encoder is None:
        features = [_features(collection, conditioning) for collection in collections]
        if collections and None not in features:
            return _in_advance(conditioning, collections, features)
        without = [path for path, found in zip(list(config.mixture) or [config.path], features) if found is None]
        if options.encoder != "words" and not options.encoder_path:
            raise UserError(
                f"{without[0] if without else 'physics scenes'}: no text features there (megatron-videogpt "
                "data encode-text makes those of shards), and condition.encoder_path is empty: give the folder of the "
                f"encoder {options.encoder}"
            )
        conditioning = replace(conditioning, encoder=build_encoder(options))
    return conditioning, [replace(collection, described=True) for collection in collections]


def _features(collection: Folder | Shards, conditioning: Conditioning) -> TextFeatures | None:
    if isinstance(collection, Folder):
        return None
    features = open_features(collection.index, collection.cache)
    if features is not None:
        check_features(features, conditioning.options, collection.index.url)
    return features


def _in_advance(
    conditioning: Conditioning, collections: Sequence[Folder | Shards], features: Sequence[TextFeatures | None]
) -> tuple[Conditioning, Sequence[Folder | Shards]]:
    """The data sets with their features, which must all be of one encoder."""
    described: list[Folder | Shards] = []
    prints: dict[str, str] = {}
    for collection, found in zip(collections, features):
        assert isinstance(collection, Shards) and found is not None
        prints.setdefault(found.facts["fingerprint"], found.url)
        described.append(replace(collection, features=found))
        if found.without:
            log.warning("%d of %d samples in %s have no caption", found.without, len(found.counts), found.url)
    if len(prints) > 1:
        one, other, *_ = prints.values()
        raise UserError(
            f"data.mixture: {one} and {other} hold text features of different encoders; make one of them anew"
        )
    return replace(conditioning, features=next(iter(prints))), described
