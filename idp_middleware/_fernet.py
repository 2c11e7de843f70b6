"""Encryption keys from the configuration, as what encrypts and decrypts with them.

Shared by the token cache and the token stores. Knows nothing of what is encrypted.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.fernet import Fernet, MultiFernet

from idp_middleware.errors import ConfigurationError


def fernet(encryption_keys: Sequence[str] | Sequence[bytes]) -> MultiFernet:
    """The first key encrypts, all of them decrypt.

    Raises `ConfigurationError` for what is no list of Fernet keys, or an empty one.
    """
    if isinstance(encryption_keys, (str, bytes)):
        raise ConfigurationError("must be a list of keys", key="encryption_keys")
    if not encryption_keys:
        raise ConfigurationError(
            "are needed: tokens are kept only encrypted (cryptography.fernet.Fernet.generate_key() makes one)",
            key="encryption_keys",
        )
    try:
        return MultiFernet([Fernet(key) for key in encryption_keys])
    except (ValueError, TypeError):
        raise ConfigurationError(
            "each must be 32 random bytes in URL-safe base64, as cryptography.fernet.Fernet.generate_key() makes them",
            key="encryption_keys",
        ) from None
