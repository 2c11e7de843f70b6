"""Where an app that runs the provider login itself keeps its users' tokens, for `sources.RefreshToken`.

    store = SQLiteTokenStore("tokens.db", encryption_keys=[os.environ["IDP_KEY"]])

    @app.get("/connected/github")                            # where the provider sends the user back to; Authlib here
    async def connected(request):
        got = await oauth.github.authorize_access_token(request)
        await store.put(
            TokenKey(issuer="https://acme.eu.auth0.com/", subject=request.user.id, connection="github"),
            StoredToken(
                access_token=got["access_token"],
                refresh_token=got.get("refresh_token"),
                expires_at=got.get("expires_at"),
                scopes=got.get("scope", "").split(),
            ),
        )

Only the app's own code puts. Under the middleware's prefix, all that a caller can do is to have their own token revoked
and deleted.
"""

from idp_middleware.stores._sqlalchemy import SQLAlchemyTokenStore
from idp_middleware.stores._sqlite import SQLiteTokenStore
from idp_middleware.stores._values import Claim, Entry, StoredToken, TokenKey, TokenStore

__all__ = ["Claim", "Entry", "SQLAlchemyTokenStore", "SQLiteTokenStore", "StoredToken", "TokenKey", "TokenStore"]
