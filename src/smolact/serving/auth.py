"""Authentication: beyond this machine a server needs a token and TLS, unless `--insecure` waives them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from smolact.errors import ConfigError, NotFoundError, list_siblings

logger = logging.getLogger(__name__)

MIN_TOKEN_LENGTH = 16
SCHEMES = ("Bearer", "Api-Key")
"""Schemes of the Authorization header: ours, and openpi's."""
_MAKE_ONE = "Make one: (umask 077; openssl rand -hex 32 > FILE)"


@dataclass(frozen=True)
class Auth:
    """The address of a server and its access control.

    Attributes:
        host: the address to bind; loopback addresses are reachable from this machine only.
        port: the port; 0 for any free one.
        token: the token that clients must send; never printed.
        insecure: allow a server without token or TLS beyond this machine.

    Raises:
        ConfigError: the port, host or token is invalid, or token or TLS are missing where they are needed.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port={self.port}: expected 1 to 65535, or 0 for any that is free.")
        if not self.host:
            raise ConfigError(
                "--host is empty: name the address to listen at, such as 0.0.0.0 for all of this machine's."
            )
        if self.token is not None and len(self.token) < MIN_TOKEN_LENGTH:
            raise ConfigError(
                f"The token is {'empty' if not self.token else f'{len(self.token)} characters long'}: expected "
                f"{MIN_TOKEN_LENGTH} at least, which nobody guesses. {_MAKE_ONE}"
            )
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and " " not in self.token
        ):
            raise ConfigError(f"The token has characters that a header can't carry. {_MAKE_ONE}")
        missing = [
            name
            for name, value in (
                ("a token (--token-file)", self.token),
                ("TLS (--tls-cert, --tls-key)", self.tls),
            )
            if value is None
        ]
        if missing and not self.insecure and not self.is_local:
            raise ConfigError(
                f"At {self.host} others can reach this server, and it has neither {' nor '.join(missing)}. Whoever asks it "
                "moves no robot, but sees what it answers, and takes its time. Give what is missing, listen at 127.0.0.1 (and "
                "reach it through ssh -L), or say --insecure in a network that you trust."
                if len(missing) == 2
                else f"At {self.host} others can reach this server, and it lacks {missing[0]}. Give it, listen at 127.0.0.1 "
                "(and reach it through ssh -L), or say --insecure in a network that you trust."
            )

    @property
    def is_local(self) -> bool:
        """Whether the server is reachable from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a host name
            return False

    def admits(self, authorization: str | None) -> bool:
        """Whether this Authorization header is accepted. The comparison takes constant time."""
        if self.token is None:
            return True
        digest = hashlib.sha256((authorization or "").encode("utf-8", "replace")).digest()
        expected = [hashlib.sha256(f"{scheme} {self.token}".encode()).digest() for scheme in SCHEMES]
        return True in [hmac.compare_digest(digest, candidate) for candidate in expected]  # no early exit


def read_token(path: Path) -> str:
    """Return the token in a file, without surrounding whitespace.

    Raises:
        NotFoundError: the file does not exist.
        ConfigError: the file is not UTF-8 text.
    """
    if not path.is_file():
        raise NotFoundError(
            f"The token's file {path} is not there. {_MAKE_ONE} {list_siblings(path.absolute())}"
        )
    if path.stat().st_mode & 0o004:
        logger.warning("Everybody on this machine can read %s. Keep it to yourself: chmod 600 %s", path, path)
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} holds no text. {_MAKE_ONE}") from error


def read_certificate(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return the TLS context of a server with this certificate (PEM); `key` is None if the same file contains it.

    Raises:
        NotFoundError: a file does not exist.
        ConfigError: the files are not a certificate and its key without a passphrase.
    """
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise NotFoundError(f"{path} is not there. {list_siblings(path.absolute())}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{certificate} and {key or 'no key'} are not a certificate and its key in PEM, without a passphrase ({error})."
        ) from error
    return context
