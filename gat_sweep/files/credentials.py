"""Checks that keep passwords and keys out of all files: a URI that contains one is refused before anything is written.

Configs, run records and MLflow's params store places as they were given, so a place must not contain a secret.
Credentials come from the environment, where each library looks for its own.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from gat_sweep.errors import UserError

AWS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use the machine's role"
FIXES = {  # by scheme
    "s3": AWS,
    "s3a": AWS,
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or use the machine's role",
    "hf": "set HF_TOKEN, or use `hf auth login`",
    "http": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN), or HF_TOKEN",
}
OTHERS = "start an `mlflow server` for that database and give its http:// address"
PORTLESS = ("s3", "s3a", "gs", "hf")  # their first colon begins a secret, not a port
CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")  # container@account is a place
# Names whose value is a secret, in queries and in connection strings.
_KEY = r"(?:api|access|account|secret)[-_]?key(?:[-_]?id)?"
_NAME = rf"[\w.-]*(?:secret|token|passw(?:or)?d|pwd|passphrase|signature|credentials?|{_KEY})"
_OPTION = re.compile(rf"(?:^|[?&;#\s])(?:{_NAME}|sig|key|auth)\s*=\s*[^&;#\s]", re.IGNORECASE)
_PLACE = re.compile(r"(?:(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2})?(?P<rest>[^/].*)", re.IGNORECASE | re.DOTALL)
# Places of a secret in a message: user:password@ of a URI, name=value, and the header of a request.
_QUOTED = (
    (re.compile(r"(://)[^/\s'\"@]*:[^\s'\"@]*@"), r"\1...@"),
    (re.compile(r"(://)[^/\s'\"@:]+@"), r"\1...@"),
    (re.compile(rf"((?<![\w.-]){_NAME}['\"]?\s*[=:]\s*['\"]?)[^\s&;,'\"]+", re.IGNORECASE), r"\1..."),
    (re.compile(r"\b(basic|bearer)\s+[\w.~+/=-]+", re.IGNORECASE), r"\1 ..."),
)
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD", re.IGNORECASE)
LONGEST = 2000  # characters; the rest of a message is dropped
SHORTEST = 6  # characters; a shorter value of a variable may be an ordinary word of a message


def check_no_credentials(uri: str, option: str) -> None:
    """Raises UserError, which names `option` and what to set instead, when a place contains a password or key.

    uri: a URI or another place; paths, hub ids and names are accepted.
    """
    for text in (uri, unquote(uri)):
        scheme = _carrier(text)
        if scheme is not None:
            fix = FIXES.get("http" if scheme.startswith("http") else scheme, OTHERS if scheme else FIXES["http"])
            raise UserError(f"{option} contains a password or key, which would be written to logs and records; {fix}")


def check_config(values: Mapping[str, Any]) -> None:
    """Checks every text in the values of a config, which are written to records, params and checkpoints.

    values: by dotted key, as recipe.flatten returns them. Raises UserError, which names the key.
    """
    for key, value in values.items():
        for text in _texts(value):
            check_no_credentials(text, key)


def without_credentials(message: str) -> str:
    """A library's message without secrets: texts that look like one, and values of this process's secret variables."""
    message = message[:LONGEST]
    for pattern, shown in _QUOTED:
        message = pattern.sub(shown, message)
    secrets = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= SHORTEST}
    for secret in sorted(secrets, key=len, reverse=True):
        message = message.replace(secret, "...")
    return message


def _carrier(text: str) -> str | None:
    """Scheme of a place that contains a secret ("" for a place without a scheme); None when there is no secret."""
    match = _PLACE.fullmatch(text)
    scheme = (match["scheme"] or "").lower() if match else ""
    if (scheme or "://" in text or "?" in text) and _OPTION.search(text):
        return scheme
    if match is None:
        return None
    before, at, _ = re.sub(r"^\[[^]]*\]", "host", match["rest"]).partition("@")  # an IPv6 address contains colons
    user, colon, password = before.partition(":")
    if not at or "/" in user or any(mark in user for mark in "?#"):
        return None
    if not colon:  # only a token, or a user name
        return scheme if scheme and scheme not in CONTAINERS else None
    if "/" in password and (not scheme or (re.match(r"\d*/", password) and scheme not in PORTLESS)):
        return None  # the @ is in the path after host:port, or after a prefix such as hf-hub:
    return scheme


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
