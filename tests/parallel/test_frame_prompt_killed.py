"""Runs of frame as prompt by the command line, killed and resumed: bit for bit in their layout, to rounding in others;
the factorised network with everything that it can have.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from .reshard_worker import contents
from .test_resume import TP2, kill_after, losses, newest, train

STEPS = 9
COMMON = f"""objective.name=frame_prompt_diffusion objective.prompts=[1,3] objective.chunk=2 data.frames=5
data.clips=[1,1] train.steps={STEPS} sample.history=1 sample.window=5 condition.encoder=words""".split()
NETWORKS = {
    "factorised": """objective.network=factorised objective.factorised.places=5 condition.kind=text model.norm=layer
    model.activation=gelu_tanh model.biases=true model.positions=none model.norm_epsilon=1e-6 model.num_query_groups=0
    sample.cache=false""".split(),
    "decoder": ["condition.kind=text"],
}
OTHERS = {"factorised": ("parallel.context=2",), "decoder": ("parallel.pipeline=2",)}
"""Layouts of two processes that a killed run goes on in."""


@pytest.fixture(scope="module", params=NETWORKS)
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str], Path]:
    """(network, its options, a folder with a run of `STEPS` steps, `whole`, and the same `killed` behind its first
    checkpoint).
    """
    folder, options = tmp_path_factory.mktemp("killed"), [*COMMON, *NETWORKS[request.param]]
    train(2, folder / "whole", *options, *TP2)
    kill_after(folder / "killed", 5, *options, *TP2)
    assert newest(folder / "killed") in ("step_00000004", "step_00000008")
    return request.param, options, folder


@pytest.mark.usefixtures("processes")
def test_a_killed_run_resumes_bit_for_bit(work: tuple[str, list[str], Path], tmp_path: Path) -> None:
    """Losses, and every tensor of the last checkpoint."""
    _, options, folder = work
    shutil.copytree(folder / "killed", tmp_path / "run")
    found, wanted = train(2, tmp_path / "run", *options, *TP2), losses(folder / "whole")
    assert found == wanted and len(wanted) == STEPS
    ours, theirs = contents(tmp_path / "run"), contents(folder / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_killed_run_goes_on_in_another_layout(work: tuple[str, list[str], Path], tmp_path: Path) -> None:
    network, options, folder = work
    shutil.copytree(folder / "killed", tmp_path / "run")
    found = train(2, tmp_path / "run", *options, *OTHERS[network])
    assert found == pytest.approx(losses(folder / "whole"), rel=1e-5)
