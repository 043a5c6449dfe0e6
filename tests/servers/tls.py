"""TLS for tests: certificates made on the spot, and servers that speak it."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import trustme

from connector_sdk.testing import RedisServer
from connector_sdk.testing.engine import bind
from tests.servers.proxy import Proxy


@dataclasses.dataclass(frozen=True)
class Certificates:
    """Files in PEM form: an authority, a certificate of it for 127.0.0.1 and localhost, and one for a client."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make all of them in *folder*; takes some 10 ms."""
        authority = trustme.CA()
        files = cls(*(folder / f"{field.name}.pem" for field in dataclasses.fields(cls)))
        authority.cert_pem.write_to_path(str(files.ca))
        for made, cert, key in (
            (authority.issue_cert("127.0.0.1", "localhost"), files.server_cert, files.server_key),
            (authority.issue_cert("client@tests.invalid"), files.client_cert, files.client_key),
        ):
            made.cert_chain_pems[0].write_to_path(str(cert))
            made.private_key_pem.write_to_path(str(key))
        return files

    def server_context(self, *, client_certificate: bool = False) -> ssl.SSLContext:
        """For a server; with *client_certificate* it takes only clients that have one of the same authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.ca))
        context.load_cert_chain(self.server_cert, self.server_key)
        context.verify_mode = ssl.CERT_REQUIRED if client_certificate else ssl.CERT_NONE
        return context

    def client_context(self, *, certificate: bool = False) -> ssl.SSLContext:
        """For a client that trusts the authority, and with *certificate* shows its own."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if certificate:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


@dataclasses.dataclass(frozen=True)
class TlsServer:
    """A Redis that is reached by TLS, at *port*; *plain_port* leads to the same one without."""

    port: int
    plain_port: int
    certificates: Certificates

    @property
    def url(self) -> str:
        """The address, without what makes a client trust the certificate."""
        return f"rediss://127.0.0.1:{self.port}/0"

    @property
    def trusting_url(self) -> str:
        """The address with redis-py's parameters for the authority and for the client's own certificate."""
        files = self.certificates
        return f"{self.url}?ssl_ca_certs={files.ca}&ssl_certfile={files.client_cert}&ssl_keyfile={files.client_key}"


@contextlib.contextmanager
def terminated(plain_port: int, certificates: Certificates, *, client_certificate: bool = False) -> Iterator[TlsServer]:
    """TLS in front of the server on *plain_port*, by a proxy."""
    context = certificates.server_context(client_certificate=client_certificate)
    with Proxy(plain_port, tls=context) as proxy:
        yield TlsServer(proxy.port, plain_port, certificates)


@contextlib.contextmanager
def built_in(binary: Path, certificates: Certificates, *, client_certificate: bool = False) -> Iterator[TlsServer]:
    """A server of its own that has TLS built in, as those of Linux distributions have."""
    with contextlib.closing(bind(0)) as holder:
        port: int = holder.getsockname()[1]
        options = {
            "--tls-port": port,
            "--tls-ca-cert-file": certificates.ca,
            "--tls-cert-file": certificates.server_cert,
            "--tls-key-file": certificates.server_key,
            "--tls-auth-clients": "yes" if client_certificate else "no",
        }
        words = [str(word) for option in options.items() for word in option]
        with RedisServer(binary, arguments=words) as server:
            yield TlsServer(port, server.port, certificates)
