"""``crossrec client check``: is the platform ready, and what would leave it?

Read-only, and for the operator's own screen: what it finds out about the data goes nowhere else.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
from cryptography import x509

from client.assortment import read_assortment
from client.data import catalogue_is_known, load_catalogue, read_table
from client.joining import trusted_keys
from client.node import server_section
from common.config import split_address
from common.errors import CrossRecError, DataError
from common.keys import fingerprint, read_private_key
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.storage import read_content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from client.config import PlatformConfig, ServerSection

_PATIENCE = 10.0
_SOON_DAYS = 30
_SHORT = 12
"""Digits of a fingerprint that tell keys apart at a glance; comparing takes all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    """What was looked at."""
    text: str
    """What was found; for a problem with the next step."""
    is_fine: bool = True
    """False for a problem that keeps the platform out."""


def check_platform(config_file: Path, config: PlatformConfig) -> Iterator[Finding]:
    """Look at everything that a run will need, one finding after the other."""
    yield from _guarded("data", lambda: _data(config))
    yield from _guarded("budget", lambda: _budget(config))
    yield from _guarded("keys", lambda: _keys(config))
    yield from _guarded("server", lambda: _server(server_section(config_file, config)))


def what_would_leave(config: PlatformConfig) -> list[str]:
    """Everything that a platform with this configuration ever sends, in words."""
    privacy = config.privacy
    keyed = config.catalogue.key_file is not None
    items = "keyed hashes of the items it lists" if keyed else "the ids of the items it lists"
    return [
        (
            f"its name ({config.platform.name}) and the population that platform.toml states "
            f"({config.platform.population})"
        ),
        "a digest of the shared catalogue" if config.catalogue.assortment is None else items,
        (
            "when it is asked: noisy counts of items, noisy counts of item pairs, noisy updates of "
            "item vectors and towers; each user's part is clipped, and all of them together cost a "
            f"{privacy.unit} at most epsilon {privacy.epsilon:g} at delta {privacy.delta:g}"
        ),
        *_left_in_sums(config),
        "whether it answers, and how long that takes",
        "never: user ids, what a user did, user vectors, losses, metrics, numbers of users",
    ]


def _left_in_sums(config: PlatformConfig) -> list[str]:
    section = config.secagg
    if config.privacy.trust != "secagg" or section is None:
        return []
    return [
        (
            f"of these only the sum with those of {section.min_summed - 1} other platforms or more "
            "can be read: they are sent under masks. That is the epsilon to whoever knows the "
            f"releases of {section.max_colluding} of the others as well; `crossrec client ledger "
            "status` shows it for the case that the masks failed"
        ),
        "public keys, signatures, and shares of the keys that the masks follow from",
    ]


def _guarded(subject: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except CrossRecError as error:
        yield Finding(subject=subject, text=str(error), is_fine=False)


def _data(config: PlatformConfig) -> Iterator[Finding]:
    name = config.platform.name
    if config.catalogue.assortment is not None:
        listed = read_assortment(config.catalogue, name).item_ids
        text = f"{len(listed)} items in the assortment"
    else:
        listed = load_catalogue(config).listed_ids(name)
        text = f"{name} lists {len(listed)} items of the shared catalogue"
    if not catalogue_is_known(config):
        text += "; nothing is agreed on yet, which comes with the first run"
    elif config.catalogue.assortment is not None:
        agreed = load_catalogue(config)
        common = len(set(agreed.listed_ids(name)) & set(listed))
        text += f", {common} of them in the agreed catalogue of {agreed.num_items}"
    yield Finding(subject="catalogue", text=text)
    table = read_table(config, config.data.interactions())
    mine = table[table["item_id"].isin(listed)]
    users, items = mine["user_id"].nunique(), mine["item_id"].nunique()
    yield Finding(
        subject="data",
        text=f"{users} users with {len(mine)} interactions with {items} listed items; "
        f"{len(table) - len(mine)} interactions with items that are not listed are left out",
        is_fine=users > 0,
    )
    declared = config.platform.population
    if not declared / 2 <= users <= 2 * declared:
        yield Finding(
            subject="population",
            text=f"note: platform.toml states {declared}, far from what the data hold; sums are "
            "divided by it, so a wrong one weakens the model. State a round number near the truth.",
        )


def _budget(config: PlatformConfig) -> Iterator[Finding]:
    privacy, path = config.privacy, config.state.folder / LEDGER_FILE
    stated = f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g} for a {privacy.unit}"
    if not path.exists():
        yield Finding(subject="budget", text=f"{stated}; nothing is spent yet")
        return
    with closing(Ledger(path, read_only=True)) as ledger:
        spent = ledger.account().epsilon(privacy.delta)
    left = privacy.epsilon - spent
    yield Finding(
        subject="budget",
        text=f"{stated}; spent {spent:.4f}, left {max(0.0, left):.4f}",
        is_fine=left > 0,
    )


def _keys(config: PlatformConfig) -> Iterator[Finding]:
    """Whom the platform trusts in secure sums, and whether its own key is what others are told."""
    section, own_name = config.secagg, config.platform.name
    if config.privacy.trust != "secagg" or section is None:
        return
    own = read_private_key(section.private_key).public_key()
    known = trusted_keys(section)
    names: dict[str, list[str]] = {}
    for name, key in known.items():
        names.setdefault(fingerprint(key), []).append(name)
    shown = ", ".join(f"{name} {fingerprint(key)[:_SHORT]}" for name, key in known.items())
    text = f"trusts the keys of {len(known)} platforms: {shown or 'none'}"
    if len(known) < section.min_summed:
        text += (
            f"; a sum takes at least {section.min_summed}, itself included (min_summed). Get the "
            "node.pub of the others from them, and add each: crossrec client trust NAME node.pub"
        )
    yield Finding(subject="keys", text=text, is_fine=len(known) >= section.min_summed)
    if known.get(own_name) != own:
        text = (
            f"{section.platform_keys / own_name}.pub is not the public half of "
            f"{section.private_key}: put this platform's own node.pub there."
        )
        yield Finding(subject="own key", text=text, is_fine=False)
    for same in names.values():
        if len(same) > 1:
            text = (
                f"{', '.join(same)} have one and the same key: whoever holds it counts as several "
                f"platforms. Remove the wrong ones from {section.platform_keys}."
            )
            yield Finding(subject="keys", text=text, is_fine=False)
    if config.server and read_private_key(config.server.private_key).public_key() != own:
        text = (
            f"{section.private_key} of [secagg] is not {config.server.private_key} of [server], "
            "by which the coordinator knows this platform: name one key in both."
        )
        yield Finding(subject="own key", text=text, is_fine=False)


def _server(server: ServerSection) -> Iterator[Finding]:
    try:
        authority = x509.load_pem_x509_certificate(read_content(server.root_certificate))
    except ValueError as error:
        raise DataError(
            "is no certificate",
            source=server.root_certificate,
            found=error,
            expected="the ca.crt of the coordinator",
        ) from error
    yield _validity("root certificate", authority)
    host, port = split_address(server.address)
    context = ssl.create_default_context(cafile=server.root_certificate)
    try:
        with (
            socket.create_connection((host, port), _PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
            version = secure.version()
    except ssl.SSLCertVerificationError as error:
        text = (
            f"{server.address} shows a certificate that {server.root_certificate} does not vouch "
            f"for ({error.verify_message}). Ask the coordinator for its ca.crt; do not go on."
        )
        yield Finding(subject="server", text=text, is_fine=False)
        return
    except OSError as error:
        text = (
            f"{server.address} cannot be reached ({error}). Is the coordinator running, and does "
            "the firewall let this machine out?"
        )
        yield Finding(subject="server", text=text, is_fine=False)
        return
    yield Finding(subject="server", text=f"{server.address} is reached by {version}")
    if shown is not None:
        yield _validity("server certificate", x509.load_der_x509_certificate(shown))
    try:
        answer = httpx.get(
            f"https://{server.address}/health", verify=context, timeout=_PATIENCE, trust_env=False
        )
        ready = answer.status_code == httpx.codes.OK
    except httpx.HTTPError:
        ready = False
    text = "the federation is ready" if ready else "reached, but the federation is not running"
    yield Finding(subject="federation", text=text, is_fine=ready)


def _validity(subject: str, certificate: x509.Certificate) -> Finding:
    end = certificate.not_valid_after_utc
    left = (end - datetime.now(UTC)).days
    soon = f", in {left} days: ask the coordinator for a new one" if left < _SOON_DAYS else ""
    return Finding(subject=subject, text=f"valid until {end:%Y-%m-%d}{soon}", is_fine=left >= 0)
