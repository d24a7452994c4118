"""OpenedStore: what every part of the facade stands on, a root, its settings, a clock and the catalog."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.catalog.definition import Definition
from featurestore.catalog.source import Source
from featurestore.core.arguments import folder, listed, text
from featurestore.core.clock import Clock, SystemClock
from featurestore.core.config import StoreConfig, store_config
from featurestore.settings import read_settings, user_name

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.catalog.catalog import Catalog
    from featurestore.materialize.context import Context
    from featurestore.serve.backend import OnlineBackend

Named = str | Definition
Features = Sequence[str | Definition] | Definition | str


def name_of(given: Any) -> Any:
    """Return the name of a definition given as such or by its name; anything else is left to be refused."""
    return given.name if isinstance(given, Definition) else given


class OpenedStore:
    """A root with its settings, clock and catalog; each room is opened when it is first needed."""

    def __init__(
        self,
        root: str | PathLike[str] = ".",
        config: StoreConfig | Mapping[str, Any] | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        """Open a store; nothing is read or written but the settings.

        Raises:
            DefinitionError: the settings hold an unknown key or a value that cannot be right.
        """
        # Absolute from here on: a process may change its folder, and its workers may have another.
        place = folder("a feature store", "root", root)
        self.root = place if "://" in place else str(Path(place).absolute())
        self.config = (
            config
            if isinstance(config, StoreConfig)
            else store_config(read_settings(self.root) if config is None else config)
        )
        self._clock = clock or SystemClock()
        self._catalog: Catalog | None = None
        self._online: OnlineBackend | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A store crosses processes as what opens it; rooms are opened again where they are needed.
        return {**self.__dict__, "_catalog": None, "_online": None}

    @property
    def catalog(self) -> "Catalog":
        """What exists, what it means and what it depends on, at every version."""
        if self._catalog is None:
            from featurestore.catalog.catalog import open_catalog

            self._catalog = open_catalog(
                self.root,
                storage_options=self.config.storage_options,
                clock=self._clock,
                read_schema=self._source_schema,
                author=user_name(),
            )
        return self._catalog

    def _context(self) -> "Context":
        from featurestore.materialize.context import Context

        return Context(
            root=self.root, snapshot=self.catalog.snapshot(), clock=self._clock, config=self.config
        )

    def _snapshots(self) -> Callable[[], Any]:
        return self.catalog.snapshot

    def _definitions(self) -> list[Definition]:
        from featurestore.catalog.discovery import load_definitions

        return load_definitions(self.root)

    def _refs(self, features: Features) -> list[str]:
        one = isinstance(features, (str, Definition))
        given = (features,) if one else listed("the read", "features", features, "views and references")
        return [f.name if isinstance(f, Definition) else text("the read", "features", f) for f in given]

    def _source_schema(self, source: Source) -> "pa.Schema":
        from featurestore.materialize.context import path_of, source_spec
        from featurestore.storage.sources import open_source

        return open_source(source_spec(source), path_of(self.root, self.config)).schema
