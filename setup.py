"""Packaging.  Version ranges are wide, because this installs into other people's containers; exact pins are in
constraints-cpu.txt.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
SCENES = ["scenedetect-headless"]  # finds shot changes (prepare_videos --scenes)
# Runs exported folders (AutoModel, the pipeline), and verifies them; exporting needs none of it.  Tried:
# convert/card.py.  The text encoders clip and t5 (condition/) are transformers' as well; a tokenizer.json needs nothing
# else, a folder that has only spiece.model needs sentencepiece too.
HUB = ["transformers>=4.57,<6", "diffusers>=0.36"]
DEMO = ["gradio>=6"]  # the local web page; it holds Pillow below 13

setup(
    name="megatron_videogpt",
    version=re.search(r'__version__ = "(.+)"', (HERE / "megatron_videogpt" / "version.py").read_text()).group(1),
    description="Megatron-core trainer for Video-GPT (next clip diffusion) and its siblings",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    # What was run with each Python stands in docs/installing.md.
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["megatron_videogpt", "megatron_videogpt.*"]),
    package_data={
        "megatron_videogpt": ["codec/*.safetensors", "codec/*.json", "codec/tiny_fsq/*", "codec/ATTRIBUTION.md"]
    },
    python_requires=">=3.10",
    install_requires=[
        # wide, because containers bring their own build (Ascend's 2.7); tested with the one in constraints-cpu.txt
        "torch>=2.6",
        # Model parallelism, optimizer, checkpoints.  Run: 0.16.1 to 0.19.2, the whole suite with the one in
        # constraints-cpu.txt and the short parallel tests with the newest (tests/newest_megatron.sh).
        "megatron-core>=0.16,<0.20",
        "psutil",  # megatron-core needs it to save checkpoints, without declaring it
        "numpy",  # frames and pixels
        "safetensors",  # weights of codecs and models: never pickles
        "diffusers",  # AutoencoderKL and AutoencoderKLWan
        # reads and writes videos; brings its own FFmpeg.  Older ones show BT.709 and BT.2020 in wrong colours
        "av>=17",
        "pillow",  # draws the physics scenes and the pictures
        "pymunk",  # rigid bodies of the physics scenes
        "matplotlib",  # loss.png
        "tensorboard",  # events of the run
        "rich",  # progress bar and tables
        "webdataset",  # writes the tar shards
        "fsspec",  # shards on remote storage; comes with torch
        "scipy",  # fits scaling laws, and the cost of a row to measured times; connected pieces of pictures
        "torchmetrics",  # PSNR and SSIM of predictions, and the linear heads of LPIPS; pure Python, 9 MB
        "tomli; python_version < '3.11'",  # tomllib came with 3.11; Ascend's images have 3.10
    ],
    # Transformer Engine and NVIDIA Apex are in no extra.  transformer-engine has wheels on PyPI, but
    # transformer-engine-torch, which its torch layers need, is compiled from source against the torch that is there;
    # NVIDIA's containers bring both, and they are detected.  Apex is a source build of which nothing is used, and the
    # package called apex on PyPI is an unrelated project.
    extras_require={
        "npu": [
            "torch_npu"
        ],  # does not start yet; MindSpeed (branch core_r0.16.0) must be installed from source as well
        "cpu": ["torch>=2.6"],  # for uv, which then takes PyTorch's CPU index (pyproject.toml); pip ignores that
        "wandb": ["wandb"],
        "tables": ["pyarrow"],  # Parquet lists of videos
        "remote": [
            "s3fs"
            # shards on S3 and what speaks its protocol; other stores have fsspec packages of their own (gcsfs, adlfs,
            # ...)
        ],
        "scenes": SCENES,
        "hub": HUB,
        "demo": DEMO,
        "torchcodec": ["torchcodec"],  # a second decoder, also on GPUs; needs FFmpeg's shared libraries
        # FlashAttention-4 and its CuTe packages are pre-releases that only fit one another: all of them exactly.
        # Tested: kernels compiled for sm_90a.
        "flash": [
            f"{package}; sys_platform == 'linux'"
            for package in (
                "flash-attn-4==4.0.0b36",
                # brings nvidia-cutlass-dsl-libs-base, -core and -cu12 of the same version; [cu13] adds -cu13
                "nvidia-cutlass-dsl==4.8.1",
                "quack-kernels==0.6.5",
                "apache-tvm-ffi==0.1.14.post1",
                "torch-c-dlpack-ext==0.1.5",
                "einops==0.8.2",
            )
        ],
        # triton: its interpreter runs our kernels on a CPU, and it compiles them for sm_90 without a GPU; CUDA builds
        # of torch bring their own. moto, with flask: an S3 server for the tests.  selenium: drives the web page in a
        # real Chromium. pytest-xdist: unit tests on all cores at once.
        "dev": [
            *[
                "pytest",
                "pytest-xdist",
                "hypothesis",
                "ruff",
                "mypy",
                "pre-commit",
                "triton>=3.7; sys_platform == 'linux'",
            ],
            *["pyarrow", "s3fs", "moto[s3]", "flask", "flask-cors", "torchcodec; sys_platform == 'linux'", "selenium"],
            *SCENES,
            *HUB,
            *DEMO,
        ],
    },
)
