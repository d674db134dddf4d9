"""Operations over HTTP: reviews, adapters, logins and monitoring."""
