"""Who may ask: this machine alone, or whoever has the token, over TLS; anything less must be said (`--insecure`)."""

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

SHORTEST_TOKEN = 16
SCHEMES = ("Bearer", "Api-Key")
"""How a token is brought: ours, and openpi's."""
_MAKE_ONE = "Make one: (umask 077; openssl rand -hex 32 > FILE)"


@dataclass(frozen=True)
class Auth:
    """Where a server listens, and to whom.

    Attributes:
        host: the address to bind; `127.0.0.1` and the like are reached from this machine alone.
        port: 0 for any that is free.
        token: what a client must bring; never shown.
        tls: the server's certificate.
        insecure: go without token or TLS beyond this machine, knowingly.

    Raises:
        ConfigError: the token is empty or short, or token or TLS are missing where they are needed.
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
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigError(
                f"The token is {'empty' if not self.token else f'{len(self.token)} characters long'}: expected "
                f"{SHORTEST_TOKEN} at least, which nobody guesses. {_MAKE_ONE}"
            )
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and " " not in self.token
        ):
            raise ConfigError(f"The token has characters that a header can't carry. {_MAKE_ONE}")
        missing = [
            name
            for name, there in (
                ("a token (--token-file)", self.token),
                ("TLS (--tls-cert, --tls-key)", self.tls),
            )
            if there is None
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
        """Whether it can be reached from this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False

    def admits(self, authorization: str | None) -> bool:
        """Whether a request with this header may go on. Takes the same time whatever the header holds."""
        if self.token is None:
            return True
        given = hashlib.sha256((authorization or "").encode("utf-8", "replace")).digest()
        expected = [hashlib.sha256(f"{scheme} {self.token}".encode()).digest() for scheme in SCHEMES]
        return True in [hmac.compare_digest(given, one) for one in expected]  # all of them, in any case


def read_token(path: Path) -> str:
    """The token in a file, without the space around it.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it holds no text.
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
    """The context of a server with this certificate (PEM); `key` is None where the same file holds it.

    Raises:
        NotFoundError: a file is not there.
        ConfigError: they are not a certificate and its key.
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
