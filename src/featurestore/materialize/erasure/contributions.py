"""Do a subject's rows reach the values of others? Where they do, a version is computed again.

A feature of a merchant counts the payments of its customers. Once a customer is erased, the rows of that
customer are not the only ones to change.
"""

from collections.abc import Iterator

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.errors import NotFoundError
from featurestore.materialize.context import Context
from featurestore.materialize.erasure.subject import Subject
from featurestore.resolve.joins import compile_join, expand_refs
from featurestore.resolve.program import ViewProgram, compile_view
from featurestore.storage.manifest import Manifest


def mixing_sources(then: Context, manifest: Manifest, subject: Subject) -> list[str]:
    """Return the sources whose rows of a subject reach values of other entities in a version.

    A source does where it has the subject's key columns and some view over it is joined by other keys.
    Nothing but the catalog is read, except for sources with a query, whose files are looked at.

    Args:
        then: The context with the definitions of the version.

    Raises:
        NotFoundError: the catalog no longer has the definitions.
    """
    wanted = set(subject.columns)
    found = []
    for chain in _chains(then, manifest):
        base = then.snapshot.source(chain[-1].source)
        keyed = all(wanted <= set(program.join_keys) for program in chain)
        if not keyed and _holds(then, base, subject):
            found.append(base.name)
    return list(dict.fromkeys(found))


def _chains(then: Context, manifest: Manifest) -> Iterator[list[ViewProgram]]:
    for program in _programs(then, manifest):
        chain = [program]
        while chain[-1].upstream is not None:
            chain.append(chain[-1].upstream)
        yield chain


def _programs(then: Context, manifest: Manifest) -> Iterator[ViewProgram]:
    snapshot = then.snapshot
    ref = parse_ref(manifest.name)
    found = snapshot.get(ref.whole(), TrainingSet.kind, FeatureView.kind)
    if not isinstance(found, TrainingSet):
        yield compile_view(snapshot, ref.whole())
        return
    spine = snapshot.source(found.spine)
    join = compile_join(
        snapshot,
        expand_refs(snapshot, [found.service] if found.service else found.features),
        spine=snapshot.schema_of(found.spine, Source.kind),
        timestamp=spine.timestamp_field,
        labels=found.labels,
        key_map=found.key_map,
        full_feature_names=found.full_feature_names,
    )
    yield from (view.program for view in join.views)
    yield from (label.program.rows for label in join.labels)


def _holds(then: Context, source: Source, subject: Subject) -> bool:
    if set(subject.columns) <= set(then.snapshot.schema_of(Ref(source.name), Source.kind).names):
        return True
    if source.query is None:
        return False
    try:
        return then.open(source).has_columns(subject.columns)
    except NotFoundError:
        return True
