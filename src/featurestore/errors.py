"""Every error this package raises on purpose.

FeatureStoreError
├── DefinitionError (ValueError)        a definition, argument or configuration cannot be right
│   └── LeakageError                    a definition could see the future
├── NotFoundError (LookupError)         no such object, feature, version or file
├── AlreadyExistsError                  something of that name is there already
├── SchemaError (TypeError)             a column is missing or has the wrong type
├── TimeOverflowError (OverflowError)   a time or duration does not fit int64 nanoseconds
├── CorruptDataError                    stored bytes are not what was written
├── CommitConflictError                 someone else committed first [retryable]
├── PinnedVersionError                  an erasure would change what a tag names
├── StorageError (OSError)              the file system or object store refused
├── ExpressionError (ValueError)        an SQL expression failed on the data it met
├── StreamError (RuntimeError)          a stream was used after its end, or is over its bounds
├── LateDataError                       a row came after its time was sealed
├── LoaderStateError                    a loader's saved state does not fit this dataset
├── OnlineStoreError                    the online store failed
│   └── OnlineStoreTimeoutError (TimeoutError)  it did not answer in time [retryable]
├── ServerError (RuntimeError)          a server cannot start or a call to it failed
├── LimitError (ValueError)             a request is over one of the server's limits
├── AccessDeniedError (PermissionError) the caller is not known, or may not do this
└── MissingDependencyError (ImportError)  an optional library is not installed
"""

from typing import Any, ClassVar


class FeatureStoreError(Exception):
    """Root of the tree: catch this to catch everything raised on purpose.

    Errors pickle, so they cross worker processes whole.

    Attributes:
        message: What was asked, what was found, what there is.
        hint: What to do next; empty where there is nothing to add.
        context: The values the message was built from, by name.
        retryable: Whether the same call may succeed later, unchanged.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.context)


def _rebuild(
    cls: type[FeatureStoreError], message: str, hint: str, context: dict[str, Any]
) -> FeatureStoreError:
    return cls(message, hint=hint, **context)


class DefinitionError(FeatureStoreError, ValueError):
    """A definition, an argument or a configuration value cannot be right."""


class LeakageError(DefinitionError):
    """A definition could see rows that a reader at its time could not have seen (PIT-5)."""


class NotFoundError(FeatureStoreError, LookupError):
    """No such object, feature, version or file; the message lists near names."""


class AlreadyExistsError(FeatureStoreError):
    """Something of that name is there already."""


class SchemaError(FeatureStoreError, TypeError):
    """A column is missing, repeated or of the wrong type."""


class TimeOverflowError(FeatureStoreError, OverflowError):
    """A time or a duration does not fit int64 nanoseconds since 1970 UTC."""


class CorruptDataError(FeatureStoreError):
    """Stored bytes are not the bytes that were written."""


class CommitConflictError(FeatureStoreError):
    """Another writer committed first; read the new head and try again."""

    retryable = True


class PinnedVersionError(FeatureStoreError):
    """An erasure would change or remove a version that a tag names; `context["tags"]` lists them."""


class StorageError(FeatureStoreError, OSError):
    """The file system or object store refused: disk full, permission, an unsafe store."""


class ExpressionError(FeatureStoreError, ValueError):
    """An SQL expression failed on the values it met."""


class StreamError(FeatureStoreError, RuntimeError):
    """A stream was used after its end, or went over one of its bounds."""


class LateDataError(FeatureStoreError):
    """A row arrived after its time had been sealed."""


class LoaderStateError(FeatureStoreError):
    """A loader's saved state does not fit this dataset or this configuration."""


class OnlineStoreError(FeatureStoreError):
    """The online store failed."""


class OnlineStoreTimeoutError(OnlineStoreError, TimeoutError):
    """The online store did not answer in time."""

    retryable = True


class ServerError(FeatureStoreError, RuntimeError):
    """A server cannot start, or a call to one failed."""


class LimitError(FeatureStoreError, ValueError):
    """A request is over one of the server's limits: size, rows, features, or calls at once."""


class AccessDeniedError(FeatureStoreError, PermissionError):
    """The caller is not known, or has no role that allows this."""


class MissingDependencyError(FeatureStoreError, ImportError):
    """An optional library is not installed; the hint holds the pip line."""
