"""Pushing a folder to the Hub, or what stands in for it here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_videogpt.convert.push import check_name, open_repository, pushed, upload
from megatron_videogpt.errors import UserError
from tests import fake_hub
from tests.fake_hub import FakeHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """As HF_ENDPOINT and the other variables would say to a fresh process."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setattr(constants, name, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with fake_hub.serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        yield hub


def folder_in(place: Path) -> dict[str, bytes]:
    """Files in several folders, a large one among them; what is in them."""
    contents = {
        "README.md": b"---\nlicense: mit\n---\n# It\n",
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 3000,
        "vae/config.json": b'{"a": 1}',
        "vae/diffusion.safetensors": b"\x00" * 1000,
    }
    for name, content in contents.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return contents


def test_what_arrives_is_what_was_sent_in_a_private_repository(hub: FakeHub, tmp_path: Path) -> None:
    with pushed(tmp_path / "it", "it"):
        assert hub.repositories == {"me/it": True}, "before the folder is made"
        sent = folder_in(tmp_path / "it")
    assert hub.files == {"me/it": sent}
    assert len(hub.large) == 2
    # Once more, into the same repository.
    (tmp_path / "it" / "config.json").write_bytes(b"[]")
    with pushed(tmp_path / "it", "me/it", private=False):
        pass
    assert hub.files["me/it"]["config.json"] == b"[]" and hub.repositories == {"me/it": True}


def test_it_may_be_public_and_without_a_name_nothing_happens(hub: FakeHub, tmp_path: Path) -> None:
    open_repository("me/open", private=False)
    assert hub.repositories == {"me/open": False}
    hub.asked.clear()
    with pushed(tmp_path / "nothing", ""):
        pass
    assert hub.asked == []


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        ("", "me/it", "me/it on the Hub: there is no token; get one"),
        (fake_hub.READING, "me/it", "me/it on the Hub: the token may only read; make one with the right to write"),
        (fake_hub.STRANGER, "me/it", "me/it on the Hub: the token is not valid ("),
        (fake_hub.TOKEN, "others/it", "others/it on the Hub: the token has no right to write there ("),
    ],
)
def test_without_the_right_to_write_it_ends_before_anything_is_made(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, repo: str, said: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError) as caught:
        open_repository(repo)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert hub.repositories == {}


def test_offline_it_says_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^it on the Hub: http://127.0.0.1:9 cannot be reached \(.*\); is there a con"):
        open_repository("it")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it") as caught:
        open_repository("it")
    assert hub.asked == [] and "\n" not in str(caught.value)


def test_an_upload_that_fails_says_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    folder_in(tmp_path)
    hub.full = True
    with pytest.raises(UserError, match=r"^it on the Hub: it answered 413 \(.*\); do it again$"):
        upload(tmp_path, "it", "do it again")


@pytest.mark.parametrize("name", ["a/b/c", "a b", "", "--x"])
def test_names_that_no_repository_has_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected NAME or ORGANISATION/NAME"):
        check_name(name)
