"""Whether the Hub can be reached, and one line for whatever went wrong there."""

import contextlib
import threading
from functools import cache

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from nanomed.errors import UserError

CONNECT_SECONDS = 5
OFFLINE = constants.HF_HUB_OFFLINE  # as the user set it


@cache
def online() -> bool:
    """Whether the Hub answers at all, asked once: huggingface_hub itself retries for half a minute before it gives up."""
    if OFFLINE:
        return False
    answers = []

    def ask():
        with contextlib.suppress(Exception):
            answers.append(huggingface_hub.get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS))

    # In a thread: a dead name server, or a host of many addresses, would outlast any timeout of the request's.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answers:
        # Else huggingface_hub would go on to ask for things of its own (which agent it runs under), and wait for those.
        constants.HF_HUB_OFFLINE = True
    return bool(answers)


def explain(repo: str, error: Exception, what: str) -> UserError:
    """One line for whatever huggingface_hub or datasets raised about a repository."""
    endpoint = constants.ENDPOINT
    local = f"; or give a local {what}"
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    if any(isinstance(e, GatedRepoError) for e in chain):
        return UserError(f"{repo}: gated on {endpoint}; accept its terms there and run `hf auth login`{local}")
    if any(isinstance(e, RepositoryNotFoundError | HFValidationError) for e in chain):
        return UserError(f"{repo}: no such repository on {endpoint}, and no such directory here{local}")
    if not online():
        why = "HF_HUB_OFFLINE is set" if OFFLINE else f"no network: {endpoint} is out of reach"
        return UserError(f"{repo}: no such {what} here, nor in the Hub's cache, and {why}{local}")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{repo}: could not be had from {endpoint} ({first}){local}")
