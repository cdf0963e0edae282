"""An exported folder of next block prediction where this project cannot be imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_videogpt.__main__ import main
from tests.next_block_folders import block_folder
from tests.texts import text_ids

pytest.importorskip("transformers", reason="exported folders need transformers (the extra hub)")

SCRIPT = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.modules["megatron_videogpt"] = sys.modules["megatron"] = None
import torch
from transformers import AutoModel
model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
sys.path.insert(0, str(folder))
from pipeline_nextblock import NextBlockPipeline
pipeline = NextBlockPipeline.from_pretrained(folder)
def ids(**more):
    how = dict(latent=[2, 4, 4], output_type="ids", generator=torch.Generator().manual_seed(3))
    return pipeline(**how | more)
video = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))
(one,) = ids(video=video, class_labels="b", top_k=40)
two = torch.stack(ids(video=[video, video.flip(1)], class_labels=["b", 2], temperature=0, guidance=1.0))
assert one.shape == (2, 4, 4) and torch.equal(one[:1], pipeline.tokenizer.encode(video.permute(3, 0, 1, 2)[None])[0])
# Together as alone, and what the model finds likeliest, in one pass.
assert torch.equal(two[0], ids(video=video, class_labels="b", temperature=0, guidance=1.0)[0])
told = torch.cat([torch.tensor([2]), 12 + two[1, 0].flatten()])[None]
rows = [pipeline.model(told, dropped=torch.tensor([d])).logits[0, -4:] for d in (False, True)]
assert torch.equal((2 * rows[0] - rows[1]).argmax(-1).sub(12).clamp(0, 59), two[1].flatten()[16:20])
# Texts are one id here, the start, which is class 1.
texts = NextBlockPipeline.from_pretrained(sys.argv[2])
how = dict(video=video, latent=[2, 4, 4], output_type="ids", temperature=0)
assert texts.text("two words") == [1] and torch.equal(texts(texts="two words", **how)[0], ids(**how, class_labels=1)[0])
(frames,) = pipeline(video=video, class_labels=0, latent=[2, 4, 4], output_type="np")
assert frames.shape == (5, 32, 32, 3) and frames.dtype == "uint8"
for wrong in (dict(latent=[1, 3, 3]), dict(class_labels="c4"), dict(class_labels=None), dict(video=None)):
    try:
        pipeline(**dict(video=video, class_labels=0, latent=[2, 4, 4]) | wrong)
    except ValueError as error:
        assert "\\n" not in str(error)
        continue
    raise SystemExit(wrong)
print("fine")
"""


def test_a_folder_runs_without_this_project(tmp_path: Path) -> None:
    """A trained run's own names, codes and blocks, in a process where this project cannot be imported."""

    def tool(*arguments: object) -> int:
        return main(["convert", *map(str, arguments)])

    folder = block_folder(tmp_path / "given", "tiny_given")
    settings = json.loads((folder / "config.json").read_text())
    named = settings | {"class_names": ["a", "b", "c", *map(str, range(3, 12))]}
    (folder / "config.json").write_text(json.dumps(named))
    assert tool("from-hf", tmp_path / "given", "--output", tmp_path / "run") == 0
    assert tool("to-hf", tmp_path / "run", "--output", tmp_path / "out", "--license", "mit") == 0
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    shutil.copytree(tmp_path / "out", tmp_path / "texts")
    text_ids(tmp_path / "texts" / "text_tokenizer")
    settings = json.loads((tmp_path / "texts" / "config.json").read_text()) | {"prefix_kind": "text"}
    (tmp_path / "texts" / "config.json").write_text(json.dumps(settings))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(tmp_path / "texts")],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout.strip() == "fine", result.stdout + result.stderr[-3000:]
