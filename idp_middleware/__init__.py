"""Call providers' APIs as the user, without handing out the user's provider token."""

from idp_middleware import errors
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Timeout, Token
from idp_middleware._version import __version__

__all__ = ["Caller", "ProxyRoute", "Timeout", "Token", "__version__", "errors"]
