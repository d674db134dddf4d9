"""Tells the requests that are made on this machine from those that are only forwarded on it.

    remote_trait(request)       # "" for this machine's own; else why it is not taken for one

Three things have to agree: the peer is this machine, the Host that the client asked for is a name
of this machine, and nothing shows a proxy or a page of another site. So a visitor behind a reverse
proxy is not local, nor is a page whose name an attacker has pointed at 127.0.0.1 (DNS rebinding).

What forwards a connection as it is, adds nothing and is asked for ``localhost`` cannot be told from
this machine's own: ``ssh -R``, ``kubectl port-forward``, a proxy that rewrites Host and keeps its
connections open. For those the server warns at its start, and takes ``trusted_proxies``.
"""

import ipaddress
import re

from starlette.requests import HTTPConnection

PROXY_HEADERS = re.compile(
    r"forward|proxy|^via$|(-|client)ip$|(-|^)addr(ess)?$|^(x-)?remote-|^x-(real|original|envoy|azure)-"
    r"|^x-(host|scheme|url-scheme|rewrite-url|request-start)$|^x-am(z|zn)-|^(cf|cdn|fly|fastly|ngrok)-"
    r"|^tailscale-|^front-end-https$"
)
"""Names of headers that proxies, load balancers, tunnels and CDNs add, and no client by itself."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d{1,5})?")


def remote_trait(request: HTTPConnection) -> str:
    """Return what shows that a request is not this machine's own, in words; "" for one that is."""
    hosts = request.headers.getlist("host")
    if not _is_local_peer(request):
        return "it comes from another machine"
    if len(hosts) != 1 or not is_loopback_name(hosts[0]):
        return "its Host is no name of this machine"
    if any(PROXY_HEADERS.search(name.replace("_", "-")) for name in request.headers):
        return "it has a header of proxies"
    if _is_relayed(request):
        return "its connection is kept as proxies keep theirs"
    if is_cross_site(request) or not _is_from_own_page(request, hosts[0]):
        return "it is sent by a page of another site"
    return ""


def is_cross_site(request: HTTPConnection) -> bool:
    """Tell whether a browser says that a page of another site sends this request."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def is_loopback_host(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens on ``host``."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def is_loopback_name(host: str) -> bool:
    """Tell whether a Host header, with a port or without, names this machine."""
    match = _HOST.fullmatch(host.lower())
    return match is not None and is_loopback_host(match[1].strip("[]").removesuffix("."))


def _is_local_peer(request: HTTPConnection) -> bool:
    """Tell whether the peer is on this machine; the peer at a Unix socket has no address."""
    if request.client is None:
        server = request.scope.get("server")
        return server is not None and server[1] is None
    return is_loopback_host(request.client.host)


def _is_relayed(request: HTTPConnection) -> bool:
    """Tell whether the connection itself shows a proxy: nginx without further settings speaks
    HTTP/1.0, and proxies that open a connection for each request say so."""
    kept = {
        one.strip().lower() for one in ",".join(request.headers.getlist("connection")).split(",")
    }
    upgraded = "upgrade" in kept and "upgrade" not in request.headers
    return request.scope.get("http_version") == "1.0" or "close" in kept or upgraded


def _is_from_own_page(request: HTTPConnection, host: str) -> bool:
    """Tell whether Origin and Referer, where they are sent, are of the server's own pages."""
    own = f"{request.scope.get('scheme', 'http')}://{host}".lower()
    origin, referer = request.headers.get("origin", own), request.headers.get("referer", own)
    return origin.lower() == own and f"{referer.lower()}/".startswith(f"{own}/")
