"""Opening an object store, with limits for how long a request may take.

What it is for: obstore waits for minutes and tries many times; here a store that does not answer
is to cost seconds.  A store that a user made is made again with such limits.  What can't be used
is refused here, when a `Cache` is made, and not with the first miss.

Who calls it: `Bucket`.  What may go wrong: `OptionError` for what is no store, has no conditional
puts, or has settings that obstore does not take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ._errors import OptionError
from ._keys import describe

if TYPE_CHECKING:
    from typing import Any

_WANTED = "It must be an address such as s3://bucket/prefix, or a store made with obstore"


def open_store(store: Any, timeout: float, longest: float, options: dict[str, Any]) -> Any:
    """Return the store of an address, or one that a user made, with limits in seconds.

    Parameters
    ----------
    store
        The address, or what obstore made.
    timeout
        For how long it may be silent.
    longest
        How long one request may take in all.
    options
        Further settings, for an address.
    """
    from obstore.exceptions import BaseError

    try:
        if isinstance(store, str):
            return _open(store, timeout, longest, options)
        if options:
            raise OptionError("remote_options are for an address; a store has settings of its own")
        return _with_limits(store, timeout, longest)
    except (BaseError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, OptionError):
            raise
        raise _refused(store, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what obstore makes of some settings
            raise
        raise _refused(store, error) from error


def first_line(error: BaseException) -> str:
    """Return the part of an error that people want to read."""
    return str(error).partition("\n")[0] or repr(error)


def _refused(store: Any, why: BaseException) -> OptionError:
    return OptionError(f"remote={describe(store)} can't be opened: {first_line(why)}. {_WANTED}")


def _open(address: str, timeout: float, longest: float, options: dict[str, Any]) -> Any:
    from obstore.store import HTTPStore, LocalStore, MemoryStore, from_url

    limits = _limits(timeout, longest, options.get("client_options"), options.get("retry_config"))
    opened = from_url(address, **{**options, **limits})
    if isinstance(opened, HTTPStore | LocalStore | MemoryStore):
        raise TypeError("no other machine sees it, or it can't put under a condition")
    return opened


def _with_limits(store: Any, timeout: float, longest: float) -> Any:
    """Return a store like one that was made elsewhere, but bounded."""
    from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

    kinds: Any = ((S3Store, "bucket"), (GCSStore, "bucket"), (AzureStore, "container_name"))
    for kind, named in kinds:
        if isinstance(store, kind):
            settings = {key: value for key, value in store.config.items() if key != named}
            return kind(
                store.config[named],
                prefix=store.prefix,
                config=settings,
                credential_provider=store.credential_provider,
                **_limits(timeout, longest, store.client_options, store.retry_config),
            )
    if isinstance(store, MemoryStore):  # for tests, where machines are caches of one process
        return store
    raise TypeError("it is no store that can put under a condition")


def _limits(timeout: float, longest: float, client: Any, retry: Any) -> dict[str, Any]:
    """Return the settings that bound a request, beside those that a user chose."""
    from datetime import timedelta

    for name, chosen in (("client_options", client), ("retry_config", retry)):
        if not isinstance(chosen, Mapping | None):
            raise TypeError(f"{name} must be a dict, not {describe(chosen)}")
    limit: dict[str, Any] = {
        "timeout": timedelta(seconds=longest),
        "read_timeout": timedelta(seconds=timeout),
        "connect_timeout": timedelta(seconds=min(timeout, 5.0)),
        **(client or {}),
    }
    if longest > timeout:  # whatever a single request may take
        limit["timeout"] = timedelta(seconds=longest)
    once_more = {"max_retries": 1, "retry_timeout": timedelta(seconds=timeout), **(retry or {})}
    return {"client_options": limit, "retry_config": once_more}
