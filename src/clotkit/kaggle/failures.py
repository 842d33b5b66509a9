"""Explain why a call to Kaggle failed, and decide whether another try can help."""

import os
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from clotkit.errors import RemoteError, RemoteMissing, RemoteUnclear
from clotkit.reasons import RemoteKind

LONGEST_WAIT_S = 300.0  # between two tries, whatever Retry-After says
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
PROXY_ADDRESS = re.compile(
    r"(?:(?i:https?|socks[45][ah]?)://)?(?:[^/\s]*@)?(?:\[[0-9a-fA-F:.]+\]|[^/\s:@\[\]]+)(?::[0-9]{1,5})?/?"
)
FORM = "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"
# Of a proxy that refuses a tunnel the library passes on only a sentence with the status.
TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3})")


@dataclass(frozen=True)
class Subject:
    """The subject of a call, and the meaning of its refusal."""

    name: str  # in messages
    rules_of: str = ""  # the competition whose rules may not be accepted yet
    missing_is_403: bool = False  # Kaggle answers 403 for a kernel or a dataset that does not exist


@dataclass(frozen=True)
class Failure:
    """A failed try of a call."""

    error: RemoteError
    pause_s: float | None = None  # before the next try; None: another try cannot help
    no_effect: bool = False  # the request certainly changed nothing


def failure(error: Exception, subject: Subject, attempt: int, chance: float) -> Failure:
    """Return what an exception of a try means."""
    import requests
    from urllib3.exceptions import NewConnectionError

    backoff_s = 2.0**attempt * (0.5 + chance)
    on_the_way = _on_the_way(error, subject, backoff_s)
    if on_the_way is not None:
        return on_the_way
    if isinstance(error, requests.HTTPError) and error.response is not None:
        error.response.close()
        return _refusal(error.response, str(error), subject, backoff_s, chance)
    if isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
        text = f"the connection failed {attempt} times ({type(error).__name__}): check it, then run again"
        refused = isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError)
        never_sent = refused or isinstance(error, requests.ConnectTimeout)
        return Failure(RemoteUnclear(f"{subject.name}: {text}"), backoff_s, no_effect=never_sent)
    text = f"not an answer of Kaggle's API ({type(error).__name__}), perhaps a web page: run again later"
    return Failure(RemoteUnclear(f"{subject.name}: {text}"), backoff_s)


def _on_the_way(error: Exception, subject: Subject, backoff_s: float) -> Failure | None:
    """Return the failure that a proxy or a certificate on the way to Kaggle causes; None if neither does."""
    if _untrusted(error):
        text = (
            f"{subject.name}: the certificate that came is not trusted: if a proxy opens encrypted connections, set "
            "REQUESTS_CA_BUNDLE to the file with its certificate, else check the clock of this machine"
        )
        return Failure(RemoteError(text, RemoteKind.CERTIFICATE), no_effect=True)
    wrong, can_pass = _proxy_problem(error)
    if not wrong:
        return None
    return Failure(RemoteError(f"{subject.name}: {wrong}", RemoteKind.PROXY), backoff_s if can_pass else None, True)


def _untrusted(error: BaseException | None) -> bool:
    """Return whether an error is about a certificate; the library wraps it in several others."""
    from ssl import SSLCertVerificationError

    while error is not None and not isinstance(error, SSLCertVerificationError):
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        error = inner if isinstance(inner, BaseException) else None
    return error is not None


def check_proxy(address: str) -> None:
    """Raise RemoteError if the address of the proxy on the way to Kaggle cannot be one; empty for none."""
    if address and not PROXY_ADDRESS.fullmatch(address):
        raise RemoteError(_malformed(), RemoteKind.PROXY)


def _malformed() -> str:
    """Return the line about an address that is none: by its variable, because it may contain a password."""
    known = {name: os.environ[name] for name in PROXY_VARIABLES if os.environ.get(name)}
    wrong = [name for name, address in known.items() if not PROXY_ADDRESS.fullmatch(address)]
    return f"the address of a proxy cannot be used ({', '.join(wrong or known)}): set it like {FORM}, or unset it"


def _proxy_problem(error: Exception) -> tuple[str, bool]:
    """Return what is wrong with a proxy, empty if nothing is, and whether it may pass."""
    from requests import exceptions

    names = ", ".join(name for name in PROXY_VARIABLES if os.environ.get(name))
    if names and isinstance(error, exceptions.InvalidURL | exceptions.InvalidSchema):
        return _malformed(), False
    tunnel = TUNNEL.search(str(error)) if isinstance(error, exceptions.ProxyError) else None
    status = int(tunnel[1]) if tunnel else getattr(getattr(error, "response", None), "status_code", 0)
    if status == 407:
        return f"the proxy ({names}) asks for a user name and a password (407): set it like {FORM}", False
    if tunnel and status < 500:
        return f"the proxy ({names}) does not let this machine connect to Kaggle ({status}): ask who runs it", False
    if isinstance(error, exceptions.ProxyError):
        return f"the proxy ({names}) cannot be reached, or fails: check its address, or unset it", True
    return "", False


def _refusal(response: Any, text: str, subject: Subject, backoff_s: float, chance: float) -> Failure:
    """Return what an answer with an error status means; `text` is what the library says of it."""
    # A refusal may come as JSON under HTTP 200; the library has read it then.
    status = response.status_code if response.status_code >= 400 else int(response.json()["code"])
    text = " ".join(text.partition(" for url: ")[0].split())[:200]  # the address of a file is signed: a secret
    later = f"{subject.name}: Kaggle answered {status} ({text}): run again later"
    if status == 429:
        asked_s = _retry_after_s(response.headers.get("Retry-After", ""))
        pause_s = backoff_s if asked_s is None else min(asked_s, LONGEST_WAIT_S) + chance
        error = RemoteError(f"{subject.name}: Kaggle asks to slow down (429): run again later", RemoteKind.BUSY)
        return Failure(error, pause_s, no_effect=True)
    if status in (408, 500, 502, 503, 504) or status > 504:
        return Failure(RemoteUnclear(later), backoff_s)
    if response.history:  # after a redirect it is the storage that refuses: the next try gets a fresh address
        return Failure(RemoteError(later, RemoteKind.EXPIRED), backoff_s)
    if status == 404 or (status == 403 and subject.missing_is_403):
        missing = f"{subject.name}: Kaggle has no such thing ({status}, {text}): check the name"
        return Failure(RemoteMissing(missing))
    return Failure(_refused(status, text, subject))


def _refused(status: int, text: str, subject: Subject) -> RemoteError:
    """Return the error of a refusal that another try cannot help, with the next step."""
    if status not in (401, 403):
        return RemoteError(f"{subject.name}: Kaggle answered {status} ({text}): see its page", RemoteKind.REFUSED)
    kind = RemoteKind.CREDENTIALS if status == 401 else RemoteKind.FORBIDDEN
    refused = f"{subject.name}: Kaggle refused ({status}, {text}): the credentials are not valid, or"
    if not subject.rules_of:
        return RemoteError(f"{refused} this is not yours: check both", kind)
    page = f"kaggle.com/competitions/{subject.rules_of}/rules"
    return RemoteError(
        f"{refused} the rules are not accepted: accept them once at {page}, then run again",
        kind if status == 401 else RemoteKind.RULES,
    )


def _retry_after_s(text: str) -> float | None:
    """Return the seconds that a Retry-After header asks for, a number or a date; None if it has neither."""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
