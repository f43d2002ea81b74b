"""One file over HTTP onto the disk: bounded in time and size, resumed, checked.

Why not `hf_hub_download`: it checks no digest, makes a path of the server's ETag, waits minutes for a silent server and an hour where
Retry-After says so, and gives up at a reset; none of that can be had otherwise from outside. Why `urllib`: huggingface_hub's HTTP library
is requests, httpx or httpx2, depending on its version; the standard library works beside each and adds no dependency. HTTPS_PROXY,
HTTP_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE mean what they usually do.
"""
from __future__ import annotations

import os
import queue
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

__all__ = ['DownloadError', 'NotThereError', 'WrongFileError', 'download']

ANSWER_PATIENCE = 4.7   # seconds for an answer (DNS, every address of the host, TLS, redirects); a request that has none is made once more
PATIENCE = 9.           # seconds for each stretch of a body
MIN_RATE = 5_000        # bytes a second that such a stretch must have
PAUSES = 1., 2., 4.     # seconds before the second, third and fourth attempt
GIVE_UP = 18.           # seconds without progress after which there is no further attempt
MAX_PAUSE = 5           # the longest Retry-After that is waited for, seconds
MAX_REDIRECTS = 5
TRANSIENT = {408, 429, 500, 502, 503, 504}
MEANING = {
    401: 'no such repository, or a private one that asks for a token (HF_TOKEN)',
    403: 'refused; a gated repository asks for a token (HF_TOKEN) of somebody who has been let in',
    404: 'the repository, its revision or the file is not there',
    407: 'the proxy asks for a name and password; give them in the address of the proxy',
}
MEANING_WITH_TOKEN = {
    401: 'the token (HF_TOKEN) is not accepted: it may have expired; or there is no such repository',
    403: 'the token (HF_TOKEN) gives no access to it',
}


class DownloadError(Exception):
    """A file that could not be had; the message says why."""


class NotThereError(DownloadError):
    """The server says that there is no such file."""


class WrongFileError(DownloadError):
    """Something came, and it is not the file."""


class _Interrupted(Exception):
    """An attempt that another one may follow, no sooner than ``pause`` seconds later."""

    def __init__(self, reason: str, pause: int = 0):
        super().__init__(reason)
        self.pause = pause


class _Unanswered(_Interrupted):
    """An attempt that nothing came of in time; the question stands, and may be answered while it is asked once more."""

    def __init__(self, reason: str, question: _Question):
        super().__init__(reason)
        self.question = question


def download(
        url: str,
        path: Path,
        size: int,
        digest: Callable[[Path], str],
        expected: str,
        headers: dict[str, str],
        label: str,
        check: Callable[[Message], None] | None = None,
        exact: bool = True,
) -> None:
    """Bring the file at ``url`` to ``path``.

    Wrong bytes are removed and the file fetched once more. Resets, stalls, cut bodies and passing server errors are tried again a few
    times, each attempt going on where the last one stopped.

    Args:
        url: http or https. Redirects get the headers too, but Authorization only on the same scheme, host and port.
        path: a private one; what an earlier, interrupted call left there is continued.
        size: bytes of the right file; never more are stored.
        digest: gives the digest of a file, or raises WrongFileError.
        expected: what ``digest`` must give.
        label: of the progress bar, which shows on a terminal only.
        check: sees the headers of the address itself, before any redirect, and may raise WrongFileError; so far nothing is stored.
        exact: False where the right file may be smaller than ``size``; then the server must say how long it is.

    Raises:
        NotThereError: HTTP 404.
        DownloadError: any other reason. A refused connection takes 7 s, silence 9.4 s, a body that stalls or drips under 30 s.
        OSError: ``path`` cannot be written.
    """
    for last in (False, True):
        try:
            kind = _transfer(url, path, size, headers, label, check, exact)
            if (found := digest(path)) == expected:
                return
            raise WrongFileError(f'{url} gave {_size(path):,} bytes of {kind} with digest {found}, '
                                 f'not {f"{size:,} bytes" if exact else "those"} with digest {expected}')
        except WrongFileError:
            path.unlink(missing_ok=True)
            if last:
                raise


def _transfer(
        url: str, path: Path, size: int, headers: dict[str, str], label: str, check: Callable[[Message], None] | None, exact: bool) -> str:
    """Make attempts until the server has no more to give; what it called its type. Progress makes up for earlier failures."""
    best, since, failures, unanswered, question = _size(path), time.monotonic(), 0, False, None
    while True:
        try:
            return _attempt(url, path, size, headers, label, check, exact, question)
        except _Interrupted as error:
            now = time.monotonic()
            if isinstance(error, _Unanswered):
                if unanswered:
                    error.question.over.set()
                    raise DownloadError(f'{url}: {error}, twice; check the network') from None
                unanswered, question = True, error.question
                continue
            question = None
            if _size(path) - best >= MIN_RATE * PATIENCE:
                best, since, failures = _size(path), now - PATIENCE, 0     # its last byte may be that old
            pause = max(error.pause, PAUSES[min(failures, len(PAUSES) - 1)])
            failures += 1
            if failures > len(PAUSES) or now + pause - since > GIVE_UP:
                raise DownloadError(f'{url}: {error}; gave up at attempt {failures}, check the network or try again later') from None
            time.sleep(pause)


def _attempt(
        url: str, path: Path, size: int, headers: dict[str, str], label: str, check: Callable[[Message], None] | None, exact: bool,
        question: _Question | None) -> str:
    have = _size(path)
    if have == size:    # whole, perhaps; the server still has to say what it is
        have -= 1
        os.truncate(path, have)
    asked = {'Range': f'bytes={have}-'} if 0 < have < size else {}
    first, answer, where = (question or _Question(url)).answer({**headers, **asked, 'Accept-Encoding': 'identity'})
    with closing(answer):
        _check_status(url, where, answer, have, any(name.lower() == 'authorization' for name in headers))
        if check:
            check(first)
        start = have if answer.status == 206 else 0
        total = None if answer.length is None else start + answer.length
        announced, kind = max(total or 0, _number(first.get('X-Linked-Size'))), answer.headers.get_content_type()
        if announced > size:
            raise WrongFileError(f'{url} announces {announced:,} bytes of {kind}, not {size:,}{"" if exact else " or fewer"}')
        with (open(path, 'ab' if start else 'wb') as file,
              tqdm(total=total or size, initial=start, unit='B', unit_scale=True, desc=label, leave=False, disable=None) as bar):
            try:
                end = start + _receive(answer, size - start, file, bar)
                if end < size and end != total:
                    raise _Interrupted(f'the connection ended after {end:,} of {size:,} bytes')
            except _Interrupted:
                if total != size:   # nothing says that this was the beginning of the file
                    file.truncate(0)
                raise
            os.fsync(file.fileno())
        return kind


def _receive(answer: HTTPResponse, limit: int, file: BinaryIO, bar: tqdm) -> int:
    """Store ``limit`` bytes of the body at most; gives how many came."""
    count, mark, since = 0, 0, time.monotonic()
    while count < limit:
        try:
            block = answer.read1(min(limit - count, 1 << 16))
        except TimeoutError:
            raise _Interrupted(f'no byte came for {PATIENCE:g} s') from None
        except (OSError, HTTPException) as error:
            raise _Interrupted(f'the connection broke ({_words(error)})') from None
        if not block:
            break
        file.write(block)
        bar.update(len(block))
        count += len(block)
        if (elapsed := time.monotonic() - since) >= PATIENCE:
            if count - mark < MIN_RATE * elapsed and count < limit:
                raise _Interrupted(f'only {count - mark:,} bytes came in {elapsed:.0f} s')
            mark, since = count, time.monotonic()
    return count


class _Question:
    """A request that may be made twice, and is answered by whichever answer comes first."""

    def __init__(self, url: str):
        self.url, self.answers, self.over = url, queue.SimpleQueue(), threading.Event()

    def answer(self, headers: dict[str, str]) -> tuple[Message, HTTPResponse, str]:
        """The headers of the first answer, the answer behind all redirects, and which host gave it, in words.

        A thread asks, because neither the look-up of a name nor the sum of all steps has a time limit.
        """
        latest, until = [self.url], time.monotonic() + ANSWER_PATIENCE
        threading.Thread(target=self._ask, args=(headers, latest), daemon=True).start()
        found, trail = None, []
        while found is None or (isinstance(found, Exception) and trail is not latest):      # errors are of the latest request only
            try:
                found, trail = self.answers.get(timeout=max(0, until - time.monotonic()))
            except queue.Empty:
                raise _Unanswered(f'no answer{_where(latest)} within {ANSWER_PATIENCE:g} s', self) from None
        self.over.set()
        if not isinstance(found, Exception):
            return *found, _where(trail)
        if isinstance(found, DownloadError):
            raise found
        if isinstance(found, ValueError):
            raise DownloadError(f'{self.url}: {found}') from None
        if not isinstance(found, (OSError, HTTPException)):
            raise found
        reason = getattr(found, 'reason', found)
        if isinstance(reason, TimeoutError):
            raise _Unanswered(f'no answer{_where(trail)} within {ANSWER_PATIENCE:g} s', _Question(self.url))
        if refused := re.match(r'Tunnel connection failed: (\d+)', str(reason)):
            status = int(refused[1])
            raise DownloadError(f'{self.url}: HTTP {status}{_where(trail)}, {MEANING[407] if status == 407 else "it refuses to connect"}')
        raise _Interrupted(f'no HTTP answer{_where(trail)} ({_words(reason)})')

    def _ask(self, headers: dict[str, str], trail: list[str]) -> None:
        try:
            found = _follow(trail, headers)
        except Exception as error:  # the thread that waits raises it
            found = error
        if self.over.is_set():
            if not isinstance(found, Exception):
                found[1].close()
        else:
            self.answers.put((found, trail))


class _AsIs(urllib.request.HTTPErrorProcessor):
    """Hands over every answer whatever its status, redirects too."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def _follow(trail: list[str], headers: dict[str, str]) -> tuple[Message, HTTPResponse]:
    """The headers of the first answer, and the last answer. ``trail`` has the address, and gets those it is redirected to."""
    opener, first = urllib.request.build_opener(_AsIs, urllib.request.ProxyHandler(_proxies())), None
    for _ in range(MAX_REDIRECTS + 1):
        url = trail[-1]
        if urlsplit(url).scheme not in ('http', 'https'):
            raise DownloadError(f'{trail[0]}: {url!r} is no http or https address')
        proxy = _proxy_for(url)
        if proxy and '://' in proxy and urlsplit(proxy).scheme not in ('http', 'https'):
            raise DownloadError(f'{trail[0]}: the proxy {_host(proxy)} is of the kind {urlsplit(proxy).scheme}, which is not supported; '
                                f'set HTTPS_PROXY to one of the kind http')
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=PATIENCE)
        first = first or answer.headers
        if answer.status not in (301, 302, 303, 307, 308):
            return first, answer
        answer.close()
        target = urljoin(url, answer.headers.get('Location', ''))
        if urlsplit(target)[:2] != urlsplit(url)[:2]:   # scheme, host and port
            headers = {name: value for name, value in headers.items() if name.lower() != 'authorization'}
        trail.append(target)
    raise DownloadError(f'{trail[0]}: more than {MAX_REDIRECTS} redirects')


def _proxies() -> dict[str, str]:
    """By scheme. urllib itself makes nothing of ALL_PROXY."""
    proxies = urllib.request.getproxies()
    every = proxies.get('all')
    return {'http': every, 'https': every} | proxies if every else proxies


def _proxy_for(url: str) -> str | None:
    """The address of the proxy that a request goes through, if it does."""
    scheme, host = urlsplit(url)[:2]
    return None if urllib.request.proxy_bypass(host) else _proxies().get(scheme)


def _where(trail: list[str]) -> str:
    """Who answers or does not, unless it is the host of the first address itself."""
    host, proxy = urlsplit(trail[-1])[1], _proxy_for(trail[-1])
    redirected = '' if host == urlsplit(trail[0])[1] else f' from {host}'
    return redirected + (f' through the proxy {_host(proxy)}' if proxy else '')


def _host(proxy: str) -> str:
    """Of the address of a proxy, without name and password."""
    return (urlsplit(proxy)[1] or proxy).rpartition('@')[2]


def _check_status(url: str, where: str, answer: HTTPResponse, have: int, with_token: bool) -> None:
    status, given = answer.status, answer.headers.get('Content-Range', '')
    if status == 416 or (status == 206 and not given.startswith(f'bytes {have}-')):
        raise WrongFileError(f'{url}: asked for the bytes from {have} on, got HTTP {status} with {given!r}')
    if status in TRANSIENT:
        pause = _number(answer.headers.get('Retry-After'))
        if pause > MAX_PAUSE:
            raise DownloadError(f'{url}: HTTP {status}{where}, and the server asks to come back in {pause} s')
        raise _Interrupted(f'HTTP {status}{where}', pause)
    if status == 404:
        raise NotThereError(f'{url}: HTTP 404{where}, {MEANING[404]}')
    if status not in (200, 206):
        meaning = MEANING | MEANING_WITH_TOKEN if with_token else MEANING
        raise DownloadError(f'{url}: HTTP {status}{where}, {meaning.get(status, "which is no file")}')


def _words(error: object) -> str:
    """What the system says; nothing that a server wrote."""
    return getattr(error, 'strerror', None) or type(error).__name__


def _number(header: str | None) -> int:
    return int(header) if header and re.fullmatch(r'[0-9]{1,15}', header) else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
