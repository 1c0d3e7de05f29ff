"""Addresses and texts without their passwords, also where they are misspelt."""

from __future__ import annotations

import re

__all__ = ["redacted", "without_password"]

_QUERY = re.compile(r"(?i)([?&;]\w*(?:passw|pwd|secret|token)\w*=)[^&;\s]*")
_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*:?/+)?(?P<user>.*)@(?P<rest>.*)", re.DOTALL)


def without_password(url: str) -> str:
    """A URL that can be shown.

    >>> without_password("postgresql://me:pw@host/d?sslpassword=pw"), without_password("postgresql:/me:pw@host/d")
    ('postgresql://me:***@host/d?sslpassword=***', 'postgresql:/me:***@host/d')
    """
    url = _QUERY.sub(r"\g<1>***", url)
    match = _USER.fullmatch(url)
    if match is None or ":" not in match["user"]:
        return url
    return f"{match['scheme'] or ''}{match['user'].partition(':')[0]}:***@{match['rest']}"


def redacted(text: str) -> str:
    """A text with every word in it that may be an address shown without its password."""
    return re.sub(r"\S+", lambda word: without_password(word[0]), text)
