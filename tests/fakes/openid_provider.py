"""Fakes an OpenID provider on loopback, with the routes and claims of the Hugging Face Hub's.

https://huggingface.co/docs/hub/oauth
"""

import json
import secrets
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "a-space", "its secret"
PEOPLE = ("ann", "rita", "otto")


class FakeOpenIDProvider(BaseHTTPRequestHandler):
    """Asks visitors on a page who they are, or whether they deny the Space to know."""

    key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
    asked: dict[str, dict[str, str]]
    """Authorization code -> the request's parameters, and the person who consented."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/.well-known/openid-configuration":
            self.answer(self.about())
        elif url.path == "/oauth/jwks":
            self.answer({"keys": [self.key.as_dict(private=False)]})
        elif url.path == "/oauth/authorize":
            self.ask({name: values[0] for name, values in parse_qs(url.query).items()})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        given = {name: values[0] for name, values in parse_qs(body).items()}
        scheme, _, who = self.headers["authorization"].partition(" ")
        assert (scheme, b64decode(who).decode()) == ("Basic", f"{CLIENT}:{SECRET}")
        asked = self.asked.pop(given["code"])
        assert asked["redirect_uri"] == given["redirect_uri"]
        self.answer(self.token(asked))

    def about(self) -> dict[str, Any]:
        routes = {"authorization_endpoint": "authorize", "token_endpoint": "token"}
        issuer = f"http://{self.headers['host']}"
        return {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/oauth/jwks",
            **{name: f"{issuer}/oauth/{route}" for name, route in routes.items()},
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def ask(self, asked: dict[str, str]) -> None:
        """Answer with a page that has a link for each person, and one to deny."""
        assert asked["client_id"] == CLIENT and asked["response_type"] == "code"
        links = []
        for person in PEOPLE:
            code = secrets.token_hex(8)
            self.asked[code] = {**asked, "person": person}
            links.append((person, {"code": code}))
        links.append(("Deny", {"error": "access_denied", "error_description": "refused"}))
        sep = "&amp;" if "?" in asked["redirect_uri"] else "?"
        page = "".join(
            f'<p><a href="{asked["redirect_uri"].replace("&", "&amp;")}{sep}'
            f'{urlencode({**answer, "state": asked["state"]})}">{name}</a></p>'
            for name, answer in links
        )
        self.answer(page.encode(), "text/html")

    def token(self, asked: dict[str, str]) -> dict[str, Any]:
        person, moment = asked["person"], int(time.time())
        claims = {
            "iss": f"http://{self.headers['host']}",
            "aud": CLIENT,
            "sub": f"id-of-{person}",
            "iat": moment,
            "exp": moment + 600,
            "nonce": asked["nonce"],
            "name": person.capitalize(),
            "preferred_username": person,
            "profile": f"https://huggingface.co/{person}",
            "picture": f"https://huggingface.co/avatars/{person}.svg",
        }
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        response = {"access_token": "hf_oauth_x", "token_type": "bearer", "expires_in": 28800}
        return {**response, "id_token": signed, "scope": asked["scope"]}

    def answer(self, what: Any, kind: str = "application/json") -> None:
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_provider() -> Iterator[str]:
    """Serve the provider; yield its address."""
    handler = type("Provider", (FakeOpenIDProvider,), {"asked": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
