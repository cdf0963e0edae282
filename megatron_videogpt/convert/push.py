"""A Hugging Face folder to the Hub.  Everything that talks to the Hub is huggingface_hub's, tokens and HF_ENDPOINT
included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError, shortened

NO_TOKEN = "there is no token; get one with the right to write at huggingface.co/settings/tokens, then `hf auth login` or HF_TOKEN"  # noqa: E501, S105


@contextlib.contextmanager
def pushed(folder: Path, repo: str, private: bool = True, again: str = "") -> Iterator[None]:
    """Upload the folder that the block makes; the repository is made, or found, before.  Nothing without `repo`.

    again: what to do where only the upload fails, "" for uploading the folder by hand.

    Raises:
        UserError: as `open_repository` and `upload`.
    """
    if repo:
        open_repository(repo, private)
    yield
    if repo:
        again = again or f"the folder is whole, push it with: hf upload {repo} {folder}"
        print(f"pushed: {upload(folder, repo, again)}", flush=True)


def check_name(repo: str) -> None:
    """UserError where no repository can be called so; asks no network."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"repository {repo!r}: {shortened(error)}; expected NAME or ORGANISATION/NAME") from None


def open_repository(repo: str, private: bool = True) -> str:
    """Make the repository, unless it is there already, and return its address: whether one may write is known then.

    Raises:
        UserError: no connection, no token, or one without the right to write.
    """
    check_name(repo)
    from huggingface_hub import HfApi, get_token

    with _told(repo):
        # Its own message for this is a page long.
        if get_token() is None:
            raise UserError(f"{repo} on the Hub: {NO_TOKEN}")
        api = HfApi()
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise UserError(f"{repo} on the Hub: the token may only read; make one with the right to write")
        return str(api.create_repo(repo, private=private, exist_ok=True))


def upload(folder: Path, repo: str, again: str) -> str:
    """Upload all files of a folder, and return the address of the commit.

    Raises:
        UserError: in one line; the folder is left as it is.
    """
    from huggingface_hub import HfApi

    with _told(repo, f"; {again}"):
        api = HfApi()
        name = api.create_repo(repo, exist_ok=True).repo_id
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}")
        return str(done.commit_url)


@contextlib.contextmanager
def _told(repo: str, then: str = "") -> Iterator[None]:
    """What goes wrong on the way to the Hub, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error)
        if not reason:
            raise
        raise UserError(f"{repo} on the Hub: {reason}{then}") from error


def _reason(error: Exception) -> str:
    """Why, as far as a user can mend it; "" for faults."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it where there is a connection"
    if isinstance(error, LocalTokenNotFoundError):
        return NO_TOKEN
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        code = error.response.status_code
        known = {401: "the token is not valid", 403: "the token has no right to write there"}
        return f"{known.get(code, f'it answered {code}')} ({shortened(error)})"
    # The library's HTTP client has changed; each has errors of its own for a connection that cannot be made.
    if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
        return f"{constants.ENDPOINT} cannot be reached ({shortened(error)}); is there a connection?"
    return ""
