"""A repository on the Hugging Face hub: its name, and one file of it, checked against a digest that is known beforehand."""
from __future__ import annotations

import re
from collections.abc import Callable
from email.message import Message
from pathlib import Path

from huggingface_hub import constants, get_token, hf_hub_url
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .download import WrongFileError, download

__all__ = ['download_from_hub', 'hub_repo']

DIGEST = re.compile('[0-9a-f]{40}|[0-9a-f]{64}')    # git's of a small file, sha256 of a large one
COMMIT = re.compile('[0-9a-f]{40}')


def hub_repo(namespace: str, name: str, given_by: str, error: type[Exception]) -> str:
    """`<namespace>/<name>`; an ``error`` where the hub knows no such names, with ``given_by``, where the namespace comes from."""
    repo = f'{namespace}/{name}'
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise error(f'{repo!r}, by {given_by}, is no name of a hub repository; give a user or organisation of letters, digits and single '
                    f'-, _ and . between them; the whole may have 96 letters') from None
    return repo


def download_from_hub(repo: str, name: str, revision: str, path: Path, size: int, digest: Callable[[Path], str],
                      expected: str) -> str | None:
    """Bring the file ``name`` of a repository to ``path``, by `download`, whose other arguments these are.

    Returns:
        The commit the file is of; None where ``revision`` is a name and the server says no more, as a plain mirror.

    Raises:
        NotThereError: no such repository, revision or file.
        DownloadError: any other reason; among them an ETag that is no digest, which huggingface_hub would make a path of.
        OSError: ``path`` cannot be written.
    """
    commits = [revision]

    def check(headers: Message) -> None:
        etag = (headers.get('X-Linked-Etag') or headers.get('ETag') or '').removeprefix('W/').strip('"')
        if etag and not DIGEST.fullmatch(etag):
            raise WrongFileError(f'{url}: the server calls the file {etag[:80]!r}, which is no digest; HF_ENDPOINT must be a hub')
        commits.append(headers.get('X-Repo-Commit', ''))

    url = hf_hub_url(repo, name, revision=revision, endpoint=constants.ENDPOINT)
    download(url, path, size, digest, expected, _headers(), f'{repo}/{name}', check)
    return next((commit for commit in reversed(commits) if COMMIT.fullmatch(commit)), None)


def _headers() -> dict[str, str]:
    """Of a request to the hub; huggingface_hub's own function for that asks the hub for something else first, unbounded."""
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {'User-Agent': 'igczoo'} | (dict(authorization=f'Bearer {token}') if token else {})
