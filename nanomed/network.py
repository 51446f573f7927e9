"""Whether the Hub can be reached, patience with it, and one line for whatever went wrong there."""

import contextlib
import math
import os
import threading
import time
import warnings
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from nanomed.errors import UserError

CONNECT_SECONDS = 5
SILENCE_SECONDS = 10  # after which a download is given up
IDLE_SECONDS = 60  # the same, where other work may be under way that is not seen
# Age of what is left of a download that was given up: huggingface_hub begins each under a name of its own.
OLD_SECONDS = 24 * 3600
PAUSES = (1, 3)  # seconds, before it is asked again
BUSY = {429, 500, 502, 503, 504}  # what passes by itself
OFFLINE = constants.HF_HUB_OFFLINE  # as the user set it
huggingface_hub.logging.set_verbosity_error()  # what fails in the end is said by explain()
warnings.filterwarnings("ignore", "Not enough free disk space")  # it fails then, and that is said
constants.DOWNLOAD_CHUNK_SIZE = 2**16  # bytes at a time to the disk, so that a slow download is seen to go on
if "HF_HUB_DOWNLOAD_TIMEOUT" not in os.environ:
    constants.HF_HUB_DOWNLOAD_TIMEOUT = 4  # seconds of silence, after which it asks for the rest of a file


def check_endpoint() -> None:
    """Raises UserError for what huggingface_hub could not even load with."""
    try:
        parts = urlsplit(constants.ENDPOINT)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        what = "no address of a Hub, as https://huggingface.co is"
        raise UserError(f"HF_ENDPOINT {constants.ENDPOINT}: {what}")


@cache
def online() -> bool:
    """Whether the Hub answers at all, asked once: huggingface_hub itself retries for half a minute before it
    gives up."""
    check_endpoint()
    if OFFLINE:
        return False
    answers, session = [], huggingface_hub.get_session()  # whose loading is no part of those seconds

    def ask():
        with contextlib.suppress(Exception):
            answers.append(session.head(constants.ENDPOINT, timeout=CONNECT_SECONDS))

    # In a thread: a dead name server, or a host of many addresses, would outlast the request's timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answers:
        constants.HF_HUB_OFFLINE = True  # else huggingface_hub would ask, and wait, for things of its own
    return bool(answers)


def forget() -> None:
    """That the Hub did not answer: a program that goes on may ask it again."""
    online.cache_clear()
    constants.HF_HUB_OFFLINE = OFFLINE


def busy(error: HfHubHTTPError) -> bool:
    return error.response is not None and error.response.status_code in BUSY


def patiently(call):
    """call(), and twice again after a pause where the Hub says that it is busy, or broken for the moment: as
    long a pause as it asks for, if that is no longer than SILENCE_SECONDS in all."""
    end = time.monotonic() + SILENCE_SECONDS
    for pause in (*PAUSES, math.inf):
        try:
            return call()
        except HfHubHTTPError as e:
            if not busy(e):
                raise
            asked = e.response.headers.get("Retry-After", "")
            pause = max(pause, int(asked) if asked.isdecimal() else 0)
            if time.monotonic() + pause > end:
                raise
            time.sleep(pause)


def folder_of(kind: str, repo: str) -> Path:
    """Where huggingface_hub puts what it downloads of a repository; kind: `models` or `datasets`."""
    return Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}"


def watched(call, folder: Path, all_the_time: bool = True):
    """call(), which downloads into `folder`, in a thread of its own: huggingface_hub goes on trying for
    minutes. Raises TimeoutError once nothing has come for SILENCE_SECONDS, or nothing but answers that the
    Hub is busy.

    all_the_time: False if the call does other work too, which may take its time; then those seconds count
    only while a file that it has begun is not complete, and it is IDLE_SECONDS otherwise."""
    ended, left = [], _incomplete(folder)  # by earlier ones
    refused = []  # (when, answer) of each time that the Hub was busy, since it last gave a file

    def heard(answer) -> None:
        if answer.status_code in BUSY:
            refused.append((time.monotonic(), answer))
        elif answer.status_code < 400 and "/resolve/" in answer.url.path:
            refused.clear()

    def run():
        try:
            ended.append((call(), None))
        except BaseException as e:  # the panic of a library in another language too: the caller waits
            ended.append((None, e))

    for file, (_, changed) in left.items():
        if time.time() - changed / 1e9 > OLD_SECONDS:
            with contextlib.suppress(OSError):
                file.unlink()
    if online():
        session = huggingface_hub.get_session()
        session.event_hooks = session.event_hooks | {"response": [heard]}
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    before, since = None, time.monotonic()
    while not ended:
        thread.join(0.2)
        if refused and time.monotonic() - refused[0][0] > SILENCE_SECONDS:
            code = f"{refused[-1][1].status_code} {refused[-1][1].reason_phrase}"
            raise TimeoutError(f"for {SILENCE_SECONDS} seconds it has answered {code}")
        now = _incomplete(folder)
        limit = SILENCE_SECONDS if all_the_time or now.items() - left.items() else IDLE_SECONDS
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > limit:
            raise TimeoutError(f"nothing came for {limit} seconds")
    value, error = ended[0]
    if error:
        raise error
    return value


def _incomplete(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files that are being downloaded, or were: {name: (size, time of the last change)}."""
    found = {}
    with contextlib.suppress(OSError):  # removed meanwhile
        for file in folder.rglob("*.incomplete"):
            with contextlib.suppress(OSError):  # renamed just now
                found[file] = (file.stat().st_size, file.stat().st_mtime_ns)
    return found


def explain(repo: str, error: Exception, what: str) -> UserError:
    """One line for whatever huggingface_hub or datasets raised about a repository."""
    endpoint, chain = constants.ENDPOINT, [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    if any(isinstance(e, GatedRepoError) for e in chain):
        why = f"gated on {endpoint}; accept its terms there and run `hf auth login`"
    elif any(isinstance(e, RepositoryNotFoundError | HFValidationError) for e in chain):
        why = f"no such repository on {endpoint}, and no such directory here"
    elif not online():
        why = "HF_HUB_OFFLINE is set" if OFFLINE else f"no network: {endpoint} is out of reach"
        why = f"no such {what} here, nor in the Hub's cache, and {why}"
    else:  # what it was is at the end of the chain; before that the libraries speak of the connection
        said = next((e for e in chain if isinstance(e, HfHubHTTPError)), chain[-1])
        first = (str(said).strip() or type(said).__name__).splitlines()[0]
        why = f"could not be had from {endpoint} ({first})"
    return UserError(f"{repo}: {why}; or give a local {what}")
