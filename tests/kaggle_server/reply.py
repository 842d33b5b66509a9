"""Requests and answers, before and after they are bytes on a wire."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

FIRST = ("NOT_YET_PERSISTED", "QUEUED", "PENDING")  # enum values that are left out like a 0


@dataclass
class Request:
    """One request; `whole` is false if the client went away before the end of its body."""

    verb: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes
    whole: bool = True


@dataclass
class Reply:
    """One answer; with `events` the body is sent event by event, and `then` is called before the last one."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    events: bool = False
    then: Callable[[], None] | None = None


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer in JSON."""
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def as_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    """An error as Kaggle's API says it."""
    return as_json({"code": status, "message": message}, status, headers)


def as_redirect(url: str) -> Reply:
    """The way to a file at the storage."""
    return Reply(302, headers={"Location": url})


def as_html(status: int) -> Reply:
    """A web page where JSON is expected."""
    return Reply(status, b"<html><body>Please try again</body></html>", {"Content-Type": "text/html; charset=utf-8"})


def as_xml(status: int, code: str) -> Reply:
    """An error as the storage says it."""
    page = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>Expired</Message></Error>"
    return Reply(status, page.encode(), {"Content-Type": "application/xml; charset=UTF-8"})


def without_defaults(value: Any) -> Any:
    """The same without the fields that have their default value."""
    if isinstance(value, dict):
        kept = {name: without_defaults(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item and item not in FIRST}
    return [without_defaults(item) for item in value] if isinstance(value, list) else value


def page_of(items: list[Any], body: Mapping[str, Any], limit: int) -> tuple[list[Any], str]:
    """The page of a list that a request asks for, and the token of the next one."""
    token = str(body.get("pageToken") or "p0")
    if not token[1:].isdecimal():
        raise RefusedError(400, "Invalid page token")
    start, size = int(token[1:]), min(int(body.get("pageSize") or 20), limit)
    following = start + size
    return items[start:following], f"p{following}" if following < len(items) else ""
