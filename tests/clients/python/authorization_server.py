"""An authorization server on the Python SDK's `mcp.server.auth`, with dynamic registration. Its user consents to everything.

    authorization_server.py FOLDER KIND SUBJECT SCOPES [FIRST]

FOLDER has its certificate (server.pem, server.key). The access tokens of the KIND `jwt` are signed and verify with
/jwks.json; those of the KIND `opaque` are known to /introspect (RFC 7662) alone, which answers `guardian` with the password
in FOLDER/introspection.secret. SCOPES, separated by commas, are all there are; with FIRST, the first token has these alone. Prints its issuer, then a line for each
request of a client; ends with its standard input.
"""

import base64
import json
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from mcp.server.auth.provider import AccessToken, AuthorizationCode, RefreshToken, construct_redirect_uri
from mcp.server.auth.routes import create_auth_routes
from mcp.server.auth.settings import ClientRegistrationOptions
from mcp.shared.auth import OAuthToken
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

LIFE = 600
folder, kind, subject, scopes = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4].split(",")
first = sys.argv[5].split(",") if len(sys.argv) > 5 else scopes
listener = socket.create_server(("127.0.0.1", 0))
issuer = AnyHttpUrl(f"https://localhost:{listener.getsockname()[1]}")
key = ec.generate_private_key(ec.SECP256R1())


def say(line):
    print(line, flush=True)


class Provider:
    def __init__(self):
        self.clients, self.codes, self.refreshes, self.tokens = {}, {}, {}, {}

    async def get_client(self, client_id):
        return self.clients.get(client_id)

    async def register_client(self, client_info):
        say("registers a client")
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client, params):
        asked = " ".join(params.scopes or [])
        say(f"signs its user in, for the scopes {asked or 'none in particular'}")
        code = AuthorizationCode(
            code=secrets.token_urlsafe(32),
            scopes=(params.scopes or scopes) if self.tokens else first,
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
            subject=subject,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(self, _client, authorization_code):
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(self, _client, authorization_code):
        say("gives a token for a code")
        del self.codes[authorization_code.code]
        return self.token(authorization_code, authorization_code.scopes)

    async def load_refresh_token(self, _client, refresh_token):
        return self.refreshes.get(refresh_token)

    async def exchange_refresh_token(self, _client, refresh_token, scopes):
        say("gives a token for a refresh token")
        del self.refreshes[refresh_token.token]
        return self.token(refresh_token, scopes)

    async def load_access_token(self, token):
        return self.tokens.get(token)

    async def revoke_token(self, token):
        self.tokens.pop(token.token, None)

    def token(self, granted, scopes):
        expires_at = int(time.time()) + LIFE
        refresh = secrets.token_urlsafe(32)
        same = {"client_id": granted.client_id, "resource": granted.resource, "subject": subject, "scopes": scopes}
        token = AccessToken(token=secrets.token_urlsafe(32), expires_at=expires_at, **same)
        if kind == "jwt":
            head = {"typ": "at+jwt", "kid": "k1"}
            token.token = jwt.encode(claims(token) | {"jti": secrets.token_hex(8)}, key, "ES256", head)
        self.tokens[token.token] = token
        self.refreshes[refresh] = RefreshToken(token=refresh, **same)
        return OAuthToken(access_token=token.token, expires_in=LIFE, scope=" ".join(scopes), refresh_token=refresh)


def claims(token):
    return {
        "iss": str(issuer),
        "sub": token.subject,
        "aud": token.resource,
        "client_id": token.client_id,
        "scope": " ".join(token.scopes),
        "iat": token.expires_at - LIFE,
        "exp": token.expires_at,
    }


async def key_set(_request: Request):
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return JSONResponse({"keys": [public | {"kid": "k1", "alg": "ES256", "use": "sig"}]})


async def introspect(request: Request):
    password = (folder / "introspection.secret").read_text().strip()
    expected = "Basic " + base64.b64encode(f"guardian:{password}".encode()).decode()
    if not secrets.compare_digest(request.headers.get("authorization", ""), expected):
        return JSONResponse({"error": "invalid_client"}, 401)
    token = provider.tokens.get((await request.form()).get("token"))
    if token is None or token.expires_at < time.time():
        return JSONResponse({"active": False})
    return JSONResponse({"active": True, "token_type": "Bearer"} | claims(token))


provider = Provider()
registration = ClientRegistrationOptions(enabled=True, valid_scopes=scopes, default_scopes=scopes)
routes = create_auth_routes(provider, issuer, client_registration_options=registration)
routes += [Route("/jwks.json", key_set)] if kind == "jwt" else [Route("/introspect", introspect, methods=["POST"])]
certificate = {"ssl_certfile": folder / "server.pem", "ssl_keyfile": folder / "server.key"}
server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off", **certificate))


def end_with_the_input():
    sys.stdin.read()
    server.should_exit = True


threading.Thread(target=end_with_the_input, daemon=True).start()
say(str(issuer))
server.run(sockets=[listener])
