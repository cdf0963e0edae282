"""What a run makes of the checkpoints it finds: weights of another precision are cast, and one that goes on must be the
same model and have steps left.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("processes")

TINY = Path(__file__).resolve().parents[1] / "parallel" / "tiny.toml"


def built(output: Path, *options: str) -> Any:
    """A run of the tiny configuration, set up or resumed."""
    from megatron_videogpt.config.load import load_config
    from megatron_videogpt.train.run import build

    return build(load_config(TINY, [f"train.output={output}", *options]), lambda name, **more: None)


def trained(output: Path, *options: str, step: int = 4) -> Any:
    """A run with weights that no start value is, saved after `step` steps."""
    from megatron_videogpt.checkpoint.save import Saver
    from megatron_videogpt.platforms import compat

    run = built(output, *options)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in run.chunks[0].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    run.optimizer.reload_model_params()
    compat.seed_optimizer_state(run.optimizer)
    told = run.codec.fingerprint, None, (), run.text_encoder
    Saver(run.config, run.chunks, run.optimizer, run.average, *told).save(
        {**asdict(run.state), "step": step}, must=True
    )
    return run


def weights(run: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.chunks[0].named_parameters()}


def mains(run: Any) -> dict[str, Tensor]:
    """The optimizer's float32 copies, flat."""
    from megatron_videogpt.platforms import compat

    names = {parameter: name for name, parameter in run.chunks[0].named_parameters()}
    return {names[parameter]: main.detach().clone() for parameter, main, _, _ in compat.main_shards(run.optimizer)}


@pytest.mark.parametrize(("there", "here"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_weights_of_another_precision_and_position_table_are_cast(there: str, here: str, tmp_path: Path) -> None:
    given = weights(trained(tmp_path / "a", f"train.precision={there}"))
    run = built(
        tmp_path / "b", f"train.precision={here}", f"train.init_from={tmp_path / 'a'}", "model.position_table_size=16"
    )
    kept = torch.bfloat16 if here == "bf16" else torch.float32
    found, main = weights(run), mains(run)
    assert found.keys() == given.keys() == main.keys() and len(found) > 20
    for name, value in given.items():
        assert found[name].dtype == kept and torch.equal(found[name], value.to(kept)), name
        assert main[name].dtype == torch.float32 and torch.equal(
            main[name].flatten(), value.to(kept).float().flatten()
        ), name
    # The table has no weights: it is computed for its size, cell i of S at the position 64 i / S.
    axis = run.chunks[0].embedding.axis
    assert axis.shape[0] == 16 and axis[1, 0] == pytest.approx(float(torch.sin(torch.tensor(64 / 16))), abs=1e-6)


def test_a_run_that_goes_on_is_of_one_precision_and_table(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    before = (tmp_path / "a" / "config.toml").read_text()
    for option, text in (
        ("train.precision=bf16", "precision is fp32 there and bf16 here"),
        ("model.position_table_size=16", "is 8 there and 16 here"),
    ):
        with pytest.raises(ValueError, match=text):
            built(tmp_path / "a", option)
    with pytest.raises(ValueError, match="hidden_size is 32 there and 64 here"):
        built(tmp_path / "b", f"train.init_from={tmp_path / 'a'}", "model.hidden_size=64")
    assert (tmp_path / "a" / "config.toml").read_text() == before and not (tmp_path / "b").exists()


def test_a_run_that_went_further_is_left_alone(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"step_00000004: the checkpoint is at step 4 of 14 \(train.steps=3\): nothing to do; use"
    ) as caught:
        built(tmp_path / "a", "train.steps=3")
    assert "\n" not in str(caught.value)
    run = built(tmp_path / "a", "train.steps=4", "optimizer.lr=0.5")
    assert run.state.step == 4
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}, (
        "nothing is trained with other options"
    )
    built(tmp_path / "a", "train.steps=5", "optimizer.lr=0.5", "optimizer.allow_rate_jump=true")
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text())["optimizer"]["lr"] == 0.5


def test_weights_without_a_shape_of_their_own_may_differ_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from megatron_videogpt.checkpoint.checks import check_same_shapes
    from megatron_videogpt.checkpoint.saved import find_checkpoint

    run = trained(tmp_path / "a")
    saved = find_checkpoint(tmp_path / "a")
    check_same_shapes(saved, replace(run.config, model=replace(run.config.model, rope_theta=5000.0, init_std=0.5)))
    assert "model.rope_theta is 10000.0 there and 5000.0 here" in caplog.text and "init_std" not in caplog.text


CLASSES = ("condition.kind=class", 'condition.classes=["fall", "bounce", "collide", "roll", "pendulum", "dominoes"]')
WORDS = ("condition.kind=text", "condition.encoder=words")


def test_a_condition_starts_anew_from_weights_without_one(tmp_path: Path) -> None:
    given = weights(trained(tmp_path / "plain"))
    for condition, shape in ((CLASSES, (6, 32)), (WORDS, (32, 64))):
        run = built(tmp_path / condition[0], f"train.init_from={tmp_path / 'plain'}", *condition)
        found, main = weights(run), mains(run)
        new = sorted(found.keys() - given.keys())
        assert all(torch.equal(found[name], value) for name, value in given.items())
        assert {name.partition(".")[0] for name in new} == {"prefix"} and tuple(found[new[-1]].shape) == shape
        # What starts anew has start values, and the optimizer knows them.
        assert 0.01 < float(found[new[-1]].std()) < 0.03
        assert all(torch.equal(main[name].flatten(), found[name].flatten()) for name in found)
    # And back: a model without a condition leaves the prefix behind.
    conditioned = weights(trained(tmp_path / "classes", *CLASSES))
    without = weights(built(tmp_path / "again", f"train.init_from={tmp_path / 'classes'}"))
    assert without.keys() == given.keys() and all(torch.equal(without[name], conditioned[name]) for name in without)


def test_a_run_goes_on_with_its_own_condition(tmp_path: Path) -> None:
    trained(tmp_path / "a", *CLASSES)
    assert built(tmp_path / "a", *CLASSES).state.step == 4
    other = (CLASSES[0], 'condition.classes=["fall", "bounce", "collide", "roll", "pendulum", "domino"]')
    with pytest.raises(ValueError, match="class 'dominoes/left/slow' is not one of the 6 of condition.classes"):
        built(tmp_path / "a", *other)
    turned = (CLASSES[0], 'condition.classes=["bounce", "fall", "collide", "roll", "pendulum", "dominoes"]')
    for options, text in (
        (turned, r'was trained with other conditions: condition.classes is \["fall", .* there and \["bounce", '),
        ((), 'other conditions: condition.kind is "class" there and "none" here'),
        (
            (f"train.init_from={tmp_path / 'a'}", f"train.output={tmp_path / 'b'}", *WORDS),
            'condition.kind is "class" there',
        ),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            built(tmp_path / "a", *options)
        assert "\n" not in str(caught.value)


def test_texts_of_another_encoder_are_refused(tmp_path: Path) -> None:
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.sample.generate import load

    run = trained(tmp_path / "a", *WORDS)
    assert run.text_encoder and run.config.condition.width == 64, "whoever samples needs no encoder to know the width"
    state = find_checkpoint(tmp_path / "a").path / "state.json"
    said = json.loads(state.read_text())
    assert said["text_encoder"] == run.text_encoder
    state.write_text(json.dumps({**said, "text_encoder": "0" * 64}))
    (state.parent / "files.json").unlink()
    with pytest.raises(ValueError, match="the text encoder has the fingerprint 000000000000 there and"):
        built(tmp_path / "a", *WORDS, "data.allow_changed=true")
    with pytest.raises(ValueError, match="use the encoder that it was trained with .--text-encoder"):
        load(tmp_path / "a")


def test_weights_of_captions_go_on_with_labels_in_a_run_of_their_own(tmp_path: Path) -> None:
    """The encoder's fingerprint is also of which texts; a run that resumes is refused."""
    from megatron_videogpt.errors import RunError

    texts, labels = ("condition.kind=text", "condition.encoder=words"), "condition.text_from=label"
    before = weights(trained(tmp_path / "captions", *texts))
    after = weights(built(tmp_path / "labels", *texts, labels, f"train.init_from={tmp_path / 'captions'}"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(RunError, match="the text encoder has the fingerprint"):
        built(tmp_path / "captions", *texts, labels)
    fewer = "condition.max_tokens=3"
    with pytest.raises(RunError, match="the text encoder has the fingerprint"):
        built(tmp_path / "other", *texts, labels, fewer, f"train.init_from={tmp_path / 'captions'}")
