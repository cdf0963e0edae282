"""The codec that belongs to a mapped network: an FSQ tokenizer or a VAE, as a folder beside its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..codec.geometry import FSQ, WITHOUT_FOLDER, codec_folder, expected_geometry, fsq_folder
from ..codec.options import CodecConfig
from ..config.schema import Config
from ..errors import UserError
from ..hub.common import fsq_tokenizer
from ..hub.common.fsq_tokenizer import WEIGHTS
from ..objective.released import TOKENIZER, Released
from .folder import Folder
from .published import PublishedFile
from .settings import codec_of
from .side import NAME
from .standalone import vae_files, write_vae
from .tokenizer import filled_by, shape_of_tensors


def place_of(run: Path, released: Released) -> Path:
    """Where a converted run has its codec."""
    return run / NAME / "files" / released.CODEC


def codec_in(released: Released, folder: Path, name: str = "") -> CodecConfig:
    """The codec section for a folder, which need not be there; name: of a VAE that is not there."""
    if released.CODEC == TOKENIZER:
        return CodecConfig(name=FSQ, path=str(folder) if folder.is_dir() else "")
    return codec_of(folder if folder.is_dir() else None, name)


def bring(
    released: Released, source: Path, given: Path | None, target: Path, levels: tuple[int, ...], groups: int
) -> None:
    """Write the codec that belongs to a network as the folder `target`: that of the folder `given`, else the one beside
    the network or in its file; nothing where there is none.

    levels, groups: of a published file's tokenizer, whose keys and shapes do not tell.
    """
    beside = source / released.CODEC
    folder = given if given is not None else beside if (beside / "config.json").is_file() else None
    if released.CODEC == TOKENIZER:
        _bring_tokenizer(source, folder, target, levels, groups)
    elif folder is not None:
        # What is wrong with it shows before the slow part.
        codec_of(folder)
        target.mkdir(parents=True)
        for path in vae_files(folder):
            shutil.copyfile(path, target / path.name)


def _bring_tokenizer(source: Path, folder: Path | None, target: Path, levels: tuple[int, ...], groups: int) -> None:
    if folder is not None:
        _copy_tokenizer(folder, target)
    elif source.is_file():
        state = PublishedFile(source).tokenizer
        if state:
            shape = shape_of_tensors(state, groups, levels, source)
            filled_by(shape, state, source)
            fsq_tokenizer.write_folder(target, shape, {key: value.contiguous() for key, value in state.items()})


def _copy_tokenizer(folder: Path, target: Path) -> None:
    """Settings and weights of a tokenizer's folder, as they are, after a look at both; UserError, one line, where they
    are of none.
    """
    held = Folder(folder)
    try:
        shape = fsq_tokenizer.shape_of(held.config, str(folder))
    except ValueError as error:
        raise UserError(str(error)) from error
    state = {key: held.tensor(key) for key in held.keys()}
    filled_by(shape, state, folder)
    fsq_tokenizer.write_folder(target, shape, state)


def codec_of_run(
    released: Released, run: Path, config: Config, channels: int, given: Path | None
) -> CodecConfig | None:
    """The codec of an exported folder: the one given, else that of the run, else the one that it came with; None where
    none is known.
    """
    if released.CODEC == TOKENIZER:
        places = (given, fsq_folder(config.codec), place_of(run, released))
        found = next((place for place in places if place is not None and (place / WEIGHTS).is_file()), None)
        return None if found is None else CodecConfig(name=FSQ, path=str(found))
    if given is not None:
        found_codec = codec_of(given)
    elif config.codec.name in WITHOUT_FOLDER or _there(codec_folder(config.codec)):
        found_codec = config.codec
    elif (place_of(run, released) / "config.json").is_file():
        found_codec = codec_of(place_of(run, released))
    else:
        return None
    check_channels(found_codec, channels, str(run))
    return found_codec


def _there(folder: str) -> bool:
    return bool(folder) and Path(folder).is_dir()


def check_channels(codec: CodecConfig, channels: int, where: str) -> None:
    """UserError, one line that begins with `where`, where a network knows latents of other channels."""
    theirs = expected_geometry(codec).channels if codec.path or codec.name in WITHOUT_FOLDER else channels
    if theirs != channels:
        raise UserError(
            f"{where}: a model of {channels} latent channels, but its codec {codec.name} has {theirs}; give the right "
            "one with --vae"
        )


def write_codec(released: Released, codec: CodecConfig, folder: Path) -> None:
    """The codec's folder in an exported one."""
    if released.CODEC == TOKENIZER:
        _copy_tokenizer(Path(codec.path), folder / TOKENIZER)
    else:
        write_vae(folder, codec)
