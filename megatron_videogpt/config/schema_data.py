"""Options of the data: where clips come from, how they are cut, and how rows are filled."""

from __future__ import annotations

from dataclasses import dataclass, field

from .sections import option

SCENES = ("fall", "bounce", "collide", "roll", "pendulum", "dominoes")
"""Scene kinds of the physics generator."""


@dataclass(frozen=True)
class PhysicsConfig:
    """The built-in generator of deterministic rigid-body scenes."""

    scenes: tuple[str, ...] = option(
        SCENES,
        "scene kinds, drawn uniformly; one that is named twice is trained on twice as often, held-out scenes have each "
        "equally often",
        choices=SCENES,
    )
    difficulty: int = option(
        0,
        "0: fixed palette, one or two bodies, plain background; 1: more bodies, free colours; 2: also "
        "textures and free gravity",
    )
    size: int = option(64, "side of the square frames in pixels; a multiple of 16")
    fps: float = option(24.0, "rendered frames per second of simulated time")
    epoch_scenes: int = option(4096, "scenes per epoch; every epoch draws new ones")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Each kind once: what results are measured on must not move with what is trained on more often."""
        return tuple(dict.fromkeys(self.scenes))


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from and how they are cut."""

    source: str = option(
        "physics",
        "physics (built-in generator), videos (a folder of files that PyAV reads) or shards (WebDataset tar "
        "files of videos or of latents)",
        choices=("physics", "videos", "shards"),
    )
    path: str = option(
        "",
        "videos: folder, searched recursively; shards: folder or fsspec URL (s3://bucket/panda, a braced "
        "list shard-{000000..000127}.tar, ...)",
        path=True,
    )
    mixture: dict = option(
        {},
        'several data sets instead of one data.path, with their weights: {"/data/ucf101"=0.2, "s3://bucket/panda"=0.8}',
        path=True,
    )
    frames: int = option(16, "frames N per sample")
    min_frames: int = option(
        0,
        "shorter videos give samples of as many frames as they have, but not fewer than this; 0: every "
        "sample has data.frames",
    )
    frame_interval: tuple[int, int] = option(
        (4, 4), "smallest and largest step between used frames, drawn uniformly (a short video limits the largest)"
    )
    clips: tuple[int, int] = option(
        (16, 16), "smallest and largest number of clips K per sample, drawn uniformly; K-1 distinct cut points, uniform"
    )
    longest_side: int = option(320, "longer side of a frame after resizing, in pixels")
    size_multiple: int = option(16, "both sides are cropped (centred) to multiples of this")
    min_side: int = option(128, "videos with a shorter side below this are skipped")
    max_aspect: float = option(4.0, "videos with an aspect ratio above this are skipped")
    validation_fraction: float = option(
        0.05, "share of the videos (chosen by a hash of the name, at least one) held out for validation"
    )
    pack_tokens: int = option(
        0,
        "token budget of a row: rows are filled with whole samples and dealt to ranks by cost; 0 puts "
        "train.micro_batch_size samples in each, in order",
    )
    row_lengths: int = option(
        64, "distinct row lengths with data.pack_tokens: its multiples of 1/64, for example, to which rows are padded"
    )
    cost: tuple[float, float] = option(
        (0.0, 0.0),
        "seconds per token and per attended pair, by which rows are dealt (`megatron-videogpt cost` measures them); "
        "[0, 0] counts FLOPs",
    )
    cost_buckets: int = option(
        0,
        "batches of samples of similar cost: so many batches at a time are sorted by cost, cut, and "
        "shuffled; 0 keeps the random order (see docs/data.md)",
    )
    workers: int = option(2, "reader processes per data parallel rank; 0 reads in the training process")
    prefetch: int = option(2, "steps that are read ahead")
    share_encoding: str = option(
        "auto",
        "who encodes frames where TP x CP x PP > 1: on, all ranks of a replica, each its part; off, the one that reads "
        "them; auto, on but for the small codecs (tiny, tiny_fsq, pixels), of which it is not worth the sending",
        choices=("auto", "on", "off"),
    )
    worker_timeout: float = option(
        120.0, "seconds after which a reader that is stuck on one sample is replaced, and the sample rejected"
    )
    decoder: str = option(
        "pyav",
        "pyav, or torchcodec where it is installed; torchcodec-cuda decodes on the GPU (its colours may "
        "differ by a level or two)",
        choices=("pyav", "torchcodec", "torchcodec-cuda"),
    )
    decode_threads: int = option(1, "threads of one decoder; more than 1 helps when there are fewer readers than cores")
    cache: str = option(
        "",
        "folder that keeps what was read from remote storage, and indexes of data sets that cannot be "
        "written to; empty: ~/.cache/megatron_videogpt",
        path=True,
    )
    cache_gb: float = option(20.0, "limit of that folder in 10^9 bytes; the longest unused go first")
    max_bad_fraction: float = option(0.05, "stop when more than this share of the last 1000 samples could not be read")
    max_video_mb: float = option(4096.0, "larger videos are rejected unread (10^6 bytes)")
    max_video_frames: int = option(1_000_000, "longer videos are rejected")
    max_megapixels: float = option(
        36.0, "videos with larger pictures are rejected before a picture is decoded (10^6 pixels; 8K has 33)"
    )
    allow_changed: bool = option(
        False,
        "resume although the data set or what samples are made of has changed since; samples may then come "
        "twice or not at all",
    )
    physics: PhysicsConfig = field(default_factory=PhysicsConfig, metadata={"help": "the built-in generator"})
